//! IQ4_NL and IQ4_XS: 4-bit levels that index a table of uneven steps, dense around zero.

use slmc_ir::Format;

use crate::{
    block::{
        BlockFormat, PackBlock, as_block, as_weights_mut, check_sizes, join_halves, put_u16, split_halves,
        u16_at,
    },
    float::{is_scale_finite, scale_at},
    parts::Parts,
    steps::{Steps, Uneven},
};

/// The steps.
const STEPS: &[f32] = Uneven::TABLE;

/// 32 weights: an f16 scale, then 16 bytes laid out as in Q4_0: `weight = scale * step[level]`.
pub struct Iq4Nl;
/// 256 weights in 8 groups: f16 scale, 8 high pairs and 8 low halves of the 6-bit group scales, 128 bytes of levels:
/// `weight = scale * (group_scale - 32) * step[level]`.
pub struct Iq4Xs;

const _: () = (check_sizes::<Iq4Nl>(), check_sizes::<Iq4Xs>()).0;

impl BlockFormat for Iq4Nl {
    const FORMAT: Format = Format::Iq4Nl;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 18;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<18>(block), as_weights_mut::<32>(weights));
        decode_group(scale_at(block, 0), as_block(&block[2..]), weights);
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

impl BlockFormat for Iq4Xs {
    const FORMAT: Format = Format::Iq4Xs;
    const N_WEIGHTS: usize = 256;
    const N_BYTES: usize = 136;

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<136>(block), as_weights_mut::<256>(weights));
        let scale = scale_at(block, 0);
        let high_pairs = u16::from_le_bytes([block[2], block[3]]);
        for (group, run) in weights.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = i32::from(block[4 + group / 2] >> (group % 2 * 4) & 15);
            let high = i32::from(high_pairs >> (group * 2) & 3);
            let group_scale = scale * ((low | high << 4) - 32) as f32;
            let first = 8 + group * 16;
            decode_group(group_scale, as_block(&block[first..first + 16]), run);
        }
    }

    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

#[inline(always)]
fn decode_group(scale: f32, levels: &[u8; 16], weights: &mut [f32; 32]) {
    for j in 0..16 {
        weights[j] = scale * STEPS[usize::from(levels[j] & 15)];
        weights[j + 16] = scale * STEPS[usize::from(levels[j] >> 4)];
    }
}

impl PackBlock for Iq4Nl {
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

impl PackBlock for Iq4Xs {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 0), ..Parts::default() };
        let high_pairs = u16_at(block, 2);
        for (group, run) in parts.levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
            let high = (high_pairs >> (group * 2) & 3) as u8;
            parts.group_scales[group] = (low | high << 4) as i8 - 32;
            split_halves(&block[8 + group * 16..], run);
        }
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        block.fill(0);
        put_u16(block, 0, parts.scale);
        let mut high_pairs = 0;
        for (group, run) in parts.levels.as_chunks::<32>().0.iter().enumerate() {
            let scale = parts.group_scales[group].wrapping_add(32) as u8;
            block[4 + group / 2] |= (scale & 15) << (group % 2 * 4);
            high_pairs |= u16::from(scale >> 4 & 3) << (group * 2);
            join_halves(run, &mut block[8 + group * 16..]);
        }
        put_u16(block, 2, high_pairs);
    }
}
