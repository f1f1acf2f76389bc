//! Q4_K and Q5_K: 256 weights of 4 or 5 bits in 8 groups, each with a 6-bit scale and a 6-bit minimum.

use slmc_ir::Format;

use crate::{
    block::{BlockFormat, PackBlock, as_block, as_weights_mut, check_sizes, put_u16, u16_at},
    float::{is_scale_finite, scale_at},
    k_scales::{put_scale_and_min, scale_and_min},
    parts::Parts,
};

/// f16 scale, f16 minimum, 12 bytes of group scales and minimums, 128 bytes of levels:
/// `weight = scale * group_scale * level - min * group_min`.
pub struct Q4K;
/// As [`Q4K`], with 32 bytes of fifth bits before the levels: bit `g` belongs to group `g`.
pub struct Q5K;

const _: () = (check_sizes::<Q4K>(), check_sizes::<Q5K>()).0;

impl BlockFormat for Q4K {
    const FORMAT: Format = Format::Q4K;
    const N_WEIGHTS: usize = 256;
    const N_BYTES: usize = 144;

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<144>(block), as_weights_mut::<256>(weights));
        let (scale, min) = (scale_at(block, 0), scale_at(block, 2));
        for (group, run) in weights.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (group_scale, group_min) = scale_and_min(&block[4..16], group);
            let (group_scale, group_min) = (scale * group_scale, min * group_min);
            // Two groups share a run of 32 bytes: the even one lies in the low halves.
            let (first, shift) = (16 + group / 2 * 32, group % 2 * 4);
            for (weight, byte) in run.iter_mut().zip(&block[first..first + 32]) {
                *weight = group_scale * f32::from(byte >> shift & 15) - group_min;
            }
        }
    }

    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0) && is_scale_finite(block, 2)
    }
}

impl BlockFormat for Q5K {
    const FORMAT: Format = Format::Q5K;
    const N_WEIGHTS: usize = 256;
    const N_BYTES: usize = 176;

    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<176>(block), as_weights_mut::<256>(weights));
        let (scale, min) = (scale_at(block, 0), scale_at(block, 2));
        for (group, run) in weights.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (group_scale, group_min) = scale_and_min(&block[4..16], group);
            let (group_scale, group_min) = (scale * group_scale, min * group_min);
            let (first, shift) = (48 + group / 2 * 32, group % 2 * 4);
            let bytes = block[first..first + 32].iter().zip(&block[16..48]);
            for (weight, (byte, fifth)) in run.iter_mut().zip(bytes) {
                let level = (byte >> shift & 15) | (fifth >> group & 1) << 4;
                *weight = group_scale * f32::from(level) - group_min;
            }
        }
    }

    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0) && is_scale_finite(block, 2)
    }
}

impl PackBlock for Q4K {
    fn unpack(block: &[u8]) -> Parts {
        unpack(block, 16, None)
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        pack(parts, block, 16);
    }
}

impl PackBlock for Q5K {
    fn unpack(block: &[u8]) -> Parts {
        unpack(block, 48, Some(&block[16..48]))
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        pack(parts, block, 48);
        for (group, run) in parts.levels.as_chunks::<32>().0.iter().enumerate() {
            for (level, fifth) in run.iter().zip(&mut block[16..48]) {
                *fifth |= (level >> 4 & 1) << group;
            }
        }
    }
}

/// All parts, the low halves of the levels beginning at byte `at`.
fn unpack(block: &[u8], at: usize, fifth_bits: Option<&[u8]>) -> Parts {
    let mut parts = Parts { scale: u16_at(block, 0), min: u16_at(block, 2), ..Parts::default() };
    for (group, run) in parts.levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        (parts.group_scales[group], parts.group_mins[group]) = (scale as i8, min as u8);
        let (first, shift) = (at + group / 2 * 32, group % 2 * 4);
        for (j, level) in run.iter_mut().enumerate() {
            let fifth = fifth_bits.map_or(0, |bits| bits[j] >> group & 1);
            *level = (block[first + j] >> shift & 15) | fifth << 4;
        }
    }
    parts
}

/// All parts but fifth bits.
fn pack(parts: &Parts, block: &mut [u8], at: usize) {
    block.fill(0);
    put_u16(block, 0, parts.scale);
    put_u16(block, 2, parts.min);
    for (group, run) in parts.levels.as_chunks::<32>().0.iter().enumerate() {
        put_scale_and_min(&mut block[4..16], group, parts.group_scales[group] as u8, parts.group_mins[group]);
        let (first, shift) = (at + group / 2 * 32, group % 2 * 4);
        for (level, byte) in run.iter().zip(&mut block[first..first + 32]) {
            *byte |= (level & 15) << shift;
        }
    }
}
