//! The Gram matrix of the activations that enter a layer: which channels say the same.

use faer::{Accum, MatMut, MatRef as FaerRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use crate::{CompressError, LayerStats, MatRef};

/// Rows of the Gram matrix that are one piece of work: fixed, so that sums come out alike on any number
/// of threads, and small enough that little is computed above the diagonal.
const PANEL: usize = 128;
/// Tokens widened to f64 at a time.
const TOKENS: usize = 1024;

/// `G = sum over tokens of a a^T`, in f64, for the activations `a` that enter a layer.
///
/// Takes `n_channels^2 * 8` bytes: 19 MB for 1536 channels.
#[derive(Clone, Debug)]
pub struct GramStats {
    n_channels: usize,
    n_tokens: u64,
    /// Row order; of each row only what lies on and left of the diagonal is meant.
    lower: Vec<f64>,
}

impl GramStats {
    /// Nothing observed yet.
    pub fn empty(n_channels: usize) -> Self {
        <Self as LayerStats>::empty(n_channels)
    }

    /// Channels of the layer's input.
    pub fn n_channels(&self) -> usize {
        self.n_channels
    }

    /// Tokens observed.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The sum of products of two channels.
    ///
    /// # Panics
    /// When there is no such channel.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        assert!(i.max(j) < self.n_channels, "channels are below {}", self.n_channels);
        self.lower[i.max(j) * self.n_channels + i.min(j)]
    }

    /// That something was observed, and all of it finite.
    pub(crate) fn check(&self) -> Result<(), CompressError> {
        if self.n_tokens == 0 {
            return Err(CompressError::NoTokens);
        }
        // A bad activation makes its own square bad, so the diagonal tells.
        match (0..self.n_channels).find(|&i| !self.at(i, i).is_finite()) {
            Some(channel) => {
                let value = self.at(channel, channel);
                Err(CompressError::NotFinite { what: "the sum of squares", channel, value })
            }
            None => Ok(()),
        }
    }
}

impl LayerStats for GramStats {
    fn empty(n_columns: usize) -> Self {
        Self { n_channels: n_columns, n_tokens: 0, lower: vec![0.0; n_columns * n_columns] }
    }

    fn observe(&mut self, inputs: MatRef<'_>) {
        let n = self.n_channels;
        assert_eq!(inputs.ncols(), n, "a batch has the layer's channels");
        if n == 0 {
            return;
        }
        for tokens in inputs.axis_chunks_iter(ndarray::Axis(0), TOKENS) {
            let wide: Vec<f64> = tokens.iter().map(|&a| f64::from(a)).collect();
            let wide = FaerRef::from_row_major_slice(&wide, tokens.nrows(), n);
            self.lower.par_chunks_mut(PANEL * n).enumerate().for_each(|(panel, rows)| {
                let (first, n_rows) = (panel * PANEL, rows.len() / n);
                let end = first + n_rows;
                let rows = MatMut::from_row_major_slice_mut(rows, n_rows, n).subcols_mut(0, end);
                let own = wide.subcols(first, n_rows).transpose();
                matmul(rows, Accum::Add, own, wide.subcols(0, end), 1.0, Par::Seq);
            });
        }
        self.n_tokens += inputs.nrows() as u64;
    }

    fn merge(&mut self, other: Self) {
        assert_eq!(other.n_channels, self.n_channels, "merged statistics are of one layer");
        for (sum, more) in self.lower.iter_mut().zip(other.lower) {
            *sum += more;
        }
        self.n_tokens += other.n_tokens;
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    /// Numbers without a pattern, exact in f32.
    fn batch(n_tokens: usize, n_channels: usize) -> Array2<f32> {
        Array2::from_shape_fn((n_tokens, n_channels), |(t, c)| ((t * 37 + c * 101) % 64) as f32 / 16.0 - 2.0)
    }

    #[test]
    fn every_pair_is_summed() {
        // More channels than a panel and more tokens than a piece, neither a multiple.
        let (n_tokens, n_channels) = (TOKENS + 3, PANEL + 5);
        let inputs = batch(n_tokens, n_channels);
        let mut stats = GramStats::empty(n_channels);
        stats.observe(inputs.view());
        assert_eq!(stats.n_tokens(), n_tokens as u64);
        for (i, j) in [(0, 0), (3, 1), (1, 3), (PANEL, 0), (PANEL - 1, PANEL + 4), (PANEL + 4, PANEL + 4)] {
            let expected: f64 =
                (0..n_tokens).map(|t| f64::from(inputs[[t, i]]) * f64::from(inputs[[t, j]])).sum();
            // The numbers have few bits: the sums are exact in any order.
            assert_eq!(stats.at(i, j), expected, "{i} {j}");
        }
    }

    #[test]
    fn merging_is_observing_both() {
        let inputs = batch(40, 7);
        let mut whole = GramStats::empty(7);
        whole.observe(inputs.view());
        let (mut left, mut right) = (GramStats::empty(7), GramStats::empty(7));
        let (first, rest) = inputs.view().split_at(ndarray::Axis(0), 13);
        left.observe(first);
        // A view whose rows are not next to each other in memory.
        let turned = rest.t().as_standard_layout().into_owned();
        right.observe(turned.t());
        left.merge(right);
        assert_eq!(left.n_tokens(), 40);
        for i in 0..7 {
            for j in 0..=i {
                assert_eq!(left.at(i, j), whole.at(i, j));
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let inputs = Array2::from_shape_fn((70, 300), |(t, c)| ((t * 7919 + c * 104_729) as f32).sin());
        let run = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let mut stats = GramStats::empty(300);
                stats.observe(inputs.view());
                stats.lower
            })
        };
        assert!(run(1) == run(3));
    }
}
