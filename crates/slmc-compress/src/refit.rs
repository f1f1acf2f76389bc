//! Refits a projection so that what it adds to the residual stream makes up for what else is wrong there.
//!
//! With inputs `a`, and `m` what is missing from the stream after the projection (the teacher's stream less the
//! student's), `W' = W + M (G + lambda I)^-1` with `G = sum c a a^T` and `M = sum c m a^T` minimises
//! `sum c ||m - (W' - W) a||^2 + lambda ||W' - W||^2`: layer-wise distillation in closed form. For the projection before
//! removed blocks it is the linear stand-in of ReplaceMe (Shopkhoev et al. 2025, arXiv:2505.02819, section 3), with the
//! projection's own inputs in the place of its outputs.

use faer::{Accum, Mat, MatMut, MatRef as FaerRef, Par, linalg::matmul::matmul};
use ndarray::Array2;
use rayon::prelude::*;

use crate::{
    CompressError, LayerStats, MatRef,
    least_squares::{inner, next_damping, quadratic, shift},
    quant::Hessian,
};

/// Rows of `M` that are one piece of work, fixed so that sums come out alike on any number of threads.
const PANEL: usize = 64;
/// Tokens whose products are summed at a time.
const TOKENS: usize = 1024;

/// What a refit is computed from.
///
/// Takes `4 * d_in * (d_in + d_out)` bytes.
#[derive(Clone, Debug)]
pub struct RefitStats {
    gram: Hessian,
    d_out: usize,
    /// `M`, `[d_out, d_in]`.
    cross: Vec<f32>,
    /// `sum c ||m||^2`.
    missing: f64,
}

impl RefitStats {
    /// Nothing observed yet, for a projection of `d_in` inputs and `d_out` outputs.
    pub fn empty(d_in: usize, d_out: usize) -> Self {
        Self { gram: Hessian::empty(d_in), d_out, cross: vec![0.0; d_in * d_out], missing: 0.0 }
    }

    /// Takes in a batch: inputs `[n_tokens, d_in]`, what is missing `[n_tokens, d_out]`, and how much each token counts.
    ///
    /// # Panics
    /// When the sizes differ from those of the statistics or of each other.
    pub fn observe(&mut self, inputs: MatRef<'_>, missing: MatRef<'_>, weights: &[f32]) {
        let (n, d_in, d_out) = (inputs.nrows(), self.gram.n_columns(), self.d_out);
        assert_eq!((missing.nrows(), weights.len()), (n, n), "a batch has one number of tokens");
        assert_eq!((inputs.ncols(), missing.ncols()), (d_in, d_out), "a batch has the projection's sizes");
        self.gram.observe_weighted(inputs, weights);
        let scaled = |rows: MatRef<'_>, weights: &[f32]| -> Vec<f32> {
            let rows = rows.rows().into_iter().zip(weights);
            rows.flat_map(|(row, weight)| row.into_iter().map(move |x| x * weight.sqrt()).collect::<Vec<_>>())
                .collect()
        };
        let chunks = |rows: MatRef<'_>| -> Vec<Vec<f32>> {
            let chunks = rows.axis_chunks_iter(ndarray::Axis(0), TOKENS).zip(weights.chunks(TOKENS));
            chunks.map(|(rows, weights)| scaled(rows, weights)).collect()
        };
        for (inputs, missing) in chunks(inputs).iter().zip(&chunks(missing)) {
            self.missing += missing.iter().map(|&m| f64::from(m) * f64::from(m)).sum::<f64>();
            let n = inputs.len() / d_in;
            let inputs = FaerRef::from_row_major_slice(inputs, n, d_in);
            let missing = FaerRef::from_row_major_slice(missing, n, d_out);
            self.cross.par_chunks_mut(PANEL * d_in).enumerate().for_each(|(panel, rows)| {
                let n_rows = rows.len() / d_in;
                let out = MatMut::from_row_major_slice_mut(rows, n_rows, d_in);
                let own = missing.subcols(panel * PANEL, n_rows).transpose();
                matmul(out, Accum::Add, own, inputs, 1.0, Par::Seq);
            });
        }
    }
}

/// A projection that was refitted. Its errors are those on the tokens that it was fitted to.
#[derive(Clone, Debug)]
pub struct Refitted {
    /// The new weight, `[d_out, d_in]`.
    pub weight: Array2<f32>,
    /// Damping that was used: more than what was asked for when the matrix could not be factored with that.
    pub damping: f64,
    /// Mean over tokens of `c ||m||^2`.
    pub error_before: f64,
    /// The same with the new weight, before it was rounded to f32; at most `error_before`.
    pub error: f64,
}

/// Refits `weight` `[d_out, d_in]`. `damping` is lambda as a share of the mean of `G`'s diagonal; 0.01 is usual.
///
/// # Errors
/// [`CompressError::Channels`], [`CompressError::Damping`] for requests that do not fit; [`CompressError::NoTokens`]
/// and [`CompressError::NotFinite`] for statistics or weights that are no use.
pub fn refit(weight: MatRef<'_>, stats: &RefitStats, damping: f64) -> Result<Refitted, CompressError> {
    let (d_out, d_in) = weight.dim();
    if (d_out, d_in) != (stats.d_out, stats.gram.n_columns()) {
        return Err(CompressError::Channels { columns: d_in, channels: stats.gram.n_columns() });
    }
    if !damping.is_finite() || damping < 0.0 {
        return Err(CompressError::Damping(damping));
    }
    stats.gram.check()?;
    if let Some(at) = stats.cross.iter().position(|x| !x.is_finite()) {
        let value = stats.cross[at].into();
        return Err(CompressError::NotFinite { what: "what is missing", channel: at / d_in, value });
    }
    let gram = Mat::from_fn(d_in, d_in, |i, j| f64::from(stats.gram.at(i, j)));
    let cross = Mat::from_fn(d_out, d_in, |i, j| f64::from(stats.cross[i * d_in + j]));
    let n_tokens = stats.gram.n_tokens() as f64;
    let mut damping = damping;
    loop {
        let fit = shift(&gram, &cross, damping).and_then(|shift| {
            let error = stats.missing + quadratic(&shift, &gram) - 2.0 * inner(&shift, &cross);
            // The exact solution never does worse than no shift at all: if this one does, the sums' rounding spoilt it.
            (error <= stats.missing * (1.0 + 1e-6)).then(|| (shift, error.clamp(0.0, stats.missing)))
        });
        if let Some((shift, error)) = fit {
            let weight = Array2::from_shape_fn((d_out, d_in), |(i, j)| {
                (f64::from(weight[[i, j]]) + shift[(i, j)]) as f32
            });
            let [error_before, error] = [stats.missing, error].map(|sum| sum / n_tokens);
            return Ok(Refitted { weight, damping, error_before, error });
        }
        damping = next_damping(damping).ok_or(CompressError::Singular(damping))?;
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    fn numbers(rows: usize, columns: usize, step: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * step + j * 101) % 61) as f32 / 16.0 - 2.0)
    }

    #[test]
    fn what_a_linear_map_can_give_is_found() {
        let inputs = numbers(TOKENS + 40, 5, 37);
        let (weight, wanted) = (numbers(PANEL + 3, 5, 13), numbers(PANEL + 3, 5, 29));
        let missing = inputs.dot(&(&wanted - &weight).t());
        let mut stats = RefitStats::empty(5, PANEL + 3);
        let weights: Vec<f32> = (0..inputs.nrows()).map(|i| 0.5 + (i % 3) as f32).collect();
        // In two batches, one of which is more than a piece.
        let ((a, b), (m, n)) =
            (inputs.view().split_at(ndarray::Axis(0), 7), missing.view().split_at(ndarray::Axis(0), 7));
        stats.observe(a, m, &weights[..7]);
        stats.observe(b, n, &weights[7..]);
        let fitted = refit(weight.view(), &stats, 0.0).unwrap();
        for (found, wanted) in fitted.weight.iter().zip(&wanted) {
            assert!((found - wanted).abs() < 1e-3, "{found} {wanted}");
        }
        assert_eq!(fitted.damping, 0.0);
        assert!(fitted.error < 1e-5 * fitted.error_before, "{fitted:?}");
    }

    #[test]
    fn tokens_count_as_much_as_they_are_said_to() {
        // One weight, two tokens that ask for 1 and for 4: the mean by weight.
        let mut stats = RefitStats::empty(1, 1);
        stats.observe(array![[1.0], [1.0]].view(), array![[1.0], [4.0]].view(), &[2.0, 1.0]);
        let fitted = refit(array![[0.0]].view(), &stats, 0.0).unwrap();
        assert!((fitted.weight[[0, 0]] - 2.0).abs() < 1e-6);
        // 2 · 1 + 1 · 9 squares are left of 2 · 1 + 16, over two tokens.
        let (before, after) = ((2.0 + 16.0) / 2.0, (2.0 + 4.0) / 2.0);
        assert!(
            (fitted.error_before - before).abs() < 1e-5 && (fitted.error - after).abs() < 1e-5,
            "{fitted:?}"
        );
    }

    #[test]
    fn requests_are_checked() {
        let stats = RefitStats::empty(2, 1);
        let weight = array![[1.0, 2.0]];
        assert_eq!(refit(weight.view(), &stats, 0.01).unwrap_err(), CompressError::NoTokens);
        let mut stats = stats;
        stats.observe(array![[1.0, 0.0]].view(), array![[f32::NAN]].view(), &[1.0]);
        assert!(matches!(
            refit(weight.view(), &stats, 0.01).unwrap_err(),
            CompressError::NotFinite { channel: 0, .. }
        ));
        assert_eq!(refit(weight.view(), &stats, -1.0).unwrap_err(), CompressError::Damping(-1.0));
        let error = refit(array![[1.0]].view(), &stats, 0.01).unwrap_err();
        assert_eq!(error, CompressError::Channels { columns: 1, channels: 2 });
    }
}
