//! From rows as they are stored to tiles of sixteen.

use rayon::prelude::*;
use slmc_blocks::BlockError;
use slmc_ir::{Format, Weight, WeightError};

use super::{PackedMatrix, ROWS, Storage, Store, aligned::AlignedBytes, float, layout, select};

/// Lays out matrices of one format and as many columns, one under the other.
pub(super) fn lay_out(weights: &[Weight], store: Option<&Store>) -> Result<PackedMatrix, BlockError> {
    let rows = Rows::of(weights)?;
    let Rows { format, n_rows, n_columns, .. } = rows;
    let too_large = || WeightError::TooLarge(vec![n_rows, n_columns]);
    let plane = |tile_bytes: usize, put: &(dyn Fn(usize, &mut [u8]) + Sync)| {
        let fill = |plane: &mut [u8]| {
            let tiles = plane.par_chunks_exact_mut(tile_bytes.max(1)).enumerate();
            tiles.for_each(|(i, tile)| put(i, tile));
        };
        AlignedBytes::new(n_rows.div_ceil(ROWS), tile_bytes, store, fill).ok_or_else(too_large)
    };
    let storage = if let Some([level_bytes, scale_bytes, unit]) = select::sizes(format) {
        let n_blocks = n_columns / layout::BLOCK;
        let [level_bytes, scale_bytes] = [n_blocks * level_bytes, n_blocks / unit * scale_bytes];
        let levels = plane(level_bytes, &|i, tile| select::put_levels(format, rows.tile(i), tile))?;
        let scales = plane(scale_bytes, &|i, tile| select::put_scales(format, rows.tile(i), tile))?;
        Storage::Levels { levels, scales }
    } else if let Some(column_bytes) = float::float_bytes(format) {
        let tile_bytes = n_columns.checked_mul(column_bytes).ok_or_else(too_large)?;
        Storage::Floats(plane(tile_bytes, &|i, tile| put_floats(rows.tile(i), n_columns, tile))?)
    } else {
        Storage::Stored(joined(&rows)?)
    };
    Ok(PackedMatrix { storage, format, n_rows, n_columns })
}

/// Rows of several matrices, numbered through.
struct Rows<'a> {
    weights: &'a [Weight],
    format: Format,
    n_rows: usize,
    n_columns: usize,
    row_bytes: usize,
}

impl<'a> Rows<'a> {
    fn of(weights: &'a [Weight]) -> Result<Self, WeightError> {
        let [first, others @ ..] = weights else { panic!("at least one matrix is laid out") };
        let (format, n_columns) = (first.format(), first.n_columns());
        for other in others {
            assert_eq!(
                (other.format(), other.n_columns()),
                (format, n_columns),
                "matrices that lie together"
            );
        }
        let n_rows = weights.iter().map(Weight::n_rows).sum();
        // Of a matrix without rows they may be longer than memory.
        let row_bytes =
            format.bytes_for(n_columns).ok_or_else(|| WeightError::TooLarge(vec![n_rows, n_columns]))?;
        Ok(Self { weights, format, n_rows, n_columns, row_bytes })
    }

    /// The rows of a tile: sixteen, fewer in the last.
    fn tile(&self, tile: usize) -> impl Iterator<Item = &'a [u8]> {
        let (weights, row_bytes) = (self.weights, self.row_bytes);
        let (mut which, mut row) = (0, tile * ROWS);
        std::iter::from_fn(move || {
            while row >= weights.get(which)?.n_rows() {
                row -= weights[which].n_rows();
                which += 1;
            }
            let bytes = &weights[which].bytes()[row * row_bytes..(row + 1) * row_bytes];
            row += 1;
            Some(bytes)
        })
        .take(ROWS)
    }
}

/// The matrices as one, as it is stored.
fn joined(rows: &Rows<'_>) -> Result<Weight, WeightError> {
    if let [one] = rows.weights {
        return Ok(one.clone());
    }
    let parts: Vec<&[u8]> = rows.weights.iter().map(|weight| &weight.bytes()[..]).collect();
    Weight::new(vec![rows.n_rows, rows.n_columns], rows.format, parts.concat().into())
}

/// Interleaves up to sixteen rows of plain floats.
fn put_floats<'a>(rows: impl Iterator<Item = &'a [u8]>, n_columns: usize, tile: &mut [u8]) {
    let bytes = tile.len() / n_columns.max(1) / ROWS;
    for (i, row) in rows.enumerate() {
        for (number, column) in row.chunks_exact(bytes).zip(tile.chunks_exact_mut(ROWS * bytes)) {
            column[i * bytes..(i + 1) * bytes].copy_from_slice(number);
        }
    }
}
