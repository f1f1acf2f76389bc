//! Products in bf16: factors rounded to bf16, sums in f32 (mixed precision, arXiv:1905.12322), on the tiles of Intel's
//! AMX (Intel 64 and IA-32 manual, volume 1, chapter 18), which multiply sixteen times as fast as f32 registers.
//!
//! Both factors are laid out in tiles of 16 lines by 32 numbers of the inner size: a left factor's lines are its rows,
//! a right one's its columns. Each output is one chain of sums over the whole inner size, so neither threads nor the
//! way the work is cut change a bit.

pub(crate) mod amx;
pub(crate) mod panels;

use rayon::prelude::*;

use crate::{
    amx::HalfTiles,
    matrix::{Matrix, MatrixMut, Update, multiply},
    packed::SharedOut,
};
use panels::{Panels, Side};

/// How products of floats are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// In f32.
    #[default]
    Single,
    /// In bf16, with sums in f32.
    Half(HalfUnits),
}

/// Proof that this CPU multiplies bf16 in tiles, and that the system lets us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfUnits(HalfTiles);

impl Products {
    /// Products in bf16, where this CPU has units for them.
    pub fn half() -> Option<Self> {
        HalfTiles::detect().map(|tiles| Self::Half(HalfUnits(tiles)))
    }
}

/// `out = a · b` or `out += a · b`, over rayon's current pool.
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply_in(products: Products, a: Matrix<'_>, b: Matrix<'_>, out: MatrixMut<'_>, update: Update) {
    match products {
        Products::Single => multiply(a, b, out, update),
        Products::Half(units) => multiply_half(a, &HalfRight::new(units, b), out, update),
    }
}

/// A right factor, rounded and laid out: for several products with it.
pub struct HalfRight {
    units: HalfUnits,
    panels: Panels,
}

impl HalfRight {
    /// Lays a factor out.
    pub fn new(units: HalfUnits, b: Matrix<'_>) -> Self {
        Self { units, panels: Panels::new(b, Side::Right) }
    }
}

/// Rows of a task: its share of the left factor stays in the second-level cache while the right one passes by.
const TASK_ROWS: usize = 256;
/// Columns of a task.
const TASK_COLUMNS: usize = 256;

/// `out = a · b` or `out += a · b`, over rayon's current pool.
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply_half(a: Matrix<'_>, b: &HalfRight, out: MatrixMut<'_>, update: Update) {
    multiply_parts(a, b, out, update, false);
}

/// `out += xᵀ · x` of `x`, `[n_tokens, n]`, over rayon's current pool: on and below the diagonal. What is above it is in part
/// added to, too.
///
/// # Panics
/// When `out` is not `[n, n]`.
pub fn add_moments_half(units: HalfUnits, x: Matrix<'_>, out: MatrixMut<'_>) {
    multiply_parts(x.transposed(), &HalfRight::new(units, x), out, Update::Add, true);
}

/// The product; of its tasks, where that is asked for, those alone that reach the diagonal or lie below it.
fn multiply_parts(a: Matrix<'_>, b: &HalfRight, out: MatrixMut<'_>, update: Update, is_lower: bool) {
    let (shape, right) = (out.shape(), &b.panels);
    assert_eq!(a.shape().columns, right.n_inner, "the product's inner sizes");
    assert_eq!((a.shape().rows, right.n_lines), (shape.rows, shape.columns), "the product's shape");
    if shape.rows == 0 || shape.columns == 0 {
        return;
    }
    let left = Panels::new(a, Side::Left);
    let stride = shape.row_stride;
    let out = SharedOut::new(out.into_data());
    let (down, across) = (shape.rows.div_ceil(TASK_ROWS), shape.columns.div_ceil(TASK_COLUMNS));
    (0..down * across).into_par_iter().for_each(|task| {
        let (first_row, first_column) = (task % down * TASK_ROWS, task / down * TASK_COLUMNS);
        let rows = first_row..shape.rows.min(first_row + TASK_ROWS);
        let columns = first_column..shape.columns.min(first_column + TASK_COLUMNS);
        if is_lower && first_column >= rows.end {
            return;
        }
        let tiles = amx::Tiles::begin(b.units.0);
        for column in columns.clone().step_by(amx::SQUARE) {
            let n_columns = amx::SQUARE.min(columns.end - column);
            for row in rows.clone().step_by(amx::SQUARE) {
                let square = tiles.multiply(left.pair(row), right.pair(column), right.n_steps);
                for (i, sums) in square.iter().enumerate().take(rows.end - row) {
                    // SAFETY: this task alone writes these columns of these rows, and looks at one part at a time.
                    #[allow(unsafe_code)]
                    let out = unsafe { out.part((row + i) * stride + column, n_columns) };
                    match update {
                        Update::Set => out.copy_from_slice(&sums[..n_columns]),
                        Update::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use slmc_blocks::{bf16_to_f32, f32_to_bf16};

    use super::*;
    use crate::testing::{numbers, same_on_any_threads, worst};

    fn rounded(x: &[f32]) -> Vec<f32> {
        x.iter().map(|&x| bf16_to_f32(f32_to_bf16(x))).collect()
    }

    fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
    }

    /// The CPU's units, or a line that says that nothing was tested.
    #[allow(clippy::print_stdout)] // a test that tests nothing says so
    fn units() -> Option<Products> {
        let half = Products::half();
        if half.is_none() {
            println!("this CPU has no bf16 tiles: nothing was multiplied");
        }
        half
    }

    #[test]
    fn moments_are_right_on_and_below_the_diagonal() {
        let Some(Products::Half(units)) = units() else { return };
        for (n_tokens, n) in [(33, 16), (64, 300), (5, 513)] {
            let x = rounded(&numbers(n_tokens * n, 3));
            let mut sums = vec![1.0; n * n];
            add_moments_half(units, Matrix::new(&x, n_tokens, n), MatrixMut::new(&mut sums, n, n));
            for i in 0..n {
                for j in 0..=i {
                    let expected: f32 = (0..n_tokens).map(|t| x[t * n + i] * x[t * n + j]).sum::<f32>() + 1.0;
                    let found = sums[i * n + j];
                    assert!((found - expected).abs() < 1e-3, "{n} {i} {j}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn every_layout_agrees_with_the_triple_loop_of_rounded_factors() {
        let Some(half) = units() else { return };
        // Around a tile (16, 32), a square (32), a task (256), odd remainders of each.
        for (m, k, n) in [(1, 1, 1), (16, 32, 16), (37, 65, 172), (33, 8, 31), (7, 288, 16), (300, 48, 270)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let (a_r, b_r) = (rounded(&a), rounded(&b));
            let mut expected = vec![0.0_f64; m * n];
            for i in 0..m {
                for l in 0..k {
                    for j in 0..n {
                        expected[i * n + j] += f64::from(a_r[i * k + l]) * f64::from(b_r[l * n + j]);
                    }
                }
            }
            let (a_t, b_t) = (transpose(&a, m, k), transpose(&b, k, n));
            let lefts = [Matrix::new(&a, m, k), Matrix::new(&a_t, k, m).transposed()];
            let rights = [Matrix::new(&b, k, n), Matrix::new(&b_t, n, k).transposed()];
            for left in lefts {
                for right in rights {
                    let mut out = vec![7.0; m * (n + 3)];
                    multiply_in(half, left, right, MatrixMut::strided(&mut out, m, n, n + 3), Update::Set);
                    multiply_in(half, left, right, MatrixMut::strided(&mut out, m, n, n + 3), Update::Add);
                    let found: Vec<f32> =
                        out.chunks(n + 3).flat_map(|row| &row[..n]).map(|x| x / 2.0).collect();
                    assert!(worst(&found, &expected) < 1e-6, "{m} {k} {n}: {}", worst(&found, &expected));
                    assert!(out.chunks(n + 3).all(|row| row[n..] == [7.0; 3]), "beyond the columns");
                }
            }
        }
    }

    #[test]
    fn nan_and_infinity_come_through() {
        let Some(half) = units() else { return };
        let (mut a, b) = (vec![1.0; 40 * 33], vec![1.0; 33 * 20]);
        (a[33 + 5], a[2 * 33]) = (f32::NAN, f32::INFINITY);
        let mut out = vec![0.0; 40 * 20];
        let product = MatrixMut::new(&mut out, 40, 20);
        multiply_in(half, Matrix::new(&a, 40, 33), Matrix::new(&b, 33, 20), product, Update::Set);
        assert!(out[..20].iter().all(|&x| x == 33.0));
        assert!(out[20..40].iter().all(|x| x.is_nan()));
        assert!(out[40..60].iter().all(|&x| x == f32::INFINITY));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let Some(half) = units() else { return };
        let (m, k, n) = (530, 77, 300);
        let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
        same_on_any_threads(|| {
            let mut out = vec![0.0; m * n];
            let product = MatrixMut::new(&mut out, m, n);
            multiply_in(half, Matrix::new(&a, m, k), Matrix::new(&b, k, n), product, Update::Set);
            out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
    }
}
