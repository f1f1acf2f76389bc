//! Products in f32: float weights, and any weights with float activations.
//!
//! Each output is one chain of `fma(weight, x, out)` over the columns in their order, on every path.

use std::ops::Range;

use slmc_blocks::BlockError;
use slmc_ir::Format;

use super::{
    PackedMatrix,
    activations::Activations,
    aligned::LINE,
    int8,
    layout::part,
    out::SharedOut,
    simd::{ROWS, Simd},
};

/// Tiles of a panel.
pub(super) const PANEL_TILES: usize = 2;
/// Columns of a panel: whole blocks of every format.
const PANEL_COLUMNS: usize = 256;
/// Tokens whose sums are in registers.
const TOKENS: usize = 6;

/// Two tiles' weights of some columns as f32.
#[repr(align(64))]
struct Panel([[[f32; ROWS]; PANEL_TILES]; PANEL_COLUMNS]);

/// Bytes of sixteen weights of a format of plain floats.
pub(super) const fn float_bytes(format: Format) -> Option<usize> {
    match format {
        Format::F32 => Some(64),
        Format::F16 | Format::Bf16 => Some(32),
        _ => None,
    }
}

/// Fills a panel with columns of a matrix of any format; a tile beyond the matrix's end stays as it is.
#[inline(always)]
fn fill<S: Simd>(
    s: S,
    matrix: &PackedMatrix,
    panel: &mut Panel,
    tiles: Range<usize>,
    columns: Range<usize>,
) -> Result<(), BlockError> {
    for (at, tile) in tiles.enumerate() {
        if let Some((format, bytes)) = matrix.float_tile(tile) {
            for (to, column) in panel.0.iter_mut().zip(columns.clone()) {
                let weights = load_column(s, format, bytes, column);
                s.store(weights, &mut to[at]);
            }
        } else {
            let mut weights = [0.0; PANEL_COLUMNS];
            let weights = &mut weights[..columns.len()];
            for row in tile * ROWS..matrix.n_rows().min((tile + 1) * ROWS) {
                matrix.decode_columns(row, columns.clone(), weights)?;
                for (to, &weight) in panel.0.iter_mut().zip(&*weights) {
                    to[at][row % ROWS] = weight;
                }
            }
        }
    }
    Ok(())
}

/// Sixteen weights of a tile of plain floats.
#[inline(always)]
fn load_column<S: Simd>(s: S, format: Format, tile: &[u8], column: usize) -> S::Floats {
    match format {
        Format::F32 => s.load_f32(part(tile, 64 * column)),
        Format::F16 => s.load_f16(part(tile, 32 * column)),
        _ => s.load_bf16(part(tile, 32 * column)),
    }
}

/// Tiles that [`matvec`] takes at once: as many chains as hide an addition's latency.
pub(super) const MATVEC_TILES: usize = 4;

/// A few tokens of floats against `tiles` of plain floats, straight from memory.
#[inline(always)]
pub(super) fn matvec<S: Simd, const T: usize>(
    s: S,
    matrix: &PackedMatrix,
    x: &Activations,
    out: &SharedOut<'_, f32>,
    tiles: Range<usize>,
) {
    let (n_rows, n_columns) = (matrix.n_rows(), matrix.n_columns());
    for first in tiles.clone().step_by(MATVEC_TILES) {
        // Beyond the last tile the first is taken again, and not stored.
        let tile = |at: usize| if first + at < tiles.end { first + at } else { first };
        let mut weights = [&[] as &[u8]; MATVEC_TILES];
        let mut format = Format::F32;
        for (at, weights) in weights.iter_mut().enumerate() {
            if let Some((stored, bytes)) = matrix.float_tile(tile(at)) {
                (format, *weights) = (stored, bytes);
            }
        }
        let mut sums = [[s.splat(0.0); MATVEC_TILES]; T];
        for column in 0..n_columns {
            for at in 0..MATVEC_TILES {
                let weights = load_column(s, format, weights[at], column);
                for (t, sums) in sums.iter_mut().enumerate() {
                    sums[at] = s.fma(weights, s.splat(x.floats[t * n_columns + column]), sums[at]);
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            for (at, sum) in sums.into_iter().enumerate().take(tiles.end - first) {
                let mut all = [0.0; ROWS];
                s.store(sum, &mut all);
                let row = (first + at) * ROWS;
                let n = ROWS.min(n_rows - row);
                // SAFETY: the caller's task alone writes these tiles.
                #[allow(unsafe_code)]
                unsafe { out.part(t * n_rows + row, n) }.copy_from_slice(&all[..n]);
            }
        }
    }
}

/// Any number of tokens against one panel's tiles.
#[inline(always)]
pub(super) fn matmul<S: Simd>(
    s: S,
    matrix: &PackedMatrix,
    x: &Activations,
    out: &SharedOut<'_, f32>,
    tiles: Range<usize>,
    tokens: Range<usize>,
) {
    let mut panel = Panel([[[0.0; ROWS]; PANEL_TILES]; PANEL_COLUMNS]);
    let mut numbers = [[0.0; PANEL_COLUMNS]; TOKENS];
    for first in (0..matrix.n_columns()).step_by(PANEL_COLUMNS) {
        let columns = first..matrix.n_columns().min(first + PANEL_COLUMNS);
        fill(s, matrix, &mut panel, tiles.clone(), columns.clone()).expect("whole blocks of a matrix");
        let mut coming = Coming::after(matrix, tiles.clone(), columns.end, tokens.len().div_ceil(TOKENS));
        for token in tokens.clone().step_by(TOKENS) {
            coming.ask_for_some(s);
            let n_tokens = TOKENS.min(tokens.end - token);
            for (t, numbers) in numbers[..n_tokens].iter_mut().enumerate() {
                x.dequantize(token + t, first, &mut numbers[..columns.len()]);
            }
            let weights = &panel.0[..columns.len()];
            let strip = Strip { out, n_rows: matrix.n_rows(), tile: tiles.start, first_column: first, token };
            if S::FEW_REGISTERS {
                for at in 0..tiles.len() {
                    Strip { tile: tiles.start + at, ..strip }
                        .add_all::<S, 1>(s, weights, at, &numbers, n_tokens);
                }
            } else {
                strip.add_all::<S, PANEL_TILES>(s, weights, 0, &numbers, n_tokens);
            }
        }
    }
}

/// The next panel's bytes of plain floats, asked for little by little while this one is used: they come from memory.
struct Coming<'a> {
    tiles: [&'a [u8]; PANEL_TILES],
    /// Bytes of each tile that are asked for at once.
    at_once: usize,
}

impl<'a> Coming<'a> {
    fn after(matrix: &'a PackedMatrix, tiles: Range<usize>, column: usize, n_steps: usize) -> Self {
        let n_columns = PANEL_COLUMNS.min(matrix.n_columns() - column);
        let mut coming = Self { tiles: [&[]; PANEL_TILES], at_once: 0 };
        for (to, tile) in coming.tiles.iter_mut().zip(tiles) {
            if let Some((format, bytes)) = matrix.float_tile(tile) {
                let column_bytes = ROWS * format.block_bytes();
                *to = &bytes[column * column_bytes..(column + n_columns) * column_bytes];
                coming.at_once = to.len().div_ceil(n_steps.max(1)).next_multiple_of(LINE);
            }
        }
        coming
    }

    #[inline(always)]
    fn ask_for_some<S: Simd>(&mut self, s: S) {
        for tile in &mut self.tiles {
            let (now, later) = tile.split_at(self.at_once.min(tile.len()));
            now.chunks(LINE).for_each(|line| s.prefetch(line.as_ptr()));
            *tile = later;
        }
    }
}

/// Some tokens' outputs of a panel.
#[derive(Clone, Copy)]
struct Strip<'a> {
    out: &'a SharedOut<'a, f32>,
    n_rows: usize,
    tile: usize,
    first_column: usize,
    token: usize,
}

impl Strip<'_> {
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    fn out(&self, t: usize, at: usize) -> &mut [f32] {
        let first = ((self.tile + at) * ROWS).min(self.n_rows);
        // SAFETY: the caller's task alone writes these tiles of these tokens, and looks at one part at a time.
        #[allow(unsafe_code)]
        unsafe {
            self.out.part((self.token + t) * self.n_rows + first, ROWS.min(self.n_rows - first))
        }
    }

    /// Adds what `N` tiles of the panel from number `from` on give for `n_tokens` tokens.
    #[inline(always)]
    fn add_all<S: Simd, const N: usize>(
        &self,
        s: S,
        weights: &[[[f32; ROWS]; PANEL_TILES]],
        from: usize,
        x: &[[f32; PANEL_COLUMNS]; TOKENS],
        n_tokens: usize,
    ) {
        match n_tokens {
            1 => self.add::<S, 1, N>(s, weights, from, x),
            2 => self.add::<S, 2, N>(s, weights, from, x),
            3 => self.add::<S, 3, N>(s, weights, from, x),
            4 => self.add::<S, 4, N>(s, weights, from, x),
            5 => self.add::<S, 5, N>(s, weights, from, x),
            _ => self.add::<S, TOKENS, N>(s, weights, from, x),
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Indices are what registers are.
    fn add<S: Simd, const T: usize, const N: usize>(
        &self,
        s: S,
        weights: &[[[f32; ROWS]; PANEL_TILES]],
        from: usize,
        x: &[[f32; PANEL_COLUMNS]; TOKENS],
    ) {
        let mut sums = [[s.splat(0.0); N]; T];
        for t in 0..T {
            for at in 0..N {
                if self.first_column > 0 {
                    sums[t][at] = int8::load(s, self.out(t, at));
                } else {
                    s.prefetch_to_write(self.out(t, at).as_ptr().cast());
                }
            }
        }
        for (column, weights) in weights.iter().enumerate() {
            let mut held = [s.splat(0.0); N];
            for at in 0..N {
                held[at] = s.load(&weights[from + at]);
            }
            for t in 0..T {
                let x = s.splat(x[t][column]);
                for at in 0..N {
                    sums[t][at] = s.fma(held[at], x, sums[t][at]);
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            for (at, sum) in sums.into_iter().enumerate() {
                int8::store(s, sum, self.out(t, at));
            }
        }
    }
}
