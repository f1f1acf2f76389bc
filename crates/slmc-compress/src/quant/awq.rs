//! Activation-aware scaling (AWQ, Lin et al. 2023, arXiv:2306.00978, section 3.2): input channels that carry much are made
//! larger before rounding, and what feeds them smaller by as much. The function stays; the rounding errors move to
//! channels where they matter less. Nothing is rounded here.

use faer::{Accum, Mat, MatRef as FaerRef, Par, linalg::matmul::matmul};
use ndarray::Array2;
use rayon::prelude::*;

use super::hessian::Hessian;
use crate::MatRef;

/// Exponents that are tried: 0 to 1.
const N_STEPS: usize = 20;

/// How an input's channels are scaled, and what that gives.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelScales {
    /// For each input channel what its weights are multiplied by, and what feeds it divided.
    pub scales: Vec<f32>,
    /// The mean square of what each column of the scaled weight is multiplied by.
    pub importance: Vec<f32>,
    /// The exponent of the activations' magnitude that was best.
    pub exponent: f64,
    /// Weighted output error with no scales.
    pub error_before: f64,
    /// The same with these.
    pub error: f64,
}

/// A weight as a format would store it, from the weight and for each column the mean square of what it is multiplied by.
pub type RoundBy<'r> = dyn Fn(MatRef<'_>, &[f32]) -> Array2<f32> + Sync + 'r;

/// The best scales `s_j = a_j^α` for weights `[rows, n_columns]` that share an input, each with what its rows' errors cost, `a_j`
/// being the root mean square of channel `j` (of each group of `tied` channels together: heads that read one value head must
/// scale alike). The error is that of the layer's output by the Hessian.
pub fn channel_scales(
    weights: &[(MatRef<'_>, &[f32])],
    hessian: &Hessian,
    tied: Option<&[usize]>,
    round: &RoundBy<'_>,
) -> ChannelScales {
    let n = hessian.n_columns();
    let magnitudes = magnitudes(hessian, tied);
    let full: Vec<f32> = (0..n * n).map(|at| hessian.at(at / n, at % n)).collect();
    let tried: Vec<(f64, Vec<f32>, f64)> = (0..N_STEPS)
        .into_par_iter()
        .map(|step| {
            let exponent = step as f64 / N_STEPS as f64;
            let scales = scales(&magnitudes, exponent);
            let error = weights.iter().map(|weight| scaled_error(*weight, &scales, &full, round)).sum();
            (exponent, scales, error)
        })
        .collect();
    let error_before = tried[0].2;
    let best = tried.into_iter().reduce(|best, next| if next.2 < best.2 { next } else { best });
    let (exponent, scales, error) = best.unwrap_or((0.0, vec![1.0; n], error_before));
    let importance = scaled_importance(&hessian.diagonal(), &scales);
    ChannelScales { scales, importance, exponent, error_before, error }
}

/// Root mean squares, up to a common factor.
fn magnitudes(hessian: &Hessian, tied: Option<&[usize]>) -> Vec<f64> {
    let squares: Vec<f64> = hessian.diagonal().iter().map(|&h| f64::from(h)).collect();
    let Some(tied) = tied else { return squares.iter().map(|square| square.sqrt()).collect() };
    let mut sums = vec![0.0; tied.iter().max().map_or(0, |max| max + 1)];
    tied.iter().zip(&squares).for_each(|(&to, square)| sums[to] += square);
    tied.iter().map(|&to| sums[to].sqrt()).collect()
}

/// Scales whose geometric mean is 1. Channels that are never active are left alone.
fn scales(magnitudes: &[f64], exponent: f64) -> Vec<f32> {
    let logarithms: Vec<f64> = magnitudes.iter().filter(|&&m| m > 0.0).map(|m| m.ln()).collect();
    let mean = logarithms.iter().sum::<f64>() / logarithms.len().max(1) as f64;
    let scale =
        |&m: &f64| if m > 0.0 { ((m.ln() - mean) * exponent).exp().clamp(1e-4, 1e4) as f32 } else { 1.0 };
    magnitudes.iter().map(scale).collect()
}

/// The mean square of what each column of a scaled weight is multiplied by; `squares` are those of the columns as they were.
fn scaled_importance(squares: &[f32], scales: &[f32]) -> Vec<f32> {
    squares.iter().zip(scales).map(|(square, s)| square / (s * s)).collect()
}

/// `Σ r_i (Δ H Δᵀ)_ii` with `Δ = W - round(W diag(s)) diag(1/s)` and `r` what the rows' errors cost.
fn scaled_error(
    (weight, costs): (MatRef<'_>, &[f32]),
    scales: &[f32],
    hessian: &[f32],
    round: &RoundBy<'_>,
) -> f64 {
    let (rows, n) = weight.dim();
    let scaled = Array2::from_shape_fn((rows, n), |(i, j)| weight[[i, j]] * scales[j]);
    let squares: Vec<f32> = (0..n).map(|j| hessian[j * n + j]).collect();
    let rounded = round(scaled.view(), &scaled_importance(&squares, scales));
    let delta: Vec<f32> = rounded.indexed_iter().map(|((i, j), v)| weight[[i, j]] - v / scales[j]).collect();
    let delta_ref = FaerRef::from_row_major_slice(&delta, rows, n);
    let mut product = Mat::<f32>::zeros(rows, n);
    let hessian = FaerRef::from_row_major_slice(hessian, n, n);
    matmul(product.as_mut(), Accum::Replace, delta_ref, hessian, 1.0, Par::Seq);
    let of_row =
        |i: usize| (0..n).map(|j| f64::from(delta[i * n + j]) * f64::from(product[(i, j)])).sum::<f64>();
    costs.iter().enumerate().map(|(i, &cost)| f64::from(cost) * of_row(i)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LayerStats;

    /// To the nearest of sixteen steps of each row's largest.
    fn coarse(weight: MatRef<'_>, _: &[f32]) -> Array2<f32> {
        let largest: Vec<f32> =
            weight.rows().into_iter().map(|r| r.iter().fold(0.0_f32, |m, w| m.max(w.abs()))).collect();
        Array2::from_shape_fn(weight.dim(), |(i, j)| {
            (weight[[i, j]] / largest[i] * 7.0).round() * largest[i] / 7.0
        })
    }

    #[test]
    fn channels_that_carry_much_are_scaled_up() {
        let inputs = Array2::from_shape_fn((300, 32), |(t, c)| {
            ((t * 7919 + c * 104_729) as f32).sin() * if c % 8 == 3 { 30.0 } else { 1.0 }
        });
        let mut hessian = Hessian::empty(32);
        hessian.observe(inputs.view());
        let weight = Array2::from_shape_fn((24, 32), |(i, j)| ((i * 31 + j * 17) as f32).sin());
        let found = channel_scales(&[(weight.view(), &[1.0; 24])], &hessian, None, &coarse);
        assert!(found.exponent > 0.0 && found.error < 0.9 * found.error_before, "{found:?}");
        assert!(found.scales[3] > 1.5 * found.scales[4]);
        // Channels 0 to 15 read what channels 16 to 31 read, too.
        let tied: Vec<usize> = (0..32).map(|c| c % 16).collect();
        let found = channel_scales(&[(weight.view(), &[1.0; 24])], &hessian, Some(&tied), &coarse);
        assert!((0..16).all(|c| found.scales[c] == found.scales[c + 16]));
    }
}
