//! How much each MLP channel adds to the residual stream, and which ones to keep.
//!
//! Channel `j` of the gated product `a = act(gate x) * (up x)` adds `a_j * W_down[:, j]` to the residual stream. Its
//! score is the root mean square of that vector's norm over the calibration tokens,
//! `sqrt(E[a_j^2]) * ||W_down[:, j]||`. This is Wanda's `|W_ij| * ||X_j||` (Sun et al. 2023, arXiv:2306.11695,
//! section 3) summed over a whole column in the l2 norm, and takes the place of the activation-only width scores of
//! Minitron (Muralidharan et al. 2024, arXiv:2407.14679, section 2.2), which do not see the weights behind.

use crate::{CompressError, LayerStats, MatRef};

/// Sums of squares of the activations that enter a layer, one per channel.
#[derive(Clone, Debug)]
pub struct ChannelStats {
    n_tokens: u64,
    sum_squares: Vec<f64>,
}

impl ChannelStats {
    /// Nothing observed yet.
    pub fn empty(n_channels: usize) -> Self {
        <Self as LayerStats>::empty(n_channels)
    }

    /// Tokens observed.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Mean square of each channel.
    ///
    /// # Errors
    /// [`CompressError::NoTokens`]; [`CompressError::NotFinite`] when an activation was.
    pub fn mean_squares(&self) -> Result<Vec<f64>, CompressError> {
        if self.n_tokens == 0 {
            return Err(CompressError::NoTokens);
        }
        let means: Vec<f64> = self.sum_squares.iter().map(|sum| sum / self.n_tokens as f64).collect();
        match means.iter().position(|mean| !mean.is_finite()) {
            Some(channel) => {
                Err(CompressError::NotFinite { what: "the mean square", channel, value: means[channel] })
            }
            None => Ok(means),
        }
    }
}

impl LayerStats for ChannelStats {
    fn empty(n_columns: usize) -> Self {
        Self { n_tokens: 0, sum_squares: vec![0.0; n_columns] }
    }

    fn observe(&mut self, inputs: MatRef<'_>) {
        assert_eq!(inputs.ncols(), self.sum_squares.len(), "a batch has the layer's channels");
        for token in inputs.rows() {
            for (sum, &activation) in self.sum_squares.iter_mut().zip(token) {
                *sum += f64::from(activation) * f64::from(activation);
            }
        }
        self.n_tokens += inputs.nrows() as u64;
    }

    fn merge(&mut self, other: Self) {
        assert_eq!(other.sum_squares.len(), self.sum_squares.len(), "merged statistics are of one layer");
        for (sum, more) in self.sum_squares.iter_mut().zip(other.sum_squares) {
            *sum += more;
        }
        self.n_tokens += other.n_tokens;
    }
}

/// What each channel is worth: `sqrt(E[a_j^2]) * ||W_down[:, j]||`, for `w_down` of `[d_model, d_ff]`.
///
/// # Errors
/// [`CompressError::Channels`] when weight and statistics have different widths, [`CompressError::NoTokens`], and
/// [`CompressError::NotFinite`].
pub fn channel_scores(stats: &ChannelStats, w_down: MatRef<'_>) -> Result<Vec<f64>, CompressError> {
    let (columns, channels) = (w_down.ncols(), stats.sum_squares.len());
    if columns != channels {
        return Err(CompressError::Channels { columns, channels });
    }
    let mut column_squares = vec![0.0_f64; columns];
    for row in w_down.rows() {
        for (sum, &weight) in column_squares.iter_mut().zip(row) {
            *sum += f64::from(weight) * f64::from(weight);
        }
    }
    if let Some(channel) = column_squares.iter().position(|sum| !sum.is_finite()) {
        let value = column_squares[channel];
        return Err(CompressError::NotFinite { what: "the down column's norm", channel, value });
    }
    let means = stats.mean_squares()?;
    Ok(means.iter().zip(&column_squares).map(|(mean, squares)| mean.sqrt() * squares.sqrt()).collect())
}

/// The `n` channels of highest score, ascending by index; all when there are not that many. Of equal scores
/// the lower index stays.
pub fn keep_top(scores: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(n);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn scores_are_root_mean_square_times_column_norm() {
        let mut stats = ChannelStats::empty(3);
        stats.observe(array![[1.0, -2.0, 0.0], [7.0, 2.0, 0.0]].view());
        let w_down = array![[3.0, 1.0, 5.0], [4.0, 0.0, 5.0]];
        // sqrt((1 + 49) / 2) * 5, sqrt(4) * 1, 0
        assert_eq!(channel_scores(&stats, w_down.view()).unwrap(), [25.0, 2.0, 0.0]);
    }

    #[test]
    fn merging_is_observing_both() {
        let (a, b) = (array![[0.5, 3.0]], array![[0.25, -1.0], [8.0, 0.125]]);
        let mut whole = ChannelStats::empty(2);
        whole.observe(a.view());
        whole.observe(b.view());
        let (mut left, mut right) = (ChannelStats::empty(2), ChannelStats::empty(2));
        left.observe(a.view());
        right.observe(b.view());
        left.merge(right);
        assert_eq!(left.n_tokens(), 3);
        assert_eq!(left.mean_squares().unwrap(), whole.mean_squares().unwrap());
    }

    #[test]
    fn the_best_are_kept_in_order() {
        assert_eq!(keep_top(&[1.0, 5.0, 3.0, 5.0, 3.0], 3), [1, 2, 3]);
        assert_eq!(keep_top(&[2.0, 2.0, 2.0], 2), [0, 1]);
        assert_eq!(keep_top(&[1.0], 9), [0]);
        assert!(keep_top(&[1.0], 0).is_empty());
    }

    #[test]
    fn nothing_observed_and_nothing_finite_are_errors() {
        let w_down = array![[1.0, 1.0]];
        let mut stats = ChannelStats::empty(2);
        assert_eq!(channel_scores(&stats, w_down.view()), Err(CompressError::NoTokens));
        stats.observe(array![[1.0, f32::NAN]].view());
        let error = channel_scores(&stats, w_down.view()).unwrap_err();
        assert!(matches!(error, CompressError::NotFinite { channel: 1, .. }));
        let error = channel_scores(&stats, array![[1.0]].view()).unwrap_err();
        assert_eq!(error, CompressError::Channels { columns: 1, channels: 2 });
    }
}
