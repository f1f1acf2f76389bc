//! Tiles of the formats of 256 weights with a second layer of scales. Their scales are spread to a byte each.

use slmc_ir::Format;

use super::{
    layout::{
        HALVES, Layout, five_bit_groups, nibble_groups, part, put_fifths, put_half, put_nibbles, take_fifths,
        take_half, take_nibbles,
    },
    simd::{ROWS, Simd},
};

/// Groups of 32 weights in a unit, with a scale and a minimum each.
const GROUPS: usize = 8;
/// Where the bytes of the groups' scales and minimums begin, after the unit's own two.
const BYTES: usize = 2 * HALVES;

/// The unit's two f16 and its groups' 6-bit scales and minimums, in 16 bytes.
fn put_k_scales(unit: &[u8], row: usize, scales: &mut [u8]) {
    put_half(&unit[..2], row, scales);
    put_half(&unit[2..4], row, &mut scales[HALVES..]);
    let packed: &[u8; 12] = part(unit, 4);
    for g in 0..GROUPS {
        let (scale, min) = if g < 4 {
            (packed[g] & 63, packed[g + 4] & 63)
        } else {
            (packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4)
        };
        scales[BYTES + 2 * ROWS * g + row] = scale;
        scales[BYTES + 2 * ROWS * g + ROWS + row] = min;
    }
}

fn take_scales(row: usize, scales: &[u8], unit: &mut [u8]) {
    take_half(row, scales, &mut unit[..2]);
    take_half(row, &scales[HALVES..], &mut unit[2..4]);
    let scale = |g: usize| scales[BYTES + 2 * ROWS * g + row];
    let min = |g: usize| scales[BYTES + 2 * ROWS * g + ROWS + row];
    for g in 0..4 {
        unit[4 + g] = scale(g) | scale(g + 4) >> 4 << 6;
        unit[8 + g] = min(g) | min(g + 4) >> 4 << 6;
        unit[12 + g] = scale(g + 4) & 15 | (min(g + 4) & 15) << 4;
    }
}

/// Bytes of levels `j` and `j + 16` of group `group`, as the 32-blocks have them, from runs of 32 bytes that hold two
/// groups, the even one low.
fn nibbles_of(runs: &[u8], group: usize) -> [u8; 16] {
    let run: &[u8; 32] = part(runs, group / 2 * 32);
    let shift = group % 2 * 4;
    std::array::from_fn(|j| run[j] >> shift & 15 | (run[j + 16] >> shift & 15) << 4)
}

fn nibbles_to(bytes: &[u8; 16], group: usize, runs: &mut [u8]) {
    let run = &mut runs[group / 2 * 32..][..32];
    let shift = group % 2 * 4;
    for (j, byte) in bytes.iter().enumerate() {
        run[j] = run[j] & !(15 << shift) | (byte & 15) << shift;
        run[j + 16] = run[j + 16] & !(15 << shift) | (byte >> 4) << shift;
    }
}

/// Q4_K and Q5_K: `scale · group_scale · level − min · group_min`.
macro_rules! k_layout {
    ($name:ident, fifths $fifths:expr, $groups:ident) => {
        pub(super) struct $name;

        impl Layout for $name {
            const FORMAT: Format = Format::$name;
            const LEVELS: usize = if $fifths { 320 } else { 256 };
            const SCALES: usize = BYTES + GROUPS * 2 * ROWS;
            const OFFSET: i32 = 0;
            const MOST: i32 = if $fifths { 31 } else { 15 };
            const HAS_MINS: bool = true;

            #[inline(always)]
            fn groups<S: Simd>(s: S, levels: &[u8]) -> [S::Bytes; 8] {
                $groups(s, levels)
            }
            #[inline(always)]
            fn scale<S: Simd>(s: S, scales: &[u8], block: usize) -> S::Floats {
                s.mul(s.load_f16(part(scales, 0)), s.load_u8(part(scales, BYTES + 2 * ROWS * block)))
            }
            #[inline(always)]
            fn min<S: Simd>(s: S, scales: &[u8], block: usize) -> S::Floats {
                let min = s.load_u8(part(scales, BYTES + 2 * ROWS * block + ROWS));
                s.mul(s.mul(s.load_f16(part(scales, HALVES)), min), s.splat(-1.0))
            }
            fn put_scales(unit: &[u8], row: usize, scales: &mut [u8]) {
                put_k_scales(unit, row, scales);
            }
            fn put_levels(unit: &[u8], row: usize, levels: &mut [u8]) {
                let runs = if $fifths { 48 } else { 16 };
                for (g, levels) in levels.chunks_exact_mut(Self::LEVELS).enumerate() {
                    put_nibbles(&nibbles_of(&unit[runs..], g), row, levels);
                    if $fifths {
                        let bits = (0..32).fold(0, |bits, j| bits | u32::from(unit[16 + j] >> g & 1) << j);
                        put_fifths(bits, row, levels);
                    }
                }
            }
            fn take(row: usize, levels: &[u8], scales: &[u8], unit: &mut [u8]) {
                take_scales(row, scales, unit);
                let runs = if $fifths { 48 } else { 16 };
                for (g, levels) in levels.chunks_exact(Self::LEVELS).enumerate() {
                    let mut bytes = [0; 16];
                    take_nibbles(row, levels, &mut bytes);
                    nibbles_to(&bytes, g, &mut unit[runs..]);
                    if $fifths {
                        let bits = take_fifths(row, levels);
                        for j in 0..32 {
                            unit[16 + j] = unit[16 + j] & !(1 << g) | ((bits >> j & 1) as u8) << g;
                        }
                    }
                }
            }
        }
    };
}

k_layout!(Q4K, fifths false, nibble_groups);
k_layout!(Q5K, fifths true, five_bit_groups);

/// `scale · half_scale · (level − 32)`, a half being 16 columns.
pub(super) struct Q6K;

impl Q6K {
    /// Where the unit's bytes hold block `block`: the low bits' first byte and shift, and the high bits'.
    fn places(block: usize) -> [(usize, usize); 2] {
        let (half, within) = (block / 4, block % 4);
        [(64 * half + 32 * (within & 1), within / 2 * 4), (128 + 32 * half, 2 * within)]
    }
}

impl Layout for Q6K {
    const FORMAT: Format = Format::Q6K;
    const LEVELS: usize = 384;
    const SCALES: usize = HALVES + GROUPS * 2 * ROWS;
    const OFFSET: i32 = 32;
    const MOST: i32 = 63;
    const HALF_SCALES: bool = true;

    #[inline(always)]
    fn groups<S: Simd>(s: S, levels: &[u8]) -> [S::Bytes; 8] {
        let mut groups = nibble_groups(s, levels);
        let pairs = [s.pairs(s.load_bytes(part(levels, 256))), s.pairs(s.load_bytes(part(levels, 320)))];
        for (g, group) in groups.iter_mut().enumerate() {
            *group = s.or(*group, pairs[g / 4][g % 4]);
        }
        groups
    }
    #[inline(always)]
    fn scale<S: Simd>(s: S, scales: &[u8], _block: usize) -> S::Floats {
        s.load_f16(part(scales, 0))
    }
    #[inline(always)]
    fn half_scales<S: Simd>(s: S, scales: &[u8], block: usize) -> [S::Ints; 3] {
        let first = HALVES + 2 * ROWS * block;
        s.half_scales(part(scales, first), part(scales, first + ROWS))
    }
    fn put_scales(unit: &[u8], row: usize, scales: &mut [u8]) {
        put_half(&unit[208..], row, scales);
        for (half, &scale) in unit[192..208].iter().enumerate() {
            scales[HALVES + ROWS * half + row] = scale;
        }
    }
    fn put_levels(unit: &[u8], row: usize, levels: &mut [u8]) {
        for (block, levels) in levels.chunks_exact_mut(Self::LEVELS).enumerate() {
            let [(low, low_shift), (high, high_shift)] = Self::places(block);
            let low: &[u8; 32] = part(unit, low);
            let high: &[u8; 32] = part(unit, high);
            let bytes: [u8; 16] =
                std::array::from_fn(|j| low[j] >> low_shift & 15 | (low[j + 16] >> low_shift & 15) << 4);
            put_nibbles(&bytes, row, levels);
            for line in 0..2 {
                for c in 0..4 {
                    let pair = |k: usize| (high[16 * line + 4 * k + c] >> high_shift & 3) << (2 * k);
                    levels[256 + 64 * line + 4 * row + c] = pair(0) | pair(1) | pair(2) | pair(3);
                }
            }
        }
    }
    fn take(row: usize, levels: &[u8], scales: &[u8], unit: &mut [u8]) {
        take_half(row, scales, &mut unit[208..]);
        for (half, scale) in unit[192..208].iter_mut().enumerate() {
            *scale = scales[HALVES + ROWS * half + row];
        }
        unit[..192].fill(0);
        for (block, levels) in levels.chunks_exact(Self::LEVELS).enumerate() {
            let [(low, low_shift), (high, high_shift)] = Self::places(block);
            let mut bytes = [0; 16];
            take_nibbles(row, levels, &mut bytes);
            for (j, byte) in bytes.iter().enumerate() {
                unit[low + j] |= (byte & 15) << low_shift;
                unit[low + j + 16] |= byte >> 4 << low_shift;
            }
            for j in 0..32 {
                let pairs = levels[256 + 64 * (j / 16) + 4 * row + j % 4];
                unit[high + j] |= (pairs >> (2 * (j % 16 / 4)) & 3) << high_shift;
            }
        }
    }
}
