//! A factor rounded to bf16 and laid out in tiles.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::amx::{LINES, STEP};
use crate::{dispatch::dispatched, matrix::Matrix};

/// Which factor of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Its lines are rows; a tile has a row of sixteen pairs for each of them.
    Left,
    /// Its lines are columns; a tile has a row of sixteen lines for each pair.
    Right,
}

/// Sixteen pairs of bf16: two numbers that are next to each other along the inner size, the first in the low half.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Pairs(pub [u32; 16]);

/// Sixteen lines by 32 numbers of the inner size.
pub(crate) type Tile = [Pairs; 16];

/// Panels of sixteen lines, each all of its tiles in order. What is beyond the factor's edges is zero.
pub(super) struct Panels {
    pub n_lines: usize,
    pub n_inner: usize,
    /// Tiles of a panel.
    pub n_steps: usize,
    tiles: Vec<Tile>,
}

/// Where the numbers lie: line `i`'s number `k` at `i * line_stride + k * inner_stride`. One stride is 1.
#[derive(Clone, Copy)]
struct Source<'a> {
    data: &'a [f32],
    n_lines: usize,
    n_inner: usize,
    line_stride: usize,
    inner_stride: usize,
}

impl Panels {
    pub fn new(factor: Matrix<'_>, side: Side) -> Self {
        let shape = factor.shape();
        let source = match side {
            Side::Left => Source {
                data: factor.data(),
                n_lines: shape.rows,
                n_inner: shape.columns,
                line_stride: shape.row_stride,
                inner_stride: shape.column_stride,
            },
            Side::Right => Source {
                data: factor.data(),
                n_lines: shape.columns,
                n_inner: shape.rows,
                line_stride: shape.column_stride,
                inner_stride: shape.row_stride,
            },
        };
        let n_steps = source.n_inner.div_ceil(STEP).max(1);
        // An even number of panels: tiles are multiplied two by two.
        let n_panels = source.n_lines.div_ceil(2 * LINES) * 2;
        let mut tiles = take(n_panels * n_steps);
        tiles.par_chunks_exact_mut(n_steps).enumerate().for_each(|(panel, tiles)| {
            fill(source, panel * LINES, side == Side::Left, tiles);
        });
        Self { n_lines: source.n_lines, n_inner: source.n_inner, n_steps, tiles }
    }

    /// The two panels that begin at a line.
    pub fn pair(&self, line: usize) -> [&[Tile]; 2] {
        let first = line / LINES * self.n_steps;
        let (one, other) = self.tiles[first..first + 2 * self.n_steps].split_at(self.n_steps);
        [one, other]
    }
}

/// Buffers of products before, to be used again: memory from the system comes zeroed, page by page, which takes longer
/// than laying a factor out.
static SPARE: Mutex<Vec<Vec<Tile>>> = Mutex::new(Vec::new());
/// Buffers kept.
const N_SPARE: usize = 4;

/// A buffer of `n` tiles of any content.
fn take(n: usize) -> Vec<Tile> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    // The smallest that is large enough; else the largest, to be made larger.
    let fitting = (0..spare.len()).filter(|&i| spare[i].capacity() >= n).min_by_key(|&i| spare[i].capacity());
    let found = fitting.or_else(|| (0..spare.len()).max_by_key(|&i| spare[i].capacity()));
    let mut tiles = found.map_or_else(Vec::new, |i| spare.swap_remove(i));
    drop(spare);
    if tiles.capacity() < n {
        // What it holds need not be moved.
        tiles.clear();
    }
    tiles.resize(n, EMPTY);
    tiles
}

impl Drop for Panels {
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(std::mem::take(&mut self.tiles));
        if spare.len() > N_SPARE {
            let smallest = (0..spare.len()).min_by_key(|&i| spare[i].capacity());
            smallest.map(|i| spare.swap_remove(i));
        }
    }
}

/// A tile of zeros.
pub(crate) const EMPTY: Tile = [Pairs([0; 16]); 16];

dispatched! {
    /// Fills a panel's tiles. With `by_line` a tile's rows are lines, else pairs.
    fn fill(source: Source<'_>, first_line: usize, by_line: bool, tiles: &mut [Tile]) {
        let n_lines = source.n_lines.saturating_sub(first_line).min(LINES);
        for (step, tile) in tiles.iter_mut().enumerate() {
            let first = step * STEP;
            let n_inner = source.n_inner.saturating_sub(first).min(STEP);
            if n_lines < LINES || n_inner < STEP {
                *tile = EMPTY;
            }
            if n_lines == 0 {
                continue;
            }
            let is_by_line = if source.inner_stride == 1 {
                for (line, row) in tile.iter_mut().enumerate().take(n_lines) {
                    let at = (first_line + line) * source.line_stride + first;
                    row.0 = along(&source.data[at..at + n_inner]);
                }
                true
            } else {
                for (pair, row) in tile.iter_mut().enumerate().take(n_inner.div_ceil(2)) {
                    let at = |k: usize| (first + 2 * pair + k) * source.inner_stride + first_line;
                    let low = &source.data[at(0)..at(0) + n_lines];
                    let high = if 2 * pair + 1 < n_inner { &source.data[at(1)..at(1) + n_lines] } else { &[][..] };
                    row.0 = across(low, high);
                }
                false
            };
            if is_by_line != by_line {
                transpose(tile);
            }
        }
    }
}

/// The bf16 nearest to a number, ties to even, in the upper half; a NaN stays one.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let kept = if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x0040_0000 } else { rounded };
    kept & 0xffff_0000
}

/// Up to 32 numbers of one line.
#[inline(always)]
fn along(numbers: &[f32]) -> [u32; 16] {
    let mut all = [0.0_f32; 32];
    let numbers: &[f32; 32] = match numbers.try_into() {
        Ok(numbers) => numbers,
        Err(_) => {
            all[..numbers.len()].copy_from_slice(numbers);
            &all
        }
    };
    rounded_pairs(numbers)
}

/// 32 numbers, rounded, two by two.
#[inline(always)]
pub(crate) fn rounded_pairs(numbers: &[f32; 32]) -> [u32; 16] {
    let mut pairs = [0; 16];
    for (pair, two) in pairs.iter_mut().zip(numbers.as_chunks::<2>().0) {
        *pair = round(two[0]) >> 16 | round(two[1]);
    }
    pairs
}

/// Two numbers of up to sixteen lines.
#[inline(always)]
pub(crate) fn across(low: &[f32], high: &[f32]) -> [u32; 16] {
    let sixteen = |numbers: &[f32]| {
        let mut all = [0.0_f32; 16];
        all[..numbers.len()].copy_from_slice(numbers);
        all
    };
    let (low, high) = (sixteen(low), sixteen(high));
    let mut pairs = [0; 16];
    for i in 0..16 {
        pairs[i] = round(low[i]) >> 16 | round(high[i]);
    }
    pairs
}

/// Rows become columns, in four rounds of exchanges between rows 8, 4, 2 and 1 apart: each round is a handful of
/// vector permutations.
#[inline(always)]
fn transpose(tile: &mut Tile) {
    let mut half = 8;
    while half > 0 {
        for i in 0..16 {
            if i & half == 0 {
                let (upper, lower) = (tile[i].0, tile[i + half].0);
                for j in 0..16 {
                    // The upper row keeps its columns without the bit, and takes the lower's for those with it.
                    tile[i].0[j] = if j & half == 0 { upper[j] } else { lower[j - half] };
                    tile[i + half].0[j] = if j & half == 0 { upper[j + half] } else { lower[j] };
                }
            }
        }
        half /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_exchanges_rows_and_columns() {
        let mut tile = [Pairs([0; 16]); 16];
        for (i, row) in tile.iter_mut().enumerate() {
            row.0 = std::array::from_fn(|j| (16 * i + j) as u32);
        }
        transpose(&mut tile);
        for (i, row) in tile.iter().enumerate() {
            assert_eq!(row.0, std::array::from_fn(|j| (16 * j + i) as u32));
        }
    }

    #[test]
    fn rounding_is_that_of_bf16() {
        for i in 0..100_000_u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let (found, expected) = (round(x) >> 16, u32::from(slmc_blocks::f32_to_bf16(x)));
            assert!(found == expected || x.is_nan() && (found & 0x7fff) > 0x7f80, "{x}");
        }
    }
}
