//! Q8_0: 32 weights of 8 bits.

use slmc_ir::Format;

use crate::{
    block::{
        BlockFormat, EncodeBlock, PackBlock, as_block, as_block_mut, as_weights, as_weights_mut, check_sizes,
        put_u16, u16_at,
    },
    float::{f32_to_f16, is_scale_finite, scale_at},
    parts::Parts,
    range::{abs_max, inverse},
};

/// An f16 scale, then 32 signed levels: `weight = level * scale`.
pub struct Q8_0;

const _: () = check_sizes::<Q8_0>();

impl BlockFormat for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    const N_WEIGHTS: usize = 32;
    const N_BYTES: usize = 34;

    #[inline(always)]
    fn decode(block: &[u8], weights: &mut [f32]) {
        let (block, weights) = (as_block::<34>(block), as_weights_mut::<32>(weights));
        let scale = scale_at(block, 0);
        for j in 0..32 {
            weights[j] = i32::from(block[2 + j] as i8) as f32 * scale;
        }
    }

    #[inline(always)]
    fn is_surely_finite(block: &[u8]) -> bool {
        is_scale_finite(block, 0)
    }
}

impl EncodeBlock for Q8_0 {
    #[inline(always)]
    fn encode(weights: &[f32], block: &mut [u8]) {
        let (weights, block) = (as_weights::<32>(weights), as_block_mut::<34>(block));
        let scale = abs_max(weights) / 127.0;
        let inverse = inverse(scale);
        block[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        for j in 0..32 {
            block[2 + j] = round(weights[j] * inverse) as u8;
        }
    }
}

/// Rounds to nearest, halves away from zero, as C's `roundf`; written out because a call per weight is slow
/// where the CPU's own rounding may not be assumed.
#[inline(always)]
fn round(number: f32) -> i32 {
    let magnitude = if number.abs() < 127.0 { number.abs() } else { 127.0 };
    let whole = magnitude as i32;
    let level = whole + i32::from(magnitude - whole as f32 >= 0.5);
    if number < 0.0 { -level } else { level }
}

impl PackBlock for Q8_0 {
    fn unpack(block: &[u8]) -> Parts {
        let mut parts = Parts { scale: u16_at(block, 0), ..Parts::default() };
        for (level, byte) in parts.levels.iter_mut().zip(&block[2..34]) {
            // Signed bytes, counted from -128 on.
            *level = byte ^ 0x80;
        }
        parts
    }

    fn pack(parts: &Parts, block: &mut [u8]) {
        put_u16(block, 0, parts.scale);
        for (level, byte) in parts.levels.iter().zip(&mut block[2..34]) {
            *byte = level ^ 0x80;
        }
    }
}
