//! What the factors of both sides have in common: Cholesky's factor, and damping that grows until there is one.

use faer::{
    Accum, MatMut, MatRef, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{cholesky::llt, matmul::matmul, triangular_solve::solve_lower_triangular_in_place},
    prelude::default,
};
use rayon::prelude::*;

use crate::CompressError;

/// Rows and columns of a block.
const BLOCK: usize = 256;
/// Where damping begins to grow from when asked for less.
const SMALLEST_DAMPING: f64 = 1e-6;
/// Where it stops: at ten times the mean diagonal any such matrix is far from singular.
const LARGEST_DAMPING: f64 = 10.0;

/// What `factor` finds at this damping, or at the first of ten times as much, a hundred times, and so on, at which it finds
/// something; and that damping.
///
/// # Errors
/// When the damping asked for is no damping, or nothing is ever found.
pub(super) fn damped<T>(
    damping: f64,
    mut factor: impl FnMut(f64) -> Option<T>,
) -> Result<(T, f64), CompressError> {
    if !(damping.is_finite() && damping >= 0.0) {
        return Err(CompressError::Damping(damping));
    }
    let mut damping = damping;
    loop {
        if let Some(found) = factor(damping) {
            return Ok((found, damping));
        }
        if damping >= LARGEST_DAMPING {
            return Err(CompressError::Singular(damping));
        }
        damping = (damping * 10.0).max(SMALLEST_DAMPING);
    }
}

/// `L` lower triangular with `L Lᵀ` the `n` by `n` matrix with its rows and columns in reverse, or `None` where there is none.
/// Only `at(i, j)` with `i` at most `j` is meant.
pub(super) fn of_the_reverse(n: usize, at: impl Fn(usize, usize) -> f64 + Sync) -> Option<Lower> {
    let mut lower = Lower { n, columns: vec![0.0; n * n] };
    lower.columns.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(j, column)| {
        column[j..].iter_mut().enumerate().for_each(|(i, entry)| *entry = at(n - 1 - j - i, n - 1 - j));
    });
    lower.factor()?;
    Some(lower)
}

/// A lower triangular matrix `[n, n]` in f64, column by column; zeros above the diagonal.
///
/// It is worked on in blocks of a fixed size, whole blocks by one thread each, so that sums do not depend on the number of
/// threads (the left-looking algorithm; Golub and Van Loan 2013, section 4.2.6).
pub(super) struct Lower {
    n: usize,
    columns: Vec<f64>,
}

impl Lower {
    /// An entry on or below the diagonal, or a zero.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.columns[j * self.n + i]
    }

    /// Column `j` from the diagonal down.
    pub fn column(&self, j: usize) -> &[f64] {
        &self.columns[j * self.n + j..(j + 1) * self.n]
    }

    fn matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.columns, self.n, self.n)
    }

    /// The factor in the place of its matrix, or nothing that is of use.
    fn factor(&mut self) -> Option<()> {
        let n = self.n;
        for first in (0..n).step_by(BLOCK) {
            let n_block = BLOCK.min(n - first);
            let (done, rest) = self.columns.split_at_mut(first * n);
            let done = MatRef::from_column_major_slice(done, n, first);
            let block = MatMut::from_column_major_slice_mut(&mut rest[..n_block * n], n, n_block);
            let (_, block) = block.split_at_row_mut(first);
            let mut strips = strips(block);
            strips.par_iter_mut().for_each(|(row, strip)| {
                let own = done.subrows(first + *row, strip.nrows());
                let across = done.subrows(first, n_block).transpose();
                matmul(strip.as_mut(), Accum::Add, own, across, -1.0, Par::Seq);
            });
            let ((_, diagonal), below) = strips.split_first_mut()?;
            let scratch = llt::factor::cholesky_in_place_scratch::<f64>(n_block, Par::Seq, default());
            let mut memory = MemBuffer::new(scratch);
            let stack = MemStack::new(&mut memory);
            llt::factor::cholesky_in_place(diagonal.as_mut(), default(), Par::Seq, stack, default()).ok()?;
            let diagonal = diagonal.as_ref();
            below.par_iter_mut().for_each(|(_, strip)| {
                solve_lower_triangular_in_place(diagonal, strip.as_mut().transpose_mut(), Par::Seq);
            });
        }
        // What the factorization of a block leaves above its diagonal.
        self.columns.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(j, column)| column[..j].fill(0.0));
        Some(())
    }

    /// Its inverse, lower triangular too.
    pub fn inverse(&self) -> Self {
        let n = self.n;
        let mut columns = vec![0.0; n * n];
        // Long columns first: whoever is done early takes what is left. Each block is one piece of work.
        columns.par_chunks_mut((BLOCK * n).max(1)).enumerate().with_max_len(1).for_each(|(i, block)| {
            let first = i * BLOCK;
            let n_block = block.len() / n;
            (0..n_block).for_each(|j| block[j * n + first + j] = 1.0);
            let block = MatMut::from_column_major_slice_mut(block, n, n_block);
            let (_, block) = block.split_at_row_mut(first);
            let own = self.matrix().submatrix(first, first, n - first, n - first);
            solve_lower_triangular_in_place(own, block, Par::Seq);
        });
        Self { n, columns }
    }
}

/// Rows of a matrix, a block of them at a time, and the first of each.
fn strips(matrix: MatMut<'_, f64>) -> Vec<(usize, MatMut<'_, f64>)> {
    let n_rows = matrix.nrows();
    let (mut strips, mut rest) = (Vec::with_capacity(n_rows.div_ceil(BLOCK)), matrix);
    for first in (0..n_rows).step_by(BLOCK) {
        let (strip, after) = rest.split_at_row_mut(BLOCK.min(n_rows - first));
        strips.push((first, strip));
        rest = after;
    }
    strips
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Symmetric, its diagonal the largest: far from singular.
    fn entry(i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j) as f64, i.max(j) as f64);
        (i * 0.37 + j * 1.3).sin() / (1.0 + 0.2 * (j - i)) + if i == j { 40.0 } else { 0.0 }
    }

    #[test]
    fn the_factor_and_its_inverse_are_those_of_the_definition() {
        // One block, several, and a last one that is shorter.
        for n in [1, 7, BLOCK, 2 * BLOCK, 2 * BLOCK + 61] {
            let lower = of_the_reverse(n, entry).unwrap();
            let inverse = lower.inverse();
            let (l, x) = (lower.matrix(), inverse.matrix());
            let (product, one) = (l * l.transpose(), l * x);
            for i in 0..n {
                for j in 0..n {
                    let asked = entry(n - 1 - i, n - 1 - j);
                    assert!((product[(i, j)] - asked).abs() < 1e-11, "{n}: {i} {j}");
                    assert!((one[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-12, "{n}: {i} {j}");
                    assert!(i >= j || (lower.at(i, j), inverse.at(i, j)) == (0.0, 0.0));
                }
            }
        }
        assert!(of_the_reverse(3, |i, j| if i == j { -1.0 } else { 0.0 }).is_none());
        assert!(of_the_reverse(2 * BLOCK, |i, j| if i == j { i as f64 - 3.5 } else { 0.0 }).is_none());
    }

    #[test]
    fn threads_change_nothing() {
        let n = 2 * BLOCK + 61;
        let on = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let lower = of_the_reverse(n, entry).unwrap();
                let inverse = lower.inverse();
                (lower.columns, inverse.columns)
            })
        };
        assert!(on(1) == on(2) && on(1) == on(5));
    }
}
