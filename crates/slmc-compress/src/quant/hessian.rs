//! Second moments of what enters a layer, tokens weighted: the curvature of the layer's output error.

use faer::{Accum, MatMut, MatRef as FaerRef, Par, linalg::matmul::matmul};
use ndarray::Array2;
use rayon::prelude::*;

use crate::{CompressError, LayerStats, MatRef};

/// Rows that are one piece of work: fixed, so that sums come out alike on any number of threads.
const PANEL: usize = 128;
/// Tokens of a piece: sums of so many are in f32, then added up in f64 where that matters, on the diagonal.
const TOKENS: usize = 1024;

/// `H = Σ over tokens of w · x xᵀ`, in f32; takes `n²·4` bytes.
#[derive(Clone, Debug)]
pub struct Hessian {
    n_columns: usize,
    n_tokens: u64,
    /// Row order; of each row only what lies on and left of the diagonal is meant.
    lower: Vec<f32>,
}

impl Hessian {
    /// Input channels of the layer.
    pub fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// Tokens observed.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Entry of two channels.
    ///
    /// # Panics
    /// When there is no such channel.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        assert!(i.max(j) < self.n_columns, "channels are below {}", self.n_columns);
        self.lower[i.max(j) * self.n_columns + i.min(j)]
    }

    /// Both halves, `[n_columns, n_columns]`.
    pub(crate) fn full(&self) -> Array2<f32> {
        Array2::from_shape_fn((self.n_columns, self.n_columns), |(i, j)| self.at(i, j))
    }

    /// Multiplies all of it, as a mean is made of sums.
    pub fn scale(&mut self, by: f32) {
        self.lower.par_iter_mut().for_each(|sum| *sum *= by);
    }

    /// Sum of weighted squares of each channel.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.n_columns).map(|i| self.at(i, i)).collect()
    }

    /// Takes in a batch `[n_tokens, n_columns]` whose tokens weigh `weights`, 0 or more.
    ///
    /// # Panics
    /// When the batch has another number of columns or not one weight for each token.
    pub fn observe_weighted(&mut self, inputs: MatRef<'_>, weights: &[f32]) {
        assert_eq!(weights.len(), inputs.nrows(), "one weight for each token");
        let mut scaled = Vec::new();
        for (tokens, weights) in inputs.axis_chunks_iter(ndarray::Axis(0), TOKENS).zip(weights.chunks(TOKENS))
        {
            scaled.clear();
            for (token, weight) in tokens.rows().into_iter().zip(weights) {
                let root = weight.sqrt();
                scaled.extend(token.iter().map(|x| x * root));
            }
            self.add(&scaled);
        }
        self.n_tokens += inputs.nrows() as u64;
    }

    /// Takes in `n_tokens` tokens whose second moments `add` adds to the sums, `[n_columns, n_columns]`, on and below the
    /// diagonal: for whoever has faster products at hand.
    pub fn observe_by(&mut self, n_tokens: usize, add: impl FnOnce(&mut [f32])) {
        add(&mut self.lower);
        self.n_tokens += n_tokens as u64;
    }

    /// Adds `other · factor`.
    ///
    /// # Panics
    /// When the other one has another number of columns.
    pub fn add_scaled(&mut self, other: &Self, factor: f32) {
        assert_eq!(other.n_columns, self.n_columns, "statistics are of one layer");
        self.lower.iter_mut().zip(&other.lower).for_each(|(sum, more)| *sum += more * factor);
        self.n_tokens += other.n_tokens;
    }

    /// `Σ over rows of r Δ H Δᵀ` for errors `[rows, n_columns]` and weights of rows: the weighted output error.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn error(&self, errors: MatRef<'_>, row_weights: Option<&[f32]>) -> f64 {
        assert_eq!(errors.ncols(), self.n_columns, "errors are of the layer");
        let n = self.n_columns;
        let rows: Vec<f64> = (0..errors.nrows())
            .into_par_iter()
            .map(|row| {
                let delta = errors.row(row);
                let delta: Vec<f32> = delta.iter().copied().collect();
                let mut sum = 0.0_f64;
                for i in 0..n {
                    let left: f32 =
                        delta[..i].iter().zip(&self.lower[i * n..i * n + i]).map(|(d, h)| d * h).sum();
                    sum += f64::from(delta[i]) * f64::from(2.0 * left + delta[i] * self.lower[i * n + i]);
                }
                sum * row_weights.map_or(1.0, |weights| f64::from(weights[row]))
            })
            .collect();
        rows.iter().sum()
    }

    /// That something was observed, and all of it finite.
    pub(crate) fn check(&self) -> Result<(), CompressError> {
        if self.n_tokens == 0 {
            return Err(CompressError::NoTokens);
        }
        match (0..self.n_columns).find(|&i| !self.at(i, i).is_finite()) {
            Some(channel) => {
                let value = self.at(channel, channel).into();
                Err(CompressError::NotFinite { what: "the sum of squares", channel, value })
            }
            None => Ok(()),
        }
    }

    fn add(&mut self, tokens: &[f32]) {
        let n = self.n_columns;
        if n == 0 {
            return;
        }
        let tokens = FaerRef::from_row_major_slice(tokens, tokens.len() / n, n);
        self.lower.par_chunks_mut(PANEL * n).enumerate().for_each(|(panel, rows)| {
            let (first, n_rows) = (panel * PANEL, rows.len() / n);
            let end = first + n_rows;
            let rows = MatMut::from_row_major_slice_mut(rows, n_rows, n).subcols_mut(0, end);
            matmul(
                rows,
                Accum::Add,
                tokens.subcols(first, n_rows).transpose(),
                tokens.subcols(0, end),
                1.0,
                Par::Seq,
            );
        });
    }
}

impl LayerStats for Hessian {
    fn empty(n_columns: usize) -> Self {
        Self { n_columns, n_tokens: 0, lower: vec![0.0; n_columns * n_columns] }
    }

    fn observe(&mut self, inputs: MatRef<'_>) {
        self.observe_weighted(inputs, &vec![1.0; inputs.nrows()]);
    }

    fn merge(&mut self, other: Self) {
        self.add_scaled(&other, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn tokens_count_by_their_weight() {
        let inputs = array![[1.0, 2.0], [3.0, -1.0]];
        let mut hessian = Hessian::empty(2);
        hessian.observe_weighted(inputs.view(), &[4.0, 0.0]);
        assert_eq!([hessian.at(0, 0), hessian.at(0, 1), hessian.at(1, 1)], [4.0, 8.0, 16.0]);
        // Δ = (1, -1): 4·(1 - 2)² = 4, times the row's weight.
        let errors = array![[1.0, -1.0], [0.5, 0.0]];
        assert_eq!(hessian.error(errors.view(), None), 4.0 + 1.0);
        assert_eq!(hessian.error(errors.view(), Some(&[2.0, 1.0])), 8.0 + 1.0);
    }

    #[test]
    fn threads_change_nothing() {
        let inputs = Array2::from_shape_fn((1100, 150), |(t, c)| ((t * 7919 + c * 104_729) as f32).sin());
        let run = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let mut stats = Hessian::empty(150);
                stats.observe(inputs.view());
                stats.lower
            })
        };
        assert!(run(1) == run(3));
    }
}
