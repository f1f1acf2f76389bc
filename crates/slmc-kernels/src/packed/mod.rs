//! Products with packed weights: a matrix laid out for the kernels, times rows of activations.
//!
//! A matrix keeps its format: laying it out moves bits, so that sixteen rows lie side by side. With int8 activations
//! each block of 32 columns is an exact integer sum, scaled and added in the order of the columns; with float
//! activations, and for weights that are floats themselves, each output is one chain of fused multiply-adds. Both
//! give the same bits for every instruction set, every path and every number of threads.

mod activations;
mod aligned;
mod float;
#[cfg(target_arch = "x86_64")]
mod half_tiles;
mod int8;
#[cfg(target_arch = "x86_64")]
mod int8_tiles;
mod k_layout;
mod lay_out;
mod layout;
mod out;
mod peak;
pub mod reference;
mod select;
mod simd;
#[cfg(test)]
mod tests;

use std::ops::Range;

use slmc_blocks::{BlockError, decode};
use slmc_ir::{Format, Weight};

pub use activations::{Activations, HalfKernels, Precision};
pub use aligned::Store;
pub use peak::{Sweep, byte_products};

use crate::{Team, Update};
use aligned::AlignedBytes;
pub(crate) use out::SharedOut;
pub(crate) use select::Isa;
use select::{Plan, Product};
#[cfg(target_arch = "aarch64")]
pub(crate) use simd::neon::Neon;
pub(crate) use simd::{ROWS, Simd, portable::Portable};
#[cfg(target_arch = "x86_64")]
pub(crate) use simd::{avx2::Avx2, avx512::Avx512};

/// A weight matrix, laid out for products.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    storage: Storage,
    format: Format,
    n_rows: usize,
    n_columns: usize,
}

#[derive(Clone, Debug)]
enum Storage {
    /// Tiles of sixteen rows: levels, and scales.
    Levels { levels: AlignedBytes, scales: AlignedBytes },
    /// Tiles of sixteen rows of plain floats, column by column.
    Floats(AlignedBytes),
    /// As it was stored: formats without a kernel, whose rows are decoded.
    Stored(Weight),
}

/// The fastest instruction set that products use on this CPU.
pub fn instruction_set() -> &'static str {
    if HalfKernels::detect().is_some() { "amxbf16" } else { Isa::best().name() }
}

/// Matrices of one call of [`products`] at most.
pub const MAX_PRODUCTS: usize = 8;

impl PackedMatrix {
    /// Lays a weight out, over rayon's current pool.
    ///
    /// # Errors
    /// When laid out it would not fit the address space.
    pub fn new(weight: &Weight) -> Result<Self, BlockError> {
        Self::stacked(std::slice::from_ref(weight), None)
    }

    /// As [`PackedMatrix::new`], of matrices of one format and as many columns, one under the other: in memory that many share,
    /// or in memory of its own when there is none or it has no room.
    ///
    /// # Errors
    /// When laid out they would not fit the address space.
    ///
    /// # Panics
    /// When there is none, or they are not of one format and width.
    pub fn stacked(weights: &[Weight], store: Option<&Store>) -> Result<Self, BlockError> {
        lay_out::lay_out(weights, store)
    }

    /// Bytes that a matrix takes of a [`Store`], at most; nothing when they are more than can be counted.
    pub fn bytes_for(n_rows: usize, n_columns: usize, format: Format) -> Option<usize> {
        let (n_tiles, n_units) = (n_rows.div_ceil(ROWS), n_columns / format.block_weights());
        let unit_bytes = match (select::sizes(format), float::float_bytes(format)) {
            (Some([levels, scales, unit]), _) => unit * levels + scales,
            (None, Some(bytes)) => bytes,
            (None, None) => 0,
        };
        // Two planes, each rounded up to a cache line.
        n_tiles.checked_mul(n_units)?.checked_mul(unit_bytes)?.checked_add(128)
    }

    /// Rows: output features.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns: input features.
    pub fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// The format of the weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes that a product reads.
    pub fn n_bytes(&self) -> usize {
        match &self.storage {
            Storage::Levels { levels, scales } => levels.as_slice().len() + scales.as_slice().len(),
            Storage::Floats(tiles) => tiles.as_slice().len(),
            Storage::Stored(weight) => weight.bytes().len(),
        }
    }

    /// How activations for this matrix are best held: int8 where there are levels to multiply them with. A matrix of
    /// floats multiplies int8 activations as the numbers that they stand for, which costs accuracy and gains nothing.
    pub fn best_precision(&self) -> Precision {
        if self.has_levels() { Precision::Int8 } else { Precision::Float }
    }

    /// The kernel that multiplies activations of this precision on this CPU: `avx512vnni-q4_0i8-16x1`, that is
    /// instruction set, weights with activations, rows by tokens that a register holds. `decoded` are weights that
    /// become f32 first.
    pub fn kernel_name(&self, precision: Precision) -> String {
        let (isa, format) = (Isa::best().name(), self.format);
        match (&self.storage, precision) {
            (Storage::Levels { .. }, Precision::Int8) => format!("{isa}-{format}i8-16x1"),
            (Storage::Levels { .. }, Precision::Half(_)) => format!("amxbf16-{format}bf16-32x32"),
            (Storage::Floats(_), _) => format!("{isa}-{format}f32-16x1"),
            _ => format!("{isa}-{format}f32-decoded"),
        }
    }

    /// One row, decoded: an embedding's row of a token. The same bits as decoding the weight's own bytes.
    ///
    /// # Errors
    /// When `out` is not a row long.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<(), BlockError> {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        if out.len() != self.n_columns {
            let row_bytes = self.format.bytes_for(self.n_columns).unwrap_or(0);
            // The error says what is wrong with the lengths.
            return decode(self.format, &vec![0; row_bytes], out);
        }
        self.decode_columns(row, 0..self.n_columns, out)
    }

    /// Whole blocks of a row, decoded.
    fn decode_columns(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<(), BlockError> {
        let (n, bytes) = (self.format.block_weights(), self.format.block_bytes());
        match &self.storage {
            Storage::Levels { levels, scales } => {
                let (planes, n_blocks) =
                    ([levels.as_slice(), scales.as_slice()], self.n_columns / layout::BLOCK);
                let mut units = [0; 512];
                for (i, out) in out.chunks_mut(256).enumerate() {
                    let units = &mut units[..out.len() / n * bytes];
                    let first = (columns.start + 256 * i) / n;
                    select::take_units(self.format, planes, n_blocks, row, first, units);
                    decode(self.format, units, out)?;
                }
                Ok(())
            }
            Storage::Floats(tiles) => {
                let tiles = &tiles.as_slice()[row / ROWS * ROWS * self.n_columns * bytes..];
                for (out, column) in out.iter_mut().zip(columns) {
                    let at = (column * ROWS + row % ROWS) * bytes;
                    decode(self.format, &tiles[at..at + bytes], std::slice::from_mut(out))?;
                }
                Ok(())
            }
            Storage::Stored(weight) => {
                let row_bytes = weight.bytes().len() / self.n_rows;
                let row = &weight.bytes()[row * row_bytes..(row + 1) * row_bytes];
                decode(self.format, &row[columns.start / n * bytes..columns.end / n * bytes], out)
            }
        }
    }

    fn is_laid_out(&self) -> bool {
        !matches!(self.storage, Storage::Stored(_))
    }

    fn has_levels(&self) -> bool {
        matches!(self.storage, Storage::Levels { .. })
    }

    fn levels(&self) -> &[u8] {
        if let Storage::Levels { levels, .. } = &self.storage { levels.as_slice() } else { &[] }
    }

    fn scales(&self) -> &[u8] {
        if let Storage::Levels { scales, .. } = &self.storage { scales.as_slice() } else { &[] }
    }

    /// A tile of plain floats, and how they are stored.
    fn float_tile(&self, tile: usize) -> Option<(Format, &[u8])> {
        let Storage::Floats(tiles) = &self.storage else { return None };
        let n = self.n_columns * ROWS * self.format.block_bytes();
        Some((self.format, &tiles.as_slice()[tile * n..(tile + 1) * n]))
    }
}

/// `out[token, row] = Σ activations[token, column] · matrix[row, column]`, `[activations.n_rows(), matrix.n_rows()]`
/// in row order. The same bits whatever the team's size.
///
/// # Panics
/// When sizes do not fit.
pub fn product(matrix: &PackedMatrix, activations: &Activations, out: &mut [f32], team: &Team) {
    products(&mut [(matrix, out)], activations, team);
}

/// Several matrices times the same activations, as [`product`] of each, in one go: threads need not wait for
/// each other in between.
///
/// # Panics
/// When sizes do not fit, and for more than [`MAX_PRODUCTS`] matrices.
pub fn products(pairs: &mut [(&PackedMatrix, &mut [f32])], activations: &Activations, team: &Team) {
    products_on(Isa::best(), pairs, activations, Update::Set, team);
}

/// `out += ` a [`product`], where that is one step: with activations in bf16. Says whether it is; nothing is done otherwise.
///
/// # Panics
/// When sizes do not fit.
pub fn add_product(matrix: &PackedMatrix, activations: &Activations, out: &mut [f32], team: &Team) -> bool {
    let is_half = matches!(activations.precision(), Precision::Half(_)) && matrix.has_levels();
    if is_half {
        products_on(Isa::best(), &mut [(matrix, out)], activations, Update::Add, team);
    }
    is_half
}

fn products_on(
    isa: Isa,
    pairs: &mut [(&PackedMatrix, &mut [f32])],
    x: &Activations,
    update: Update,
    team: &Team,
) {
    assert!(pairs.len() <= MAX_PRODUCTS, "at most {MAX_PRODUCTS} products at once");
    let mut all: [Option<Product<'_>>; MAX_PRODUCTS] = [const { None }; MAX_PRODUCTS];
    let mut n_tasks = 0;
    for ((matrix, out), product) in pairs.iter_mut().zip(&mut all) {
        let (matrix, out): (&PackedMatrix, &mut [f32]) = (matrix, out);
        assert_eq!(matrix.n_columns(), x.n_columns(), "the product's inner size");
        assert_eq!(Some(out.len()), matrix.n_rows().checked_mul(x.n_rows()), "the product's size");
        let plan = Plan::new(isa, matrix, x);
        n_tasks += plan.n_tasks();
        if matrix.n_columns() == 0 && update == Update::Set {
            out.fill(0.0);
        }
        *product = Some(Product { isa, plan, matrix, x, out: SharedOut::new(out), update });
    }
    team.run(n_tasks, &|mut task| {
        for product in all.iter().flatten() {
            let n = product.plan.n_tasks();
            if task < n {
                return product.run(task);
            }
            task -= n;
        }
    });
}
