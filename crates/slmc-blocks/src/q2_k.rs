//! Q2_K: 256 weights of 2 bits in 16 groups, each with a 4-bit scale and a 4-bit minimum.

use slmc_ir::Format;

use crate::{
    block::{BlockFormat, PackBlock, as_block, as_weights_mut, check_sizes, put_u16, u16_at},
    float::{is_scale_finite, scale_at},
    parts::Parts,
};

/// 16 bytes of group scales (low) and minimums (high), 64 bytes of levels, f16 scale, f16 minimum:
/// `weight = scale * group_scale * level - min * group_min`.
pub struct Q2K;

const _: () = check_sizes::<Q2K>();

impl BlockFormat for Q2K {
    const FORMAT: Format = Format::Q2K;
    const N_WEIGHTS: usize = 256;
    const N_BYTES: usize = 84;

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<84>(block), as_weights_mut::<256>(weights));
        let (scale, min) = (scale_at(block, 80), scale_at(block, 82));
        for (group, run) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let group_scale = scale * f32::from(block[group] & 15);
            let group_min = min * f32::from(block[group] >> 4);
            // A run of 32 bytes holds 128 weights: the first 32 in the lowest bits, and so on.
            let (first, shift) = (16 + group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
            for (weight, byte) in run.iter_mut().zip(&block[first..first + 16]) {
                *weight = group_scale * f32::from(byte >> shift & 3) - group_min;
            }
        }
    }

    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 80) && is_scale_finite(block, 82)
    }
}

impl PackBlock for Q2K {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 80), min: u16_at(block, 82), ..Parts::default() };
        for (group, run) in parts.levels.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            parts.group_scales[group] = (block[group] & 15) as i8;
            parts.group_mins[group] = block[group] >> 4;
            let (first, shift) = (16 + group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
            for (level, byte) in run.iter_mut().zip(&block[first..first + 16]) {
                *level = byte >> shift & 3;
            }
        }
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        block.fill(0);
        put_u16(block, 80, parts.scale);
        put_u16(block, 82, parts.min);
        for (group, run) in parts.levels.as_chunks::<16>().0.iter().enumerate() {
            block[group] = (parts.group_scales[group] as u8 & 15) | parts.group_mins[group] << 4;
            let (first, shift) = (16 + group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
            for (level, byte) in run.iter().zip(&mut block[first..first + 16]) {
                *byte |= (level & 3) << shift;
            }
        }
    }
}
