//! Q4_0 and Q4_1: 32 weights of 4 bits. Byte `j` holds weight `j` low and weight `j + 16` high.

use slmc_ir::Format;

use crate::{
    block::{
        BlockFormat, EncodeBlock, PackBlock, as_block, as_block_mut, as_weights, as_weights_mut, check_sizes,
        join_halves, put_u16, split_halves, u16_at,
    },
    float::{f32_to_f16, is_scale_finite, scale_at},
    parts::Parts,
    range::{inverse, min_max, signed_max},
};

/// An f16 scale, then 16 bytes of levels: `weight = (level - 8) * scale`.
pub struct Q4_0;
/// An f16 scale, an f16 minimum, then 16 bytes of levels: `weight = level * scale + min`.
pub struct Q4_1;

const _: () = (check_sizes::<Q4_0>(), check_sizes::<Q4_1>()).0;

impl BlockFormat for Q4_0 {
    const FORMAT: Format = Format::Q4_0;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 18;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<18>(block), as_weights_mut::<32>(weights));
        let scale = scale_at(block, 0);
        for j in 0..16 {
            weights[j] = scale * (i32::from(block[2 + j] & 15) - 8) as f32;
            weights[j + 16] = scale * (i32::from(block[2 + j] >> 4) - 8) as f32;
        }
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

impl EncodeBlock for Q4_0 {
    /// The weight of largest magnitude becomes level 0, exactly -8 scales: the scale takes its sign.
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        let (weights, block) = (as_weights::<32>(weights), as_block_mut::<18>(block));
        let scale = signed_max(weights) / -8.0;
        let inverse = inverse(scale);
        block[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        pack(block, 2, |j| weights[j] * inverse + 8.5);
    }
}

impl BlockFormat for Q4_1 {
    const FORMAT: Format = Format::Q4_1;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 20;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<20>(block), as_weights_mut::<32>(weights));
        let (scale, min) = (scale_at(block, 0), scale_at(block, 2));
        for j in 0..16 {
            weights[j] = scale * i32::from(block[4 + j] & 15) as f32 + min;
            weights[j + 16] = scale * i32::from(block[4 + j] >> 4) as f32 + min;
        }
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0) && is_scale_finite(block, 2)
    }
}

impl EncodeBlock for Q4_1 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        let (weights, block) = (as_weights::<32>(weights), as_block_mut::<20>(block));
        let (min, max) = min_max(weights);
        let scale = (max - min) / 15.0;
        let inverse = inverse(scale);
        block[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f32_to_f16(min).to_le_bytes());
        pack(block, 4, |j| (weights[j] - min) * inverse + 0.5);
    }
}

/// Packs the whole parts of 32 numbers into 16 bytes from `at` on. Numbers are cut off at 15: a level of 16 comes
/// from rounding up the far end.
#[inline(always)]
fn pack<const N: usize>(block: &mut [u8; N], at: usize, number: impl Fn(usize) -> f32) {
    let mut levels = [0_i32; 32];
    for (j, level) in levels.iter_mut().enumerate() {
        *level = (number(j) as i32).clamp(0, 15);
    }
    for j in 0..16 {
        block[at + j] = (levels[j] | levels[j + 16] << 4) as u8;
    }
}

impl PackBlock for Q4_0 {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 0), ..Parts::default() };
        split_halves(&block[2..], &mut parts.levels);
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        put_u16(block, 0, parts.scale);
        join_halves(&parts.levels, &mut block[2..]);
    }
}

impl PackBlock for Q4_1 {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 0), min: u16_at(block, 2), ..Parts::default() };
        split_halves(&block[4..], &mut parts.levels);
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        put_u16(block, 0, parts.scale);
        put_u16(block, 2, parts.min);
        join_halves(&parts.levels, &mut block[4..]);
    }
}
