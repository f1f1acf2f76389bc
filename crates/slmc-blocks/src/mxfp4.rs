//! MXFP4: 32 four-bit floats under a shared power of two (OCP Microscaling Formats 1.0, section 5.2), in ggml's
//! byte order.

use slmc_ir::Format;

use crate::{
    block::{BlockFormat, PackBlock, as_block, as_weights_mut, check_sizes, join_halves, split_halves},
    parts::Parts,
    steps::{E2m1, Steps},
};

/// The steps.
const STEPS: &[f32] = E2m1::TABLE;

/// A biased exponent, then 16 bytes laid out as in Q4_0: `weight = 2^(exponent - 127) * e2m1[level]`.
///
/// The exponent 255, NaN in the standard, is 2^128 here as in ggml.
pub struct Mxfp4;

const _: () = check_sizes::<Mxfp4>();

impl BlockFormat for Mxfp4 {
    const FORMAT: Format = Format::Mxfp4;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 17;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<17>(block), as_weights_mut::<32>(weights));
        let scale = half_power(block[0]);
        for j in 0..16 {
            weights[j] = scale * STEPS[usize::from(block[1 + j] & 15)];
            weights[j + 16] = scale * STEPS[usize::from(block[1 + j] >> 4)];
        }
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        // 12 * 2^(252 - 128) is the largest product below 2^128.
        block[0] <= 252
    }
}

/// `2^(exponent - 128)`: half the shared scale, because the steps are doubled. The two smallest are subnormal.
#[inline(always)]
pub(crate) fn half_power(exponent: u8) -> f32 {
    let exponent = u32::from(exponent);
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 })
}

impl PackBlock for Mxfp4 {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: block[0].into(), ..Parts::default() };
        split_halves(&block[1..], &mut parts.levels);
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        block[0] = parts.scale as u8;
        join_halves(&parts.levels, &mut block[1..]);
    }
}
