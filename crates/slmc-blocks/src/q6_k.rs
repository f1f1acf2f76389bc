//! Q6_K: 256 weights of 6 bits in 16 groups, each with a signed 8-bit scale.

use slmc_ir::Format;

use crate::{
    block::{BlockFormat, PackBlock, as_block, as_weights_mut, check_sizes, put_u16, u16_at},
    float::{is_scale_finite, scale_at},
    parts::Parts,
};

/// 128 bytes of low halves, 64 bytes of high pairs, 16 group scales, f16 scale:
/// `weight = scale * group_scale * (level - 32)`.
pub struct Q6K;

const _: () = check_sizes::<Q6K>();

impl BlockFormat for Q6K {
    const FORMAT: Format = Format::Q6K;
    const N_WEIGHTS: usize = 256;
    const N_BYTES: usize = 210;

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<210>(block), as_weights_mut::<256>(weights));
        let scale = scale_at(block, 208);
        for (group, run) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let group_scale = scale * f32::from(block[192 + group] as i8);
            let (low_first, low_shift, high_first, high_shift) = places(group);
            let low = &block[low_first..low_first + 16];
            let high = &block[high_first..high_first + 16];
            for ((weight, low), high) in run.iter_mut().zip(low).zip(high) {
                let level = (low >> low_shift & 15) | (high >> high_shift & 3) << 4;
                *weight = group_scale * (i32::from(level) - 32) as f32;
            }
        }
    }

    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 208)
    }
}

impl PackBlock for Q6K {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 208), ..Parts::default() };
        for (group, run) in parts.levels.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            parts.group_scales[group] = block[192 + group] as i8;
            let (low_first, low_shift, high_first, high_shift) = places(group);
            for (j, level) in run.iter_mut().enumerate() {
                *level =
                    (block[low_first + j] >> low_shift & 15) | (block[high_first + j] >> high_shift & 3) << 4;
            }
        }
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        block.fill(0);
        put_u16(block, 208, parts.scale);
        for (group, run) in parts.levels.as_chunks::<16>().0.iter().enumerate() {
            block[192 + group] = parts.group_scales[group] as u8;
            let (low_first, low_shift, high_first, high_shift) = places(group);
            for (j, level) in run.iter().enumerate() {
                block[low_first + j] |= (level & 15) << low_shift;
                block[high_first + j] |= (level >> 4 & 3) << high_shift;
            }
        }
    }
}

/// Where a group's levels lie: first byte and shift of the low halves, then of the high pairs. Each half of the
/// block has 64 bytes with 64 weights low, then 64 high, and 32 bytes of pairs, lowest first.
#[inline(always)]
fn places(group: usize) -> (usize, usize, usize, usize) {
    let (half, within) = (group / 8, group % 8);
    (half * 64 + within % 4 * 16, within / 4 * 4, 128 + half * 32 + within % 2 * 16, within / 2 * 2)
}
