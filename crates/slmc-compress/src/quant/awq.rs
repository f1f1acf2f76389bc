//! Activation-aware scaling (AWQ, Lin et al. 2023, arXiv:2306.00978, section 3.2): input channels that carry much are made
//! larger before rounding, and what feeds them smaller by as much. The function stays; the rounding errors move to
//! channels where they matter less. Nothing is rounded here.

use faer::{Accum, Mat, MatRef as FaerRef, Par, linalg::matmul::matmul};
use ndarray::Array2;
use rayon::prelude::*;

use super::hessian::Hessian;
use crate::MatRef;

/// Exponents that are tried first, and the steps to both sides of the best that are tried then.
const COARSE: [f64; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
const CLOSER: [f64; 2] = [0.1, 0.05];

/// How an input's channels are scaled, and what that gives.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundScales {
    /// For each input channel what its weights are multiplied by, and what feeds it divided.
    pub scales: Vec<f32>,
    /// The exponent of the activations' magnitude that was best.
    pub exponent: f64,
    /// Weighted output error with no scales.
    pub error_before: f64,
    /// The same with these.
    pub error: f64,
}

/// A weight as a format would store it, from the weight and for each column the mean square of what it is multiplied by.
pub type RoundBy<'r> = dyn Fn(MatRef<'_>, &[f32]) -> Array2<f32> + Sync + 'r;

/// What a search of scales rests on.
#[derive(Clone, Copy)]
pub struct ScaleSearch<'a> {
    /// Of the layer's input.
    pub hessian: &'a Hessian,
    /// Groups of channels that must scale alike: those of heads that read one value head.
    pub tied: Option<&'a [usize]>,
    /// What the scaled weight is stored as.
    pub round: &'a RoundBy<'a>,
    /// The scales near these that can be kept.
    pub near: &'a (dyn Fn(&[f32]) -> Vec<f32> + Sync),
}

impl ScaleSearch<'_> {
    /// The best scales `s_j = a_j^α` for weights `[rows, n_columns]` that share an input, each with what its rows' errors cost,
    /// `a_j` being the root mean square of channel `j` (of each group of tied channels together). The error is that of the
    /// layer's output by the Hessian.
    pub fn best(&self, weights: &[(MatRef<'_>, &[f32])]) -> FoundScales {
        let n = self.hessian.n_columns();
        let magnitudes = magnitudes(self.hessian, self.tied);
        let full: Vec<f32> = (0..n * n).map(|at| self.hessian.at(at / n, at % n)).collect();
        let squares = self.hessian.diagonal();
        let try_one = |exponent: f64| {
            let scales = (self.near)(&scales(&magnitudes, exponent));
            let of = |(weight, costs): &(MatRef<'_>, &[f32])| {
                let rounded =
                    (self.round)(scaled(*weight, &scales).view(), &importance_of(&squares, &scales));
                let delta = Array2::from_shape_fn(weight.dim(), |(i, j)| {
                    weight[[i, j]] - rounded[[i, j]] / scales[j]
                });
                error_by(delta.view(), costs, &full)
            };
            (exponent, scales.clone(), weights.iter().map(of).sum::<f64>())
        };
        let less = |best: Tried, next: Tried| if next.2 < best.2 { next } else { best };
        let coarse: Vec<Tried> = COARSE.into_par_iter().map(try_one).collect();
        let error_before = coarse[0].2;
        let mut best = coarse.into_iter().reduce(less).unwrap_or((0.0, vec![1.0; n], error_before));
        for step in CLOSER {
            let sides = [best.0 - step, best.0 + step];
            let inside = sides.into_par_iter().filter(|exponent| (0.0..=1.0).contains(exponent));
            let tried: Vec<Tried> = inside.map(try_one).collect();
            best = tried.into_iter().fold(best, less);
        }
        let (exponent, scales, error) = best;
        FoundScales { scales, exponent, error_before, error }
    }
}

/// An exponent, its scales, and their error.
type Tried = (f64, Vec<f32>, f64);

/// The mean square of what each column of a scaled weight is multiplied by; `squares` are those of the columns as they were.
pub fn importance_of(squares: &[f32], scales: &[f32]) -> Vec<f32> {
    squares.iter().zip(scales).map(|(square, s)| square / (s * s)).collect()
}

fn scaled(weight: MatRef<'_>, scales: &[f32]) -> Array2<f32> {
    Array2::from_shape_fn(weight.dim(), |(i, j)| weight[[i, j]] * scales[j])
}

/// Rows of a product that are one piece of work.
const PIECE: usize = 64;

/// `Σ r_i (Δ H Δᵀ)_ii` with `r` what the rows' errors cost.
fn error_by(delta: MatRef<'_>, costs: &[f32], hessian: &[f32]) -> f64 {
    let n = delta.ncols();
    let hessian = FaerRef::from_row_major_slice(hessian, n, n);
    let pieces: Vec<MatRef<'_>> = delta.axis_chunks_iter(ndarray::Axis(0), PIECE).collect();
    let errors = pieces.into_par_iter().zip(costs.par_chunks(PIECE)).map(|(delta, costs)| {
        let numbers: Vec<f32> = delta.iter().copied().collect();
        let mut product = Mat::<f32>::zeros(delta.nrows(), n);
        let delta = FaerRef::from_row_major_slice(&numbers, delta.nrows(), n);
        matmul(product.as_mut(), Accum::Replace, delta, hessian, 1.0, Par::Seq);
        let of_row = |i: usize| {
            (0..n).map(|j| f64::from(numbers[i * n + j]) * f64::from(product[(i, j)])).sum::<f64>()
        };
        costs.iter().enumerate().map(|(i, &cost)| f64::from(cost) * of_row(i)).sum::<f64>()
    });
    // In order: the same bits on any number of threads.
    errors.collect::<Vec<f64>>().into_iter().sum()
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
        let near = |scales: &[f32]| scales.to_vec();
        let search = ScaleSearch { hessian: &hessian, tied: None, round: &coarse, near: &near };
        let found = search.best(&[(weight.view(), &[1.0; 24])]);
        assert!(found.exponent > 0.0 && found.error < 0.9 * found.error_before, "{found:?}");
        assert!(found.scales[3] > 1.5 * found.scales[4]);
        // Channels 0 to 15 read what channels 16 to 31 read, too.
        let tied: Vec<usize> = (0..32).map(|c| c % 16).collect();
        let search = ScaleSearch { tied: Some(&tied), ..search };
        let found = search.best(&[(weight.view(), &[1.0; 24])]);
        assert!((0..16).all(|c| found.scales[c] == found.scales[c + 16]));
    }
}
