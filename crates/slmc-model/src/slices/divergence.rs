//! How far two models' predictions are apart, from their last hidden states: a band of the vocabulary at a time, so that neither
//! head is held whole.

use rayon::prelude::*;
use slmc_blocks::decode_weight;
use slmc_ir::{Role, TensorKey, Weight, WeightSource};
use slmc_kernels::{HalfRight, Matrix, MatrixMut, Products, Update, multiply, multiply_half, rms_norm};

use crate::{
    LoadError,
    load::{numbers_of, weight_of},
};

/// A model, and what it made of some tokens.
#[derive(Clone, Copy)]
pub struct LastHidden<'a> {
    /// Its weights: final norm and head are read.
    pub source: &'a dyn WeightSource,
    /// Hidden states after the last block, `[n_tokens, d_model]`.
    pub hidden: &'a [f32],
}

/// Rows of the head whose logits exist at a time, and tokens.
const BAND_ROWS: usize = 8192;
const TOKENS: usize = 256;

/// KL(base || model) of what is predicted after each token, in nats.
///
/// # Errors
/// When a tensor is missing or not what the spec says.
///
/// # Panics
/// When both do not have the same vocabulary and number of tokens.
pub fn divergences(
    base: LastHidden<'_>,
    model: LastHidden<'_>,
    products: Products,
) -> Result<Vec<f64>, LoadError> {
    let sides = [Side::of(base)?, Side::of(model)?];
    let [n_tokens, n_rows] = [sides[0].n_tokens(), sides[0].head.n_rows()];
    assert_eq!([n_tokens, n_rows], [sides[1].n_tokens(), sides[1].head.n_rows()], "two models of one kind");
    let mut sums = vec![Sums::default(); n_tokens];
    let mut logits = [const { Vec::new() }; 2];
    for first in (0..n_rows).step_by(BAND_ROWS) {
        let rows: Vec<usize> = (first..n_rows.min(first + BAND_ROWS)).collect();
        let [one, other] = &sides;
        let bands = [one.band(&rows, products)?, other.band(&rows, products)?];
        for (index, sums) in sums.chunks_mut(TOKENS).enumerate() {
            for ((side, band), logits) in sides.iter().zip(&bands).zip(&mut logits) {
                side.logits(band, index * TOKENS, sums.len(), logits);
            }
            let rows = logits[0]
                .par_chunks_exact(band_rows(&bands))
                .zip(logits[1].par_chunks_exact(band_rows(&bands)));
            sums.par_iter_mut().zip(rows).for_each(|(sums, (base, model))| sums.add(base, model));
        }
    }
    Ok(sums.into_iter().map(Sums::divergence).collect())
}

fn band_rows(bands: &[Band; 2]) -> usize {
    bands[0].n_rows
}

/// One model's part.
struct Side {
    normed: Vec<f32>,
    d_model: usize,
    key: TensorKey,
    head: Weight,
}

/// Some rows of a head, as products take them.
struct Band {
    n_rows: usize,
    laid_out: LaidOut,
}

enum LaidOut {
    Single(Vec<f32>),
    Half(HalfRight),
}

impl Side {
    fn of(LastHidden { source, hidden }: LastHidden<'_>) -> Result<Self, LoadError> {
        let spec = source.spec();
        let key = TensorKey::model(if spec.tied_head { Role::Embedding } else { Role::Head });
        let gain = numbers_of(source, TensorKey::model(Role::FinalNorm))?;
        let (mut normed, mut inverse) = (vec![0.0; hidden.len()], vec![0.0; hidden.len() / spec.d_model]);
        rms_norm(hidden, &gain, spec.norm_eps, &mut normed, &mut inverse);
        Ok(Self { normed, d_model: spec.d_model, key, head: weight_of(source, key)? })
    }

    fn n_tokens(&self) -> usize {
        self.normed.len() / self.d_model
    }

    fn band(&self, rows: &[usize], products: Products) -> Result<Band, LoadError> {
        let numbers = decode_weight(&self.head.with_rows(rows));
        let numbers = numbers.map_err(|source| LoadError::Decode { key: self.key, source })?;
        let laid_out = match products {
            Products::Single => LaidOut::Single(numbers),
            Products::Half(units) => LaidOut::Half(HalfRight::new(
                units,
                Matrix::new(&numbers, rows.len(), self.d_model).transposed(),
            )),
        };
        Ok(Band { n_rows: rows.len(), laid_out })
    }

    /// Logits `[n, n_rows]` of a band after `n` tokens.
    fn logits(&self, band: &Band, first: usize, n: usize, logits: &mut Vec<f32>) {
        let d = self.d_model;
        logits.clear();
        logits.resize(n * band.n_rows, 0.0);
        let input = Matrix::new(&self.normed[first * d..(first + n) * d], n, d);
        let out = MatrixMut::new(logits, n, band.n_rows);
        match &band.laid_out {
            LaidOut::Single(rows) => {
                multiply(input, Matrix::new(rows, band.n_rows, d).transposed(), out, Update::Set);
            }
            LaidOut::Half(rows) => multiply_half(input, rows, out, Update::Set),
        }
    }
}

/// Sums over the vocabulary so far, each relative to the largest logit so far.
#[derive(Clone, Copy)]
struct Sums {
    largest: [f64; 2],
    /// `Σ exp(b)` and `Σ exp(m)`.
    totals: [f64; 2],
    /// `Σ exp(b) (b - m)`.
    weighted: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { largest: [f64::NEG_INFINITY; 2], totals: [0.0; 2], weighted: 0.0 }
    }
}

impl Sums {
    fn add(&mut self, base: &[f32], model: &[f32]) {
        for (which, logits) in [base, model].into_iter().enumerate() {
            let own = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
            let largest = self.largest[which].max(f64::from(own));
            let shrunk = (self.largest[which] - largest).exp();
            self.totals[which] *= shrunk;
            if which == 0 {
                self.weighted *= shrunk;
            }
            self.largest[which] = largest;
        }
        let [of_base, of_model] = self.largest.map(|x| x as f32);
        let (mut totals, mut weighted) = ([0.0_f64; 2], 0.0_f64);
        for (base, model) in base.chunks(64).zip(model.chunks(64)) {
            let (mut sums, mut part) = ([0.0_f32; 2], 0.0_f32);
            for (&b, &m) in base.iter().zip(model) {
                let p = (b - of_base).exp();
                sums[0] += p;
                sums[1] += (m - of_model).exp();
                part += p * (b - m);
            }
            totals = [totals[0] + f64::from(sums[0]), totals[1] + f64::from(sums[1])];
            weighted += f64::from(part);
        }
        self.totals = [self.totals[0] + totals[0], self.totals[1] + totals[1]];
        self.weighted += weighted;
    }

    fn divergence(self) -> f64 {
        let [base, model] = [0, 1].map(|which| self.largest[which] + self.totals[which].ln());
        let found = self.weighted / self.totals[0] - base + model;
        // Rounding may leave what is next to nothing below it; what is no number stays none.
        if found < 0.0 { 0.0 } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_add_up_to_the_divergence() {
        let logits = |phase: f32, n: usize| -> Vec<f32> {
            (0..n).map(|i| (i as f32 * 0.37 + phase).sin() * 9.0 + (i as f32 * 0.011).cos() * 20.0).collect()
        };
        let (base, model) = (logits(0.0, 1000), logits(0.3, 1000));
        let log_sum = |x: &[f32]| x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        let (a, b) = (log_sum(&base), log_sum(&model));
        let one = |(&b1, &m1): (&f32, &f32)| {
            let [x, y] = [f64::from(b1) - a, f64::from(m1) - b];
            x.exp() * (x - y)
        };
        let expected: f64 = base.iter().zip(&model).map(one).sum();
        for band in [1000, 300, 7] {
            let mut sums = Sums::default();
            base.chunks(band).zip(model.chunks(band)).for_each(|(base, model)| sums.add(base, model));
            let found = sums.divergence();
            assert!((found - expected).abs() < 1e-4 * expected, "{band}: {found} {expected}");
        }
        let mut same = Sums::default();
        same.add(&base, &base);
        assert!(same.divergence() < 1e-9);
        let mut broken = Sums::default();
        broken.add(&base, &[f32::NAN; 1000]);
        assert!(broken.divergence().is_nan());
    }
}
