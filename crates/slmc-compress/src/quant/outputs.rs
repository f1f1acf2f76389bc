//! Errors of a layer's outputs that make up for each other: rows are rounded in blocks, and what a block did wrong is taken
//! into account by the blocks after it.
//!
//! With `H` the second moments of what enters a layer and `G` those of the gradients of what leaves it, an error `δ` of the
//! weight costs `½ tr(G δ H δᵀ)` (K-FAC, Martens and Grosse 2015, arXiv:1503.05671, section 2). [`solve`](super::solve) rounds
//! the rows as if `G` were diagonal. Here `G = Mᵀ D M`, `M` lower triangular in blocks with ones on its diagonal, so that the cost is
//! that of `e = M δ` by the blocks of `D`: row by row `e` is rounded by `H` alone (both sides at once: YAQA, Tseng et al.
//! 2025, arXiv:2505.22988, section 3.2).

use faer::{Accum, MatMut, MatRef as FaerRef, Par, linalg::matmul::matmul};
use ndarray::{Array2, Axis};
use rayon::prelude::*;

use super::{
    cholesky::{Lower, damped, of_the_reverse},
    codes::Codes,
    factor::Factor,
    grid::Grid,
    hessian::Hessian,
    solve::{SolveSettings, solve_in_chunks},
};
use crate::{CompressError, MatRef};

/// Blocks that rows are cut into, about: what rows of one block have in common is left alone.
const N_BLOCKS: usize = 12;
const SMALLEST_BLOCK: usize = 16;
const LARGEST_BLOCK: usize = 128;
/// Pieces of work that a block is cut into, of not too few rows.
const N_CHUNKS: usize = 4;
const SMALLEST_CHUNK: usize = 8;
/// Columns of a product that are one piece of work.
const CHUNK_COLUMNS: usize = 128;

/// What a layer's outputs have in common.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// `order[i]` is the row that is rounded `i`-th: those that matter most first.
    order: Vec<usize>,
    n_block: usize,
    /// `M`, `[n, n]` in the order of rounding: of each row what is left of its block.
    left: Vec<f32>,
    /// Diagonal of `D`, for the rows as they are.
    weights: Vec<f64>,
}

impl Outputs {
    /// From the mean of `g gᵀ` over tokens. `damping` is a share of the mean diagonal, as of [`Factor::new`]; it counts in the
    /// [weights](Self::weights), too.
    ///
    /// # Errors
    /// When nothing or something not finite was observed, or the matrix cannot be factored.
    pub fn new(gradients: &Hessian, damping: f64) -> Result<Self, CompressError> {
        let blocks = gradients.n_columns().div_ceil(N_BLOCKS).next_multiple_of(SMALLEST_BLOCK);
        Self::in_blocks(gradients, damping, blocks.min(LARGEST_BLOCK))
    }

    fn in_blocks(gradients: &Hessian, damping: f64, n_block: usize) -> Result<Self, CompressError> {
        gradients.check()?;
        let n = gradients.n_columns();
        let diagonal = gradients.diagonal();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        let mean = diagonal.iter().map(|&g| f64::from(g)).sum::<f64>() / n as f64;
        let (lower, _) = damped(damping, |damping| {
            sound_factor(n, |i, j| {
                let entry = f64::from(gradients.at(order[i], order[j]));
                if i == j { entry + (damping * mean).max(1e-30) } else { entry }
            })
        })?;
        // `U` upper triangular with G = U Uᵀ is the factor of the matrix turned around, turned around.
        let upper = |i: usize, j: usize| lower.at(n - 1 - i, n - 1 - j);
        // One row after the other: G = Mᵀ D M with M[j][k] = U[k][j] / U[j][j] and D[j] = U[j][j]².
        let own = |j: usize| upper(j, j) * upper(j, j);
        let by_row = |j: usize, k: usize| upper(k, j) / upper(j, j);
        let mut left = vec![0.0_f32; n * n];
        let mut weights = vec![0.0; n];
        for first in (0..n).step_by(n_block) {
            let end = n.min(first + n_block);
            // Within the block M is taken out again: a row's errors are made up for behind the block only.
            let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n_block);
            for j in first..end {
                let mut row: Vec<f64> = (0..first).map(|k| by_row(j, k)).collect();
                for (i, above) in (first..j).zip(&rows) {
                    let inside = by_row(j, i);
                    row.iter_mut().zip(above).for_each(|(m, above)| *m -= inside * above);
                }
                left[j * n..j * n + first].iter_mut().zip(&row).for_each(|(left, &m)| *left = m as f32);
                rows.push(row);
                let inside: f64 = (j + 1..end).map(|i| by_row(i, j).powi(2) * own(i)).sum();
                weights[order[j]] = own(j) + inside;
            }
        }
        Ok(Self { order, n_block, left, weights })
    }

    /// What the error of each row costs that [`Outputs::solve`] reports, twice.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Rounds a weight `[n_rows, n_columns]` to a grid as [`solve`](super::solve) does, each block of rows as those before it
    /// want it. The errors of rows that come with the codes are those of `e`.
    ///
    /// # Errors
    /// As [`solve`](super::solve).
    pub fn solve(
        &self,
        weight: MatRef<'_>,
        factor: &Factor,
        grid: &Grid,
        settings: SolveSettings,
    ) -> Result<Codes, CompressError> {
        let (n_rows, n_columns) = weight.dim();
        if n_rows != self.order.len() {
            return Err(CompressError::Channels { columns: n_rows, channels: self.order.len() });
        }
        let mut codes = Codes::empty(grid, n_rows, n_columns);
        let mut deltas = Array2::<f32>::zeros((n_rows, n_columns));
        for first in (0..n_rows).step_by(self.n_block) {
            let rows = &self.order[first..n_rows.min(first + self.n_block)];
            let asked = weight.select(Axis(0), rows);
            let mut target = asked.clone();
            self.make_up_for(&mut target, &deltas, first);
            let chunk_rows = self.n_block.div_ceil(N_CHUNKS).max(SMALLEST_CHUNK);
            let found = solve_in_chunks(target.view(), factor, grid, settings, chunk_rows)?;
            let wrong = found.decode() - asked;
            for (place, wrong) in (first..).zip(wrong.rows()) {
                deltas.row_mut(place).assign(&wrong);
            }
            codes.put_rows(&found, rows);
        }
        Ok(codes)
    }

    /// Takes what the `first` rows before it did wrong from a block's target.
    fn make_up_for(&self, target: &mut Array2<f32>, deltas: &Array2<f32>, first: usize) {
        let (n, (n_rows, n_columns)) = (self.order.len(), target.dim());
        if first == 0 {
            return;
        }
        let left = FaerRef::from_row_major_slice(&self.left, n, n).submatrix(first, 0, n_rows, first);
        let deltas = deltas.as_slice().expect("made in row order");
        let deltas = FaerRef::from_row_major_slice(deltas, n, n_columns).subrows(0, first);
        let target = target.as_slice_mut().expect("selected in row order");
        let mut columns: Vec<(usize, MatMut<'_, f32>)> = Vec::new();
        let mut rest = MatMut::from_row_major_slice_mut(target, n_rows, n_columns);
        for at in (0..n_columns).step_by(CHUNK_COLUMNS) {
            let (piece, after) = rest.split_at_col_mut(CHUNK_COLUMNS.min(n_columns - at));
            columns.push((at, piece));
            rest = after;
        }
        columns.into_par_iter().for_each(|(at, piece)| {
            let deltas = deltas.subcols(at, piece.ncols());
            matmul(piece, Accum::Add, left, deltas, -1.0, Par::Seq);
        });
    }
}

/// The factor of the matrix turned around, or `None` where there is none that is of use.
fn sound_factor(n: usize, at: impl Fn(usize, usize) -> f64 + Sync) -> Option<Lower> {
    let lower = of_the_reverse(n, at)?;
    let is_sound = |j: usize| lower.at(j, j) > 0.0 && lower.column(j).iter().all(|x| x.is_finite());
    (0..n).into_par_iter().all(is_sound).then_some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        LayerStats,
        quant::{
            solve,
            test_support::{moments, numbers},
        },
    };

    fn matrix(hessian: &Hessian) -> Array2<f64> {
        let n = hessian.n_columns();
        Array2::from_shape_fn((n, n), |(i, j)| f64::from(hessian.at(i, j)))
    }

    /// `tr(G δ H δᵀ)`.
    fn cost(gradients: &Hessian, inputs: &Hessian, delta: &Array2<f32>) -> f64 {
        let delta = delta.mapv(f64::from);
        (matrix(gradients).dot(&delta).dot(&matrix(inputs)) * &delta).sum()
    }

    #[test]
    fn the_cost_is_that_of_what_is_rounded() {
        // One row a block: Σ D e H eᵀ is the cost itself, whatever the error.
        let (gradients, inputs) = (moments(48, 1), moments(64, 5));
        let outputs = Outputs::in_blocks(&gradients, 0.0, 1).unwrap();
        let delta = numbers(48, 64, 9);
        let ordered = delta.select(Axis(0), &outputs.order);
        let left = Array2::from_shape_vec((48, 48), outputs.left.clone()).unwrap();
        let e = (&ordered + &left.dot(&ordered)).mapv(f64::from);
        let rows = (e.dot(&matrix(&inputs)) * &e).sum_axis(Axis(1));
        let found: f64 =
            outputs.order.iter().zip(&rows).map(|(&row, error)| outputs.weights[row] * error).sum();
        let expected = cost(&gradients, &inputs, &delta);
        assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
    }

    #[test]
    fn blocks_have_nothing_in_common() {
        // G = Mᵀ D M: with M = 1 + left, D is M⁻ᵀ G M⁻¹. M is undone row by row, as its blocks' own parts are 1.
        let (n, n_block) = (48, 16);
        let gradients = moments(n, 1);
        let outputs = Outputs::in_blocks(&gradients, 0.0, n_block).unwrap();
        let mut undone = Array2::<f64>::eye(n);
        for j in 0..n {
            for k in 0..j {
                let left = f64::from(outputs.left[j * n + k]);
                let above = undone.row(k).to_owned();
                undone.row_mut(j).scaled_add(-left, &above);
            }
        }
        let g = matrix(&gradients).select(Axis(0), &outputs.order).select(Axis(1), &outputs.order);
        let d = undone.t().dot(&g).dot(&undone);
        for ((j, k), &entry) in d.indexed_iter() {
            let size = (d[[j, j]] * d[[k, k]]).sqrt();
            if j / n_block != k / n_block {
                assert!(entry.abs() < 1e-4 * size, "{j} {k}: {entry} beside {size}");
            }
        }
        for (j, &row) in outputs.order.iter().enumerate() {
            assert!((d[[j, j]] - outputs.weights[row]).abs() < 1e-4 * d[[j, j]], "{j}");
        }
    }

    #[test]
    fn rows_make_up_for_each_other() {
        let (gradients, inputs) = (moments(96, 1), moments(64, 5));
        let weight = numbers(96, 64, 9);
        for grid in [Grid::q4_0(), Grid::q4_1(), Grid::iq4_nl(), Grid::q5_0()] {
            let factor = Factor::new(&inputs, &grid, 0.01, true).unwrap();
            let alone = solve(weight.view(), &factor, &grid, SolveSettings::default()).unwrap();
            let of = |codes: &Codes| cost(&gradients, &inputs, &(codes.decode() - &weight));
            for n_block in [1, 16] {
                let outputs = Outputs::in_blocks(&gradients, 0.01, n_block).unwrap();
                let together =
                    outputs.solve(weight.view(), &factor, &grid, SolveSettings::default()).unwrap();
                assert!(of(&together) < 0.8 * of(&alone), "{grid:?}: {} {}", of(&together), of(&alone));
            }
        }
    }

    #[test]
    fn rows_with_nothing_in_common_are_rounded_alone() {
        let mut gradients = Hessian::empty(40);
        gradients.observe(Array2::from_diag(&ndarray::Array1::from_shape_fn(40, |i| 1.0 + i as f32)).view());
        let (inputs, weight, grid) = (moments(64, 5), numbers(40, 64, 9), Grid::q4_0());
        let factor = Factor::new(&inputs, &grid, 0.01, true).unwrap();
        let outputs = Outputs::new(&gradients, 0.0).unwrap();
        let together = outputs.solve(weight.view(), &factor, &grid, SolveSettings::default()).unwrap();
        assert_eq!(together, solve(weight.view(), &factor, &grid, SolveSettings::default()).unwrap());
        assert!((outputs.weights[3] - 16.0).abs() < 1e-4, "{}", outputs.weights[3]);
    }

    #[test]
    fn threads_change_nothing() {
        let (gradients, inputs, weight) = (moments(96, 1), moments(256, 5), numbers(96, 256, 9));
        let grid = Grid::q4_k();
        let factor = Factor::new(&inputs, &grid, 0.01, true).unwrap();
        let run = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let outputs = Outputs::new(&gradients, 0.01).unwrap();
                outputs.solve(weight.view(), &factor, &grid, SolveSettings::default()).unwrap()
            })
        };
        assert_eq!(run(1), run(3));
    }
}
