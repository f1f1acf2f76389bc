//! The products as their definition says, number by number: what the kernels are tested against.
//!
//! It reads the weight's own bytes, and shares no code with the kernels.

use slmc_blocks::{BlockError, decode_weight, f16_to_f32};
use slmc_ir::{Format, Weight};

/// Columns of a block of int8 activations.
const BLOCK: usize = 32;

/// `out[token][row]` with float activations: one chain of fused multiply-adds over the columns.
///
/// # Errors
/// As decoding the weight.
///
/// # Panics
/// When `x` is not whole rows of the weight's columns.
pub fn product_float(weight: &Weight, x: &[f32]) -> Result<Vec<f32>, BlockError> {
    let weights = decode_weight(weight)?;
    let n_columns = weight.n_columns();
    assert!(x.len().is_multiple_of(n_columns), "whole rows of activations");
    let chain = |x: &[f32], row: &[f32]| row.iter().zip(x).fold(0.0_f32, |sum, (w, x)| w.mul_add(*x, sum));
    let outputs = |x| weights.chunks_exact(n_columns).map(move |row| chain(x, row));
    Ok(x.chunks_exact(n_columns).flat_map(outputs).collect())
}

/// A row's blocks of 32, each as 32 integers of magnitude up to 127 and a scale: `scale = max |x| / 127`, rounded to
/// the nearest integer, ties to even.
pub fn quantize(row: &[f32]) -> Vec<([i32; BLOCK], f32)> {
    let block = |x: &[f32]| {
        let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let mut quants = [0; BLOCK];
        if largest < 1e-30 {
            return (quants, 0.0);
        }
        for (q, x) in quants.iter_mut().zip(x) {
            *q = (x * (127.0 / largest)).round_ties_even() as i32;
        }
        (quants, largest / 127.0)
    };
    row.chunks(BLOCK).map(block).collect()
}

/// One row's weights of 32 columns: `scale · Σ half_scale · level + min`, with signed levels.
struct Block {
    levels: [i32; BLOCK],
    half_scales: [i32; 2],
    scale: f32,
    min: Option<f32>,
}

/// `out[token][row]` with int8 activations; nothing for formats that are not levels with scales.
///
/// For each block of 32 columns, in order: the exact integer `dot`, then `out = fma(dot, weight_scale · x_scale,
/// out)`, and with a minimum `out = fma(min, x_scale · Σ q, out)`.
///
/// # Panics
/// When `x` is not whole rows of the weight's columns.
pub fn product_int8(weight: &Weight, x: &[f32]) -> Option<Vec<f32>> {
    let n_columns = weight.n_columns();
    assert!(x.len().is_multiple_of(n_columns), "whole rows of activations");
    let unit_bytes = weight.format().block_bytes();
    let blocks: Option<Vec<Vec<Block>>> =
        weight.bytes().chunks_exact(unit_bytes).map(|unit| blocks(weight.format(), unit)).collect();
    let blocks: Vec<Block> = blocks?.into_iter().flatten().collect();
    let mut out = Vec::new();
    for x in x.chunks_exact(n_columns) {
        let x = quantize(x);
        for row in blocks.chunks_exact(n_columns / BLOCK) {
            out.push(row.iter().zip(&x).fold(0.0, |sum, (block, (q, scale))| block.add(sum, q, *scale)));
        }
    }
    Some(out)
}

impl Block {
    fn add(&self, sum: f32, q: &[i32; BLOCK], x_scale: f32) -> f32 {
        let half = |half: usize| {
            let columns = 16 * half..16 * half + 16;
            let products = self.levels[columns.clone()].iter().zip(&q[columns]).map(|(a, b)| a * b);
            products.sum::<i32>() * self.half_scales[half]
        };
        let dot = half(0) + half(1);
        let sum = (dot as f32).mul_add(self.scale * x_scale, sum);
        match self.min {
            Some(min) => min.mul_add(x_scale * q.iter().sum::<i32>() as f32, sum),
            None => sum,
        }
    }
}

fn f16(unit: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([unit[at], unit[at + 1]]))
}

/// Level `i` of 16 bytes that hold the first sixteen in their low halves.
fn nibble(bytes: &[u8], i: usize) -> i32 {
    i32::from(bytes[i % 16] >> (4 * (i / 16)) & 15)
}

fn blocks(format: Format, unit: &[u8]) -> Option<Vec<Block>> {
    const STEPS: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let fifth = |at: usize, i: usize| i32::from(unit[at + i / 8] >> (i % 8) & 1) << 4;
    let one = |min: Option<f32>, level: &dyn Fn(usize) -> i32| {
        vec![Block { levels: std::array::from_fn(level), half_scales: [1; 2], scale: f16(unit, 0), min }]
    };
    Some(match format {
        Format::Q4_0 => one(None, &|i| nibble(&unit[2..], i) - 8),
        Format::Q4_1 => one(Some(f16(unit, 2)), &|i| nibble(&unit[4..], i)),
        Format::Q5_0 => one(None, &|i| nibble(&unit[6..], i) + fifth(2, i) - 16),
        Format::Q5_1 => one(Some(f16(unit, 2)), &|i| nibble(&unit[8..], i) + fifth(4, i)),
        Format::Q8_0 => one(None, &|i| i32::from(unit[2 + i].cast_signed())),
        Format::Iq4Nl => one(None, &|i| STEPS[nibble(&unit[2..], i) as usize]),
        Format::Q4K | Format::Q5K => (0..8).map(|group| k_block(format, unit, group)).collect(),
        Format::Q6K => (0..8).map(|group| q6_block(unit, group)).collect(),
        _ => return None,
    })
}

/// Group `group` of Q4_K or Q5_K.
fn k_block(format: Format, unit: &[u8], group: usize) -> Block {
    let packed = |i: usize| i32::from(unit[4 + i]);
    let (scale, min) = if group < 4 {
        (packed(group) % 64, packed(group + 4) % 64)
    } else {
        let tops = [packed(group - 4) / 64, packed(group) / 64];
        (packed(group + 4) % 16 + 16 * tops[0], packed(group + 4) / 16 + 16 * tops[1])
    };
    let fifth = |i: usize| if format == Format::Q5K { i32::from(unit[16 + i] >> group & 1) } else { 0 };
    let runs = if format == Format::Q5K { 48 } else { 16 };
    let low = |i: usize| i32::from(unit[runs + 32 * (group / 2) + i] >> (4 * (group % 2)) & 15);
    Block {
        levels: std::array::from_fn(|i| low(i) + 16 * fifth(i)),
        half_scales: [1; 2],
        scale: f16(unit, 0) * scale as f32,
        min: Some(-(f16(unit, 2) * min as f32)),
    }
}

/// Group `group` of Q6_K.
fn q6_block(unit: &[u8], group: usize) -> Block {
    let (half, k) = (group / 4, group % 4);
    let low = |i: usize| i32::from(unit[64 * half + 32 * (k % 2) + i] >> (4 * (k / 2)) & 15);
    let high = |i: usize| i32::from(unit[128 + 32 * half + i] >> (2 * k) & 3);
    Block {
        levels: std::array::from_fn(|i| low(i) + 16 * high(i) - 32),
        half_scales: [0, 1].map(|h| i32::from(unit[192 + 2 * group + h].cast_signed())),
        scale: f16(unit, 208),
        min: None,
    }
}
