//! Refits a projection after some of its input channels were removed.
//!
//! With `G = sum of a a^T` over calibration tokens, kept channels `K` and removed ones `R`, the projection
//! `W' = W_K + W_R G_RK (G_KK + lambda I)^-1` minimises `sum ||W a - W' a_K||^2 + lambda ||W' - W_K||^2`: the layer's
//! output error, held near the original weights. For `lambda -> 0` it is plain least squares,
//! `W G_:K G_KK^-1`; for any lambda its output error is at most that of just dropping the channels. The layer-wise
//! reconstruction is that of SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, section 3) for whole columns,
//! as in OSSCAR (Meng et al. 2024, arXiv:2403.12983).

use faer::Mat;
use ndarray::Array2;

use crate::{
    CompressError, GramStats, MatRef,
    least_squares::{inner, next_damping, product, quadratic, shift},
};

/// A projection onto fewer input channels. Its errors are measured on the tokens it was fitted to: on fresh text
/// they are larger, the more so the fewer tokens there were for each kept channel.
#[derive(Clone, Debug)]
pub struct Compensated {
    /// The new weight, `[d_model, n_kept]`.
    pub weight: Array2<f32>,
    /// Damping that was used, as a share of the kept channels' mean square sum: more than what was asked for
    /// when the matrix could not be factored with that.
    pub damping: f64,
    /// Mean over tokens of the squared norm of the projection's output.
    pub energy: f64,
    /// Mean squared output error when the channels are just dropped.
    pub error_dropped: f64,
    /// Mean squared output error of the new weight, before it was rounded to f32; at most `error_dropped`.
    pub error: f64,
}

/// Refits `w_down` `[d_model, d_ff]` to the input channels `kept`, ascending. `damping` is lambda as a
/// share of the mean of `G_KK`'s diagonal; 0.01 is usual.
///
/// # Errors
/// [`CompressError::Channels`], [`CompressError::Kept`], [`CompressError::Damping`] for requests that do not fit;
/// [`CompressError::NoTokens`] and [`CompressError::NotFinite`] for statistics or weights that are no use.
pub fn compensate(
    w_down: MatRef<'_>,
    stats: &GramStats,
    kept: &[usize],
    damping: f64,
) -> Result<Compensated, CompressError> {
    check(w_down, stats, kept, damping)?;
    let n_channels = stats.n_channels();
    let removed: Vec<usize> = (0..n_channels).filter(|c| kept.binary_search(c).is_err()).collect();
    let gram = |rows: &[usize], columns: &[usize]| {
        Mat::from_fn(rows.len(), columns.len(), |i, j| stats.at(rows[i], columns[j]))
    };
    let weights = |columns: &[usize]| {
        Mat::from_fn(w_down.nrows(), columns.len(), |i, j| w_down[[i, columns[j]]].into())
    };
    let all: Vec<usize> = (0..n_channels).collect();
    let w_removed = weights(&removed);
    let gram_kept = gram(kept, kept);
    let cross = product(&w_removed, &gram(&removed, kept));
    let dropped = quadratic(&w_removed, &gram(&removed, &removed));
    let energy = quadratic(&weights(&all), &gram(&all, &all));

    let mut damping = damping;
    loop {
        let fit = shift(&gram_kept, &cross, damping).and_then(|shift| {
            let error = dropped + quadratic(&shift, &gram_kept) - 2.0 * inner(&shift, &cross);
            // The exact solution never does worse than no shift at all: if this one does, rounding spoilt it.
            let allowed = dropped + 1e-9 * energy;
            (error <= allowed).then(|| (shift, error.clamp(0.0, dropped)))
        });
        if let Some((shift, error)) = fit {
            let weight = Array2::from_shape_fn((w_down.nrows(), kept.len()), |(i, j)| {
                (f64::from(w_down[[i, kept[j]]]) + shift[(i, j)]) as f32
            });
            let n_tokens = stats.n_tokens() as f64;
            let [energy, error_dropped, error] = [energy, dropped, error].map(|sum| sum / n_tokens);
            return Ok(Compensated { weight, damping, energy, error_dropped, error });
        }
        damping = next_damping(damping).ok_or(CompressError::Singular(damping))?;
    }
}

fn check(w_down: MatRef<'_>, stats: &GramStats, kept: &[usize], damping: f64) -> Result<(), CompressError> {
    let (columns, channels) = (w_down.ncols(), stats.n_channels());
    if columns != channels {
        return Err(CompressError::Channels { columns, channels });
    }
    let in_range = kept.last().is_some_and(|&last| last < channels);
    if !in_range || !kept.is_sorted_by(|a, b| a < b) {
        return Err(CompressError::Kept { n_channels: channels });
    }
    if !damping.is_finite() || damping < 0.0 {
        return Err(CompressError::Damping(damping));
    }
    if let Some(((_, channel), &weight)) = w_down.indexed_iter().find(|(_, w)| !w.is_finite()) {
        return Err(CompressError::NotFinite { what: "a weight", channel, value: weight.into() });
    }
    stats.check()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::LayerStats;

    fn stats(inputs: MatRef<'_>) -> GramStats {
        let mut stats = GramStats::empty(inputs.ncols());
        stats.observe(inputs);
        stats
    }

    #[test]
    fn a_channel_that_repeats_others_is_made_up_for() {
        // Channel 2 is channel 0 plus twice channel 1.
        let inputs = array![[1.0, 0.0, 1.0], [0.0, 1.0, 2.0], [3.0, -1.0, 1.0]];
        let w_down = array![[1.0, 2.0, 10.0], [0.5, 0.0, -4.0]];
        let fitted = compensate(w_down.view(), &stats(inputs.view()), &[0, 1], 0.0).unwrap();
        for (found, expected) in fitted.weight.iter().zip([11.0, 22.0, -3.5, -8.0]) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert_eq!(fitted.damping, 0.0);
        // The dropped channel gave 10 and -4 times 1, 2 and 1.
        assert!((fitted.error_dropped - (100.0 + 16.0) * 6.0 / 3.0).abs() < 1e-9);
        assert!(fitted.error < 1e-9 * fitted.energy);
    }

    #[test]
    fn an_unrelated_channel_is_just_dropped() {
        let inputs = array![[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]];
        let w_down = array![[3.0, 5.0]];
        let fitted = compensate(w_down.view(), &stats(inputs.view()), &[0], 0.01).unwrap();
        assert_eq!(fitted.weight, array![[3.0]]);
        assert_eq!(fitted.error, fitted.error_dropped);
    }

    #[test]
    fn damping_grows_when_it_must_and_says_so() {
        // Channels 0 and 1 are the same, so their Gram matrix has no factor without damping.
        let inputs = array![[1.0, 1.0, 2.0], [2.0, 2.0, 3.0], [0.0, 0.0, 1.0]];
        let w_down = array![[1.0, 1.0, 1.0]];
        let fitted = compensate(w_down.view(), &stats(inputs.view()), &[0, 1], 0.0).unwrap();
        assert!(fitted.damping > 0.0 && fitted.damping <= 1e-6, "{}", fitted.damping);
        assert!(fitted.error < fitted.error_dropped);
        // Both share what the third leaves: 8 / 5 between them.
        assert!((fitted.weight.sum() - 2.0 - 1.6).abs() < 1e-3);
    }

    #[test]
    fn dead_channels_keep_their_weights() {
        let inputs = array![[0.0, 1.0, 1.0], [0.0, 2.0, 2.0]];
        let w_down = array![[7.0, 1.0, 1.0]];
        let fitted = compensate(w_down.view(), &stats(inputs.view()), &[0, 1], 0.0).unwrap();
        assert_eq!(fitted.weight, array![[7.0, 2.0]]);
        let silent = array![[0.0, 0.0, 0.0]];
        let fitted = compensate(w_down.view(), &stats(silent.view()), &[0, 2], 0.01).unwrap();
        assert_eq!(fitted.weight, array![[7.0, 1.0]]);
        assert_eq!((fitted.energy, fitted.error), (0.0, 0.0));
    }

    #[test]
    fn requests_are_checked() {
        let inputs = array![[1.0, 0.5, 1.0]];
        let (w_down, stats) = (array![[1.0, 1.0, 1.0]], stats(inputs.view()));
        for kept in [&[][..], &[0, 3], &[1, 1], &[2, 1]] {
            let error = compensate(w_down.view(), &stats, kept, 0.01).unwrap_err();
            assert_eq!(error, CompressError::Kept { n_channels: 3 }, "{kept:?}");
        }
        let error = compensate(w_down.view(), &stats, &[0], -1.0).unwrap_err();
        assert_eq!(error, CompressError::Damping(-1.0));
        let error = compensate(w_down.view(), &GramStats::empty(3), &[0], 0.01).unwrap_err();
        assert_eq!(error, CompressError::NoTokens);
        let error = compensate(array![[1.0, f32::NAN, 1.0]].view(), &stats, &[0], 0.01).unwrap_err();
        assert!(matches!(error, CompressError::NotFinite { channel: 1, .. }));
        // Nothing removed: nothing changes.
        let whole = compensate(w_down.view(), &stats, &[0, 1, 2], 0.01).unwrap();
        assert_eq!((whole.weight, whole.error), (w_down, 0.0));
    }
}
