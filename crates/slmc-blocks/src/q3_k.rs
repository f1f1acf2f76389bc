//! Q3_K: 256 weights of 3 bits in 16 groups, each with a signed 6-bit scale.

use slmc_ir::Format;

use crate::{
    block::{BlockFormat, PackBlock, as_block, as_weights_mut, check_sizes, put_u16, u16_at},
    float::{is_scale_finite, scale_at},
    parts::Parts,
};

/// 32 bytes of third bits, 64 bytes of low bits, 12 bytes of group scales, f16 scale:
/// `weight = scale * (group_scale - 32) * (level - 4)`.
pub struct Q3K;

const _: () = check_sizes::<Q3K>();

impl BlockFormat for Q3K {
    const FORMAT: Format = Format::Q3K;
    const N_WEIGHTS: usize = 256;
    const N_BYTES: usize = 110;

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<110>(block), as_weights_mut::<256>(weights));
        let scale = scale_at(block, 108);
        for (group, run) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let group_scale = scale * group_scale(&block[96..108], group);
            let half = group % 2 * 16;
            let (first, shift) = (32 + group / 8 * 32 + half, group % 8 / 2 * 2);
            for (j, weight) in run.iter_mut().enumerate() {
                let low = i32::from(block[first + j] >> shift & 3);
                let third = i32::from(block[half + j] >> (group / 2) & 1);
                *weight = group_scale * (low + third * 4 - 4) as f32;
            }
        }
    }

    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 108)
    }
}

/// Scale of group `group`: four low bits in bytes 0-7 (first the low halves), two high bits in bytes 8-11.
#[inline(always)]
fn group_scale(packed: &[u8], group: usize) -> f32 {
    let low = packed[group % 8] >> (group / 8 * 4) & 15;
    let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
    (i32::from(low | high << 4) - 32) as f32
}

impl PackBlock for Q3K {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 108), ..Parts::default() };
        for (group, run) in parts.levels.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            parts.group_scales[group] = group_scale(&block[96..108], group) as i8;
            let half = group % 2 * 16;
            let (first, shift) = (32 + group / 8 * 32 + half, group % 8 / 2 * 2);
            for (j, level) in run.iter_mut().enumerate() {
                let third = block[half + j] >> (group / 2) & 1;
                *level = (block[first + j] >> shift & 3) | third << 2;
            }
        }
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        block.fill(0);
        put_u16(block, 108, parts.scale);
        for (group, run) in parts.levels.as_chunks::<16>().0.iter().enumerate() {
            let scale = parts.group_scales[group].wrapping_add(32) as u8;
            block[96 + group % 8] |= (scale & 15) << (group / 8 * 4);
            block[104 + group % 4] |= (scale >> 4 & 3) << (group / 4 * 2);
            let half = group % 2 * 16;
            let (first, shift) = (32 + group / 8 * 32 + half, group % 8 / 2 * 2);
            for (j, level) in run.iter().enumerate() {
                block[half + j] |= (level >> 2 & 1) << (group / 2);
                block[first + j] |= (level & 3) << shift;
            }
        }
    }
}
