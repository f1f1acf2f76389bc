//! Q5_0 and Q5_1: 32 weights of 5 bits. The low four lie as in Q4; bit `i` of a little-endian u32 is the fifth
//! bit of weight `i`.

use slmc_ir::Format;

use crate::{
    block::{
        BlockFormat, EncodeBlock, PackBlock, as_block, as_block_mut, as_weights, as_weights_mut, check_sizes,
        put_u16, u16_at,
    },
    float::{f32_to_f16, is_scale_finite, scale_at},
    parts::{MAX_BLOCK, Parts},
    range::{inverse, min_max, signed_max},
};

/// An f16 scale, the fifth bits, then 16 bytes of low bits: `weight = (level - 16) * scale`.
pub struct Q5_0;
/// An f16 scale, an f16 minimum, the fifth bits, 16 bytes of low bits: `weight = level * scale + min`.
pub struct Q5_1;

const _: () = (check_sizes::<Q5_0>(), check_sizes::<Q5_1>()).0;

impl BlockFormat for Q5_0 {
    const FORMAT: Format = Format::Q5_0;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 22;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<22>(block), as_weights_mut::<32>(weights));
        let scale = scale_at(block, 0);
        for (weight, level) in weights.iter_mut().zip(unpack(block, 2)) {
            *weight = scale * (level - 16) as f32;
        }
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

impl EncodeBlock for Q5_0 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        let (weights, block) = (as_weights::<32>(weights), as_block_mut::<22>(block));
        let scale = signed_max(weights) / -16.0;
        let inverse = inverse(scale);
        block[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        pack(block, 2, |j| weights[j] * inverse + 16.5);
    }
}

impl BlockFormat for Q5_1 {
    const FORMAT: Format = Format::Q5_1;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 24;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<24>(block), as_weights_mut::<32>(weights));
        let (scale, min) = (scale_at(block, 0), scale_at(block, 2));
        for (weight, level) in weights.iter_mut().zip(unpack(block, 4)) {
            *weight = scale * level as f32 + min;
        }
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0) && is_scale_finite(block, 2)
    }
}

impl EncodeBlock for Q5_1 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        let (weights, block) = (as_weights::<32>(weights), as_block_mut::<24>(block));
        let (min, max) = min_max(weights);
        let scale = (max - min) / 31.0;
        let inverse = inverse(scale);
        block[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f32_to_f16(min).to_le_bytes());
        pack(block, 4, |j| (weights[j] - min) * inverse + 0.5);
    }
}

/// The 32 levels whose fifth bits begin at byte `at`.
#[inline(always)]
fn unpack<const N: usize>(block: &[u8; N], at: usize) -> [i32; 32] {
    let fifth = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let mut levels = [0; 32];
    for j in 0..16 {
        let byte = i32::from(block[at + 4 + j]);
        levels[j] = (byte & 15) | ((fifth >> j & 1) << 4) as i32;
        levels[j + 16] = (byte >> 4) | ((fifth >> (j + 16) & 1) << 4) as i32;
    }
    levels
}

/// Packs the whole parts of 32 numbers, fifth bits at byte `at`. Numbers are cut off at 31.
#[inline(always)]
fn pack<const N: usize>(block: &mut [u8; N], at: usize, number: impl Fn(usize) -> f32) {
    let mut levels = [0_i32; 32];
    for (j, level) in levels.iter_mut().enumerate() {
        *level = (number(j) as i32).clamp(0, 31);
    }
    let fifth = levels.iter().enumerate().fold(0_u32, |bits, (j, &level)| bits | ((level as u32 >> 4) << j));
    block[at..at + 4].copy_from_slice(&fifth.to_le_bytes());
    for j in 0..16 {
        block[at + 4 + j] = ((levels[j] & 15) | (levels[j + 16] & 15) << 4) as u8;
    }
}

impl PackBlock for Q5_0 {
    fn unpack(block: &[u8]) -> Parts {
        let scale = u16_at(block, 0);
        Parts { scale, levels: levels_at(as_block::<22>(block), 2), ..Parts::default() }
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        put_u16(block, 0, parts.scale);
        pack(as_block_mut::<22>(block), 2, |j| f32::from(parts.levels[j]));
    }
}

impl PackBlock for Q5_1 {
    fn unpack(block: &[u8]) -> Parts {
        let (scale, min) = (u16_at(block, 0), u16_at(block, 2));
        Parts { scale, min, levels: levels_at(as_block::<24>(block), 4), ..Parts::default() }
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        put_u16(block, 0, parts.scale);
        put_u16(block, 2, parts.min);
        pack(as_block_mut::<24>(block), 4, |j| f32::from(parts.levels[j]));
    }
}

/// As [`unpack`], in the parts' order.
fn levels_at<const N: usize>(block: &[u8; N], at: usize) -> [u8; MAX_BLOCK] {
    let mut levels = [0; MAX_BLOCK];
    for (level, unpacked) in levels.iter_mut().zip(unpack(block, at)) {
        *level = unpacked as u8;
    }
    levels
}
