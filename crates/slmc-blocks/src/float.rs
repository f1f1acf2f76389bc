//! Plain floats: f32, f16 and bf16, little-endian.
//!
//! The conversions are bit arithmetic without branches, so loops over them become SIMD on every target and
//! give the same bits on every target: hardware instructions differ in what they do to NaN payloads.

use slmc_ir::Format;

use crate::block::{BlockFormat, EncodeBlock};

/// Exponent bits of an f16.
const F16_EXPONENT: u32 = 0x7c00;
/// The f16 exponent bias (15) to the f32 one (127), in place.
const REBIAS: u32 = (127 - 15) << 23;

/// The number that an f16's bits stand for; exact. A NaN stays a NaN with the same payload.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let normal = magnitude + REBIAS;
    // Infinity and NaN have the largest exponent: lift it to f32's largest.
    let special = normal + REBIAS;
    // A subnormal is a mantissa under exponent -14: give it a leading one, then take that one away.
    let subnormal =
        (f32::from_bits(magnitude + REBIAS + (1 << 23)) - f32::from_bits(REBIAS + (1 << 23))).to_bits();
    let exponent = magnitude & (F16_EXPONENT << 13);
    let finite = if exponent == 0 { subnormal } else { normal };
    f32::from_bits(sign | if exponent == F16_EXPONENT << 13 { special } else { finite })
}

/// The f16 nearest to a number, ties to even; beyond 65520 infinity. A NaN becomes a quiet NaN.
#[inline(always)]
pub fn f32_to_f16(number: f32) -> u16 {
    let bits = number.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Adding just under half a step, and one more for odd results, rounds to nearest even; a carry moves on
    // into the exponent, up to infinity.
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(0xfff + odd) >> 13;
    // The float adder rounds subnormals: 0.5 has their step as its last bit.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let is_nan = magnitude > 0x7f80_0000;
    let special = if is_nan { 0x7e00 | ((magnitude >> 13) & 0x1ff) } else { 0x7c00 };
    let finite = if magnitude < REBIAS + (1 << 23) { subnormal } else { normal };
    (sign | if magnitude >= REBIAS + (31 << 23) { special } else { finite }) as u16
}

/// The number that a bf16's bits stand for: the upper half of an f32.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bf16 nearest to a number, ties to even. A NaN becomes a quiet NaN.
#[inline(always)]
pub fn f32_to_bf16(number: f32) -> u16 {
    let bits = number.to_bits();
    let odd = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + odd) >> 16;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if is_nan { (bits >> 16) | 0x40 } else { rounded }) as u16
}

/// An f16 scale inside a block.
#[inline(always)]
pub(crate) fn scale_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Whether an f16 scale inside a block is finite.
#[inline(always)]
pub(crate) fn is_scale_finite(block: &[u8], at: usize) -> bool {
    // The exponent lies in the upper byte.
    block[at + 1] & 0x7c != 0x7c
}

/// f32, little-endian.
pub(crate) struct F32;
/// IEEE half precision, little-endian.
pub(crate) struct F16;
/// The upper half of an f32, little-endian.
pub(crate) struct Bf16;

impl BlockFormat for F32 {
    const FORMAT: Format = Format::F32;
    const N_WEIGHTS: usize = 1;
    const N_BYTES: usize = 4;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }
    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        u32::from_le_bytes([block[0], block[1], block[2], block[3]]) & 0x7f80_0000 != 0x7f80_0000
    }
}

impl EncodeBlock for F32 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&weights[0].to_le_bytes());
    }
}

impl BlockFormat for F16 {
    const FORMAT: Format = Format::F16;
    const N_WEIGHTS: usize = 1;
    const N_BYTES: usize = 2;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    }
    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        u16::from_le_bytes([block[0], block[1]]) & 0x7c00 != 0x7c00
    }
}

impl EncodeBlock for F16 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&f32_to_f16(weights[0]).to_le_bytes());
    }
}

impl BlockFormat for Bf16 {
    const FORMAT: Format = Format::Bf16;
    const N_WEIGHTS: usize = 1;
    const N_BYTES: usize = 2;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        weights[0] = bf16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    }
    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        u16::from_le_bytes([block[0], block[1]]) & 0x7f80 != 0x7f80
    }
}

impl EncodeBlock for Bf16 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&f32_to_bf16(weights[0]).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal bits, or both NaN.
    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_half_widens_as_in_the_half_crate() {
        for bits in 0..=u16::MAX {
            assert!(same(f16_to_f32(bits), half::f16::from_bits(bits).to_f32()), "f16 {bits:#06x}");
            assert!(same(bf16_to_f32(bits), half::bf16::from_bits(bits).to_f32()), "bf16 {bits:#06x}");
        }
    }

    #[test]
    fn numbers_narrow_as_in_the_half_crate() {
        // Every f16 and bf16 boundary: each value, its midpoints' neighbours, then a stride through all bits.
        let near_halves = (0..=u16::MAX).flat_map(|h| {
            let bits = f16_to_f32(h).to_bits();
            [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff].map(|step| bits.wrapping_add(step))
        });
        let near_bfloats =
            (0..=u16::MAX).flat_map(|h| [0, 0x7fff, 0x8000, 0x8001].map(|low| (u32::from(h) << 16) | low));
        let stride = (0..=u32::MAX).step_by(4099);
        for number in near_halves.chain(near_bfloats).chain(stride).map(f32::from_bits) {
            let (f16, bf16) = (half::f16::from_f32(number), half::bf16::from_f32(number));
            if number.is_nan() {
                assert!(f16_to_f32(f32_to_f16(number)).is_nan());
                assert!(bf16_to_f32(f32_to_bf16(number)).is_nan());
            } else {
                assert_eq!(f32_to_f16(number), f16.to_bits(), "f16 of {number:e}");
                assert_eq!(f32_to_bf16(number), bf16.to_bits(), "bf16 of {number:e}");
            }
        }
    }
}
