//! How a tile of sixteen rows lies in memory: the row's blocks of 32 columns one after the other, in each block
//! the levels of all sixteen rows interleaved, so that one register holds four columns of each row.
//!
//! Levels and scales are in planes of their own, so that levels begin on cache lines. Laying out is a
//! permutation of the bits of the format's blocks: `take` gives back the bytes that
//! `put_levels` and `put_scales` were given.

use slmc_ir::Format;

use super::simd::{ROWS, Simd};

/// Columns of a block, in weights and in activations.
pub(super) const BLOCK: usize = 32;

/// A format's tile. Weights are `scale · (level − OFFSET) + min`, levels unsigned.
pub(super) trait Layout: 'static {
    /// The format laid out.
    const FORMAT: Format;
    /// Blocks in a unit, the format's own block.
    const UNIT: usize = Self::FORMAT.block_weights() / BLOCK;
    /// Bytes of the levels of a block of sixteen rows, whole cache lines.
    const LEVELS: usize;
    /// Bytes of the scales of a unit of sixteen rows.
    const SCALES: usize;
    /// What is subtracted from levels.
    const OFFSET: i32;
    /// The largest level.
    const MOST: i32;
    /// Whether levels may exceed 127. The offset is 128 then.
    const WIDE: bool = Self::MOST > 127;
    /// Whether there are minimums.
    const HAS_MINS: bool = false;
    /// Whether each half of a block has an integer scale of its own, beside the unit's.
    const HALF_SCALES: bool = false;

    /// The block's levels: register `g` holds columns `4 g..4 g + 4` of each row.
    fn groups<S: Simd>(s: S, levels: &[u8]) -> [S::Bytes; 8];
    /// The scales of block `block` of the unit.
    fn scale<S: Simd>(s: S, scales: &[u8], block: usize) -> S::Floats;
    /// The minimums of block `block` of the unit.
    #[inline(always)]
    fn min<S: Simd>(s: S, _scales: &[u8], _block: usize) -> S::Floats {
        s.splat(0.0)
    }
    /// The integer scales of both halves of block `block` of the unit.
    #[inline(always)]
    fn half_scales<S: Simd>(s: S, _scales: &[u8], _block: usize) -> [S::Ints; 3] {
        [s.splat_int(1); 3]
    }

    /// Lays out the levels of a unit of one row.
    fn put_levels(unit: &[u8], row: usize, levels: &mut [u8]);
    /// Lays out its scales.
    fn put_scales(unit: &[u8], row: usize, scales: &mut [u8]);
    /// The unit of one row back.
    fn take(row: usize, levels: &[u8], scales: &[u8], unit: &mut [u8]);
}

/// Part `i` of `N` bytes.
#[inline(always)]
pub(super) fn part<const N: usize>(bytes: &[u8], first: usize) -> &[u8; N] {
    bytes[first..first + N].try_into().expect("as long as the range")
}

/// Groups of a block whose levels are nibbles.
#[inline(always)]
pub(super) fn nibble_groups<S: Simd>(s: S, levels: &[u8]) -> [S::Bytes; 8] {
    let [l0, h0] = s.nibbles(s.load_bytes(part(levels, 0)));
    let [l1, h1] = s.nibbles(s.load_bytes(part(levels, 64)));
    let [l2, h2] = s.nibbles(s.load_bytes(part(levels, 128)));
    let [l3, h3] = s.nibbles(s.load_bytes(part(levels, 192)));
    [l0, l1, l2, l3, h0, h1, h2, h3]
}

/// As [`nibble_groups`], each with a fifth bit: eight words of 64 bits after the nibbles.
#[inline(always)]
pub(super) fn five_bit_groups<S: Simd>(s: S, levels: &[u8]) -> [S::Bytes; 8] {
    let mut groups = nibble_groups(s, levels);
    for (g, group) in groups.iter_mut().enumerate() {
        *group = s.add_fifth(*group, u64::from_le_bytes(*part(levels, 256 + 8 * g)));
    }
    groups
}

/// Byte `j` holds level `j` in its low half and level `j + 16` in its high half, as in ggml's 32-blocks.
pub(super) fn put_nibbles(bytes: &[u8], row: usize, levels: &mut [u8]) {
    for (i, four) in bytes.chunks_exact(4).enumerate() {
        levels[64 * i + 4 * row..][..4].copy_from_slice(four);
    }
}

pub(super) fn take_nibbles(row: usize, levels: &[u8], bytes: &mut [u8]) {
    for (i, four) in bytes.chunks_exact_mut(4).enumerate() {
        four.copy_from_slice(&levels[64 * i + 4 * row..][..4]);
    }
}

/// Bit `j` is the fifth bit of level `j`.
pub(super) fn put_fifths(bits: u32, row: usize, levels: &mut [u8]) {
    for g in 0..8 {
        let four = (bits >> (4 * g) & 15) as u8;
        let byte = &mut levels[256 + 8 * g + row / 2];
        let shift = row % 2 * 4;
        *byte = *byte & !(15 << shift) | four << shift;
    }
}

pub(super) fn take_fifths(row: usize, levels: &[u8]) -> u32 {
    (0..8).fold(0, |bits, g| {
        let four = levels[256 + 8 * g + row / 2] >> (row % 2 * 4) & 15;
        bits | u32::from(four) << (4 * g)
    })
}

/// A two-byte number of one row among sixteen.
pub(super) fn put_half(number: &[u8], row: usize, numbers: &mut [u8]) {
    numbers[2 * row..][..2].copy_from_slice(number);
}

pub(super) fn take_half(row: usize, numbers: &[u8], number: &mut [u8]) {
    number.copy_from_slice(&numbers[2 * row..][..2]);
}

/// Bytes of sixteen two-byte numbers.
pub(super) const HALVES: usize = 2 * ROWS;

/// A layout of a 32-block of nibbles after an f16 scale, and perhaps an f16 minimum and fifth bits.
macro_rules! block_layout {
    ($(#[$meta:meta])* $name:ident, $format:ident, offset $offset:expr, mins $mins:expr, fifths $fifths:expr,
     most $most:expr, |$s:ident, $levels:ident| $groups:expr) => {
        $(#[$meta])*
        pub(super) struct $name;

        impl Layout for $name {
            const FORMAT: Format = Format::$format;
            const LEVELS: usize = if $fifths { 320 } else { 256 };
            const SCALES: usize = if $mins { 2 * HALVES } else { HALVES };
            const OFFSET: i32 = $offset;
            const MOST: i32 = $most;
            const HAS_MINS: bool = $mins;

            #[inline(always)]
            fn groups<S: Simd>($s: S, $levels: &[u8]) -> [S::Bytes; 8] {
                $groups
            }
            #[inline(always)]
            fn scale<S: Simd>(s: S, scales: &[u8], _block: usize) -> S::Floats {
                s.load_f16(part(scales, 0))
            }
            #[inline(always)]
            fn min<S: Simd>(s: S, scales: &[u8], _block: usize) -> S::Floats {
                if $mins { s.load_f16(part(scales, HALVES)) } else { s.splat(0.0) }
            }
            fn put_scales(unit: &[u8], row: usize, scales: &mut [u8]) {
                put_half(&unit[..2], row, scales);
                if $mins {
                    put_half(&unit[2..4], row, &mut scales[HALVES..]);
                }
            }
            fn put_levels(unit: &[u8], row: usize, levels: &mut [u8]) {
                let mut first = if $mins { 4 } else { 2 };
                if $fifths {
                    put_fifths(u32::from_le_bytes(*part(unit, first)), row, levels);
                    first += 4;
                }
                put_nibbles(&unit[first..], row, levels);
            }
            fn take(row: usize, levels: &[u8], scales: &[u8], unit: &mut [u8]) {
                take_half(row, scales, &mut unit[..2]);
                let mut first = 2;
                if $mins {
                    take_half(row, &scales[HALVES..], &mut unit[2..4]);
                    first = 4;
                }
                if $fifths {
                    unit[first..first + 4].copy_from_slice(&take_fifths(row, levels).to_le_bytes());
                    first += 4;
                }
                take_nibbles(row, levels, &mut unit[first..]);
            }
        }
    };
}

block_layout!(
    /// `scale · (level − 8)`.
    Q4_0, Q4_0, offset 8, mins false, fifths false, most 15, |s, levels| nibble_groups(s, levels)
);
block_layout!(
    /// `scale · level + min`.
    Q4_1, Q4_1, offset 0, mins true, fifths false, most 15, |s, levels| nibble_groups(s, levels)
);
block_layout!(
    /// `scale · (level − 16)`.
    Q5_0, Q5_0, offset 16, mins false, fifths true, most 31, |s, levels| five_bit_groups(s, levels)
);
block_layout!(
    /// `scale · level + min`.
    Q5_1, Q5_1, offset 0, mins true, fifths true, most 31, |s, levels| five_bit_groups(s, levels)
);
block_layout!(
    /// `scale · step[level]`: the levels are looked up before they are multiplied.
    Iq4Nl, Iq4Nl, offset 128, mins false, fifths false, most 255, |s, levels| stepped_groups(s, levels)
);

/// The steps of IQ4_NL (`kvalues_iq4nl` in ggml) and 128.
const STEPS: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

#[inline(always)]
fn stepped_groups<S: Simd>(s: S, levels: &[u8]) -> [S::Bytes; 8] {
    let mut groups = nibble_groups(s, levels);
    for group in &mut groups {
        *group = s.lookup(*group, &STEPS);
    }
    groups
}

/// `scale · (level − 128)`: the format's signed levels and 128.
pub(super) struct Q8_0;

impl Layout for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    const LEVELS: usize = 512;
    const SCALES: usize = HALVES;
    const OFFSET: i32 = 128;
    const MOST: i32 = 255;

    #[inline(always)]
    fn groups<S: Simd>(s: S, levels: &[u8]) -> [S::Bytes; 8] {
        let mut groups = [s.load_bytes(part(levels, 0)); 8];
        for (g, group) in groups.iter_mut().enumerate() {
            *group = s.load_bytes(part(levels, 64 * g));
        }
        groups
    }
    #[inline(always)]
    fn scale<S: Simd>(s: S, scales: &[u8], _block: usize) -> S::Floats {
        s.load_f16(part(scales, 0))
    }
    fn put_scales(unit: &[u8], row: usize, scales: &mut [u8]) {
        put_half(&unit[..2], row, scales);
    }
    fn put_levels(unit: &[u8], row: usize, levels: &mut [u8]) {
        for (g, four) in unit[2..].chunks_exact(4).enumerate() {
            let four = u32::from_le_bytes(*part(four, 0)) ^ 0x8080_8080;
            levels[64 * g + 4 * row..][..4].copy_from_slice(&four.to_le_bytes());
        }
    }
    fn take(row: usize, levels: &[u8], scales: &[u8], unit: &mut [u8]) {
        take_half(row, scales, &mut unit[..2]);
        for (g, four) in unit[2..].chunks_exact_mut(4).enumerate() {
            let levels = u32::from_le_bytes(*part(levels, 64 * g + 4 * row)) ^ 0x8080_8080;
            four.copy_from_slice(&levels.to_le_bytes());
        }
    }
}
