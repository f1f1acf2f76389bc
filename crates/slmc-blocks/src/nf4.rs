//! NF4: 4-bit levels that index the quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, section 3). No file holds it:
//! it is a form of frozen weights in memory.

use slmc_ir::Format;

use crate::{
    block::{
        BlockFormat, EncodeBlock, PackBlock, as_block, as_weights, as_weights_mut, check_sizes, join_halves,
        put_u16, split_halves, u16_at,
    },
    float::{f32_to_f16, is_scale_finite, scale_at},
    parts::Parts,
    range::{abs_max, inverse},
    steps::{NormalFloat, Steps},
};

/// The steps.
const STEPS: &[f32] = NormalFloat::TABLE;

/// 64 weights: an f16 scale, the block's largest magnitude where nothing better is searched for, then 32 bytes, two runs of 16
/// laid out as in Q4_0: `weight = scale * step[level]`.
pub struct Nf4;

const _: () = check_sizes::<Nf4>();

impl BlockFormat for Nf4 {
    const FORMAT: Format = Format::Nf4;
    const N_WEIGHTS: usize = 64;
    const N_BYTES: usize = 34;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<34>(block), as_weights_mut::<64>(weights));
        let scale = scale_at(block, 0);
        for run in 0..2 {
            for j in 0..16 {
                let levels = block[2 + 16 * run + j];
                weights[32 * run + j] = scale * STEPS[usize::from(levels & 15)];
                weights[32 * run + j + 16] = scale * STEPS[usize::from(levels >> 4)];
            }
        }
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

impl EncodeBlock for Nf4 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        let scale = abs_max::<64>(as_weights(weights));
        let inverse = inverse(scale);
        let mut parts = Parts { scale: f32_to_f16(scale), ..Parts::default() };
        for (level, weight) in parts.levels.iter_mut().zip(weights) {
            *level = NormalFloat::level(weight * inverse);
        }
        Self::pack(&parts, block);
    }
}

impl PackBlock for Nf4 {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 0), ..Parts::default() };
        split_halves(&block[2..18], &mut parts.levels[..32]);
        split_halves(&block[18..], &mut parts.levels[32..]);
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        put_u16(block, 0, parts.scale);
        join_halves(&parts.levels[..32], &mut block[2..18]);
        join_halves(&parts.levels[32..64], &mut block[18..]);
    }
}
