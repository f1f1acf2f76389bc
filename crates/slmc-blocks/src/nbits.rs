//! Packed blocks as onnxruntime's MatMulNBits takes them: unsigned levels, scales and zero points each by themselves
//! (onnxruntime, `docs/ContribOperators.md`), and as ONNX's DequantizeLinear does (opset 21, blocked).
//!
//! Levels and scales are the blocks' own; nothing is rounded.

use slmc_ir::{Format, Weight};

use crate::float::scale_at;

/// Weights that share a scale, in every format that passes.
const BLOCK: usize = 32;

/// A matrix `[rows, columns]`: `weight = (level - zero_point) * scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct NBits {
    /// 4 or 8.
    pub bits: usize,
    /// Output features.
    pub n_rows: usize,
    /// Input features, whole blocks of 32.
    pub n_columns: usize,
    /// Levels in row order, `[rows, columns / 32, 32 * bits / 8]` bytes: two levels of 4 bits in a byte, the first low.
    pub levels: Vec<u8>,
    /// One a block, `[rows, columns / 32]`; may be negative.
    pub scales: Vec<f32>,
    /// One a block where the format has minima; otherwise 8 or 128 everywhere, by [`NBits::midpoint`].
    pub zero_points: Option<Vec<f32>>,
}

/// Whether [`NBits::of`] takes the format.
pub const fn has_nbits(format: Format) -> bool {
    matches!(format, Format::Q4_0 | Format::Q4_1 | Format::Q8_0)
}

impl NBits {
    /// Takes a packed matrix apart; `None` when [`has_nbits`] says no of its format.
    pub fn of(weight: &Weight) -> Option<Self> {
        let format = weight.format();
        if !has_nbits(format) {
            return None;
        }
        let n_blocks = weight.n_weights() / BLOCK;
        let bits = if format == Format::Q8_0 { 8 } else { 4 };
        let mut nbits = Self {
            bits,
            n_rows: weight.n_rows(),
            n_columns: weight.n_columns(),
            levels: Vec::with_capacity(n_blocks * BLOCK * bits / 8),
            scales: Vec::with_capacity(n_blocks),
            zero_points: (format == Format::Q4_1).then(|| Vec::with_capacity(n_blocks)),
        };
        for block in weight.bytes().chunks_exact(format.block_bytes()) {
            match format {
                Format::Q8_0 => {
                    nbits.scales.push(scale_at(block, 0));
                    nbits.levels.extend(block[2..].iter().map(|level| level.wrapping_add(128)));
                }
                Format::Q4_0 => {
                    nbits.scales.push(scale_at(block, 0));
                    nbits.levels.extend(pairs(&block[2..]));
                }
                _ => nbits.push_with_min(block),
            }
        }
        Some(nbits)
    }

    /// Q4_1: `level * scale + min` is `(level - zero_point) * scale` with `zero_point = -min / scale`, no integer.
    fn push_with_min(&mut self, block: &[u8]) {
        let (scale, min) = (scale_at(block, 0), scale_at(block, 2));
        let zero_points = self.zero_points.get_or_insert_default();
        if scale == 0.0 {
            // Every weight is the minimum: level 0, one step below the zero point.
            self.scales.push(-min);
            zero_points.push(1.0);
            self.levels.extend([0; BLOCK / 2]);
        } else {
            self.scales.push(scale);
            zero_points.push(-min / scale);
            self.levels.extend(pairs(&block[4..]));
        }
    }

    /// The zero point where none is stored.
    pub const fn midpoint(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Columns by rows, as DequantizeLinear with `axis = 0` takes them: signed levels `[columns, rows]` (4 bits: two in a
    /// byte, first low) and scales `[columns / 32, rows]`. Zero points are left out: they are 0.
    pub fn transposed(&self) -> (Vec<u8>, Vec<f32>) {
        let (rows, columns) = (self.n_rows, self.n_columns);
        let n_blocks = columns / BLOCK;
        let mut scales = vec![0.0; self.scales.len()];
        for row in 0..rows {
            for block in 0..n_blocks {
                scales[block * rows + row] = self.scales[row * n_blocks + block];
            }
        }
        let signed = |row: usize, column: usize| self.level(row, column) ^ self.midpoint();
        let levels = if self.bits == 8 {
            (0..columns * rows).map(|i| signed(i % rows, i / rows)).collect()
        } else {
            let at = |i: usize| if i < columns * rows { signed(i % rows, i / rows) } else { 0 };
            (0..(columns * rows).div_ceil(2)).map(|i| at(2 * i) | at(2 * i + 1) << 4).collect()
        };
        (levels, scales)
    }

    /// One unsigned level.
    fn level(&self, row: usize, column: usize) -> u8 {
        let index = row * self.n_columns + column;
        match self.bits {
            8 => self.levels[index],
            _ => self.levels[index / 2] >> (4 * (index % 2)) & 15,
        }
    }

    /// The weights, in row order: what a runtime makes of them.
    pub fn decode(&self) -> Vec<f32> {
        let zero_at =
            |block: usize| self.zero_points.as_ref().map_or(f32::from(self.midpoint()), |zeros| zeros[block]);
        (0..self.n_rows * self.n_columns)
            .map(|i| {
                let level = f32::from(self.level(i / self.n_columns, i % self.n_columns));
                (level - zero_at(i / BLOCK)) * self.scales[i / BLOCK]
            })
            .collect()
    }
}

/// ggml keeps level `j` and `j + 16` in a byte, ONNX `2 j` and `2 j + 1`.
fn pairs(bytes: &[u8]) -> [u8; BLOCK / 2] {
    let level = |j: usize| if j < 16 { bytes[j] & 15 } else { bytes[j - 16] >> 4 };
    std::array::from_fn(|j| level(2 * j) | level(2 * j + 1) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode_weight, encode_weight};

    fn packed(format: Format) -> Weight {
        let numbers: Vec<f32> = (0..6 * 96).map(|i| ((i * 37 % 101) as f32 - 41.0) * 0.013).collect();
        let mut numbers = numbers;
        numbers[32..64].fill(0.25); // a block without a range
        encode_weight(&Weight::from_f32(vec![6, 96], &numbers).unwrap(), format).unwrap()
    }

    #[test]
    fn levels_and_scales_pass_unchanged() {
        for format in [Format::Q4_0, Format::Q8_0] {
            let weight = packed(format);
            assert_eq!(NBits::of(&weight).unwrap().decode(), decode_weight(&weight).unwrap(), "{format}");
        }
        let weight = packed(Format::Q4_1);
        let (found, expected) = (NBits::of(&weight).unwrap().decode(), decode_weight(&weight).unwrap());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6, "{found} and {expected}: one rounding of a f32");
        }
        assert!(NBits::of(&packed(Format::Q5_0)).is_none());
    }

    #[test]
    fn the_transposed_form_is_the_same_matrix() {
        for format in [Format::Q4_0, Format::Q8_0] {
            let nbits = NBits::of(&packed(format)).unwrap();
            let (levels, scales) = nbits.transposed();
            let expected = nbits.decode();
            for column in 0..96 {
                for row in 0..6 {
                    let i = column * 6 + row;
                    let level = match nbits.bits {
                        8 => levels[i] as i8,
                        _ => ((levels[i / 2] >> (4 * (i % 2)) & 15) << 4) as i8 >> 4,
                    };
                    let found = f32::from(level) * scales[column / 32 * 6 + row];
                    assert_eq!(found, expected[row * 96 + column], "{format} {row} {column}");
                }
            }
        }
    }
}
