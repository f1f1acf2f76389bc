//! RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) and its gradient.

use rayon::prelude::*;

use crate::{
    dispatch::{dispatched, sum_pairs},
    rows_per_task,
};

dispatched! {
    fn forward(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32], inverse: &mut [f32]) {
        let d = gain.len();
        for ((x, out), inverse) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).zip(inverse) {
            let mean_square = sum_pairs(x, x, |a, b| a * b) / d as f32;
            *inverse = 1.0 / (mean_square + eps).sqrt();
            for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                *out = x * *inverse * gain;
            }
        }
    }
}

dispatched! {
    fn again(x: &[f32], gain: &[f32], inverse: &[f32], out: &mut [f32]) {
        let d = gain.len();
        for ((x, out), inverse) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).zip(inverse) {
            for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                *out = x * *inverse * gain;
            }
        }
    }
}

dispatched! {
    fn backward(x: &[f32], gain: &[f32], inverse: &[f32], d_out: &[f32], d_x: &mut [f32], d_gain: &mut [f32]) {
        let d = gain.len();
        let rows = x.chunks_exact(d).zip(d_out.chunks_exact(d)).zip(d_x.chunks_exact_mut(d)).zip(inverse);
        for (((x, d_out), d_x), &inverse) in rows {
            for ((d_gain, x), d_out) in d_gain.iter_mut().zip(x).zip(d_out) {
                *d_gain += d_out * x * inverse;
            }
            let mut weighted = 0.0;
            for ((x, d_out), gain) in x.chunks(256).zip(d_out.chunks(256)).zip(gain.chunks(256)) {
                let mut product = [0.0; 256];
                for ((p, d), g) in product.iter_mut().zip(d_out).zip(gain) {
                    *p = d * g;
                }
                weighted += sum_pairs(x, &product[..x.len()], |a, b| a * b);
            }
            let pull = weighted * inverse * inverse * inverse / d as f32;
            for (((d_x, x), d_out), gain) in d_x.iter_mut().zip(x).zip(d_out).zip(gain) {
                *d_x += d_out * gain * inverse - x * pull;
            }
        }
    }
}

fn check(x: &[f32], gain: &[f32], out: &[f32], inverse: &[f32]) {
    assert_eq!(x.len(), out.len(), "as many numbers out as in");
    assert_eq!(x.len(), gain.len() * inverse.len(), "one inverse a row");
}

/// `out = x * inverse * gain` for each row of `gain.len()` numbers, with `inverse = 1 / sqrt(mean(x²) + eps)`
/// kept for the way back.
///
/// # Panics
/// When the sizes do not fit.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32], inverse: &mut [f32]) {
    check(x, gain, out, inverse);
    let n = rows_per_task(gain.len());
    let task = n * gain.len();
    let tasks = x.par_chunks(task).zip(out.par_chunks_mut(task)).zip(inverse.par_chunks_mut(n));
    tasks.for_each(|((x, out), inverse)| forward(x, gain, eps, out, inverse));
}

/// The norm's result again, from the inverses kept: the same bits.
///
/// # Panics
/// When the sizes do not fit.
pub fn rms_norm_again(x: &[f32], gain: &[f32], inverse: &[f32], out: &mut [f32]) {
    check(x, gain, out, inverse);
    let n = rows_per_task(gain.len());
    let task = n * gain.len();
    let tasks = x.par_chunks(task).zip(out.par_chunks_mut(task)).zip(inverse.par_chunks(n));
    tasks.for_each(|((x, out), inverse)| again(x, gain, inverse, out));
}

/// Adds the gradients: `d_x += …`, `d_gain += …`.
///
/// # Panics
/// When the sizes do not fit.
pub fn rms_norm_backward(
    x: &[f32],
    gain: &[f32],
    inverse: &[f32],
    d_out: &[f32],
    d_x: &mut [f32],
    d_gain: &mut [f32],
) {
    check(x, gain, d_out, inverse);
    assert_eq!(x.len(), d_x.len());
    assert_eq!(gain.len(), d_gain.len());
    let n = rows_per_task(gain.len());
    let task = n * gain.len();
    let tasks = x.par_chunks(task).zip(d_out.par_chunks(task)).zip(d_x.par_chunks_mut(task));
    let partial: Vec<Vec<f32>> = tasks
        .zip(inverse.par_chunks(n))
        .map(|(((x, d_out), d_x), inverse)| {
            let mut partial = vec![0.0; gain.len()];
            backward(x, gain, inverse, d_out, d_x, &mut partial);
            partial
        })
        .collect();
    for partial in partial {
        d_gain.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads, slope, wide, worst};

    fn definition(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
        let row = |x: &[f64]| {
            let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let inverse = 1.0 / (mean_square + eps).sqrt();
            x.iter().zip(gain).map(|(x, g)| x * inverse * g).collect::<Vec<_>>()
        };
        x.chunks(gain.len()).flat_map(row).collect()
    }

    #[test]
    fn follows_the_definition_and_its_slope() {
        for d in [8, 37, 300] {
            let n_rows = 11;
            let (x, gain) = (numbers(n_rows * d, 1), numbers(d, 2));
            let d_out = numbers(n_rows * d, 3);
            let eps = 1e-5;
            let (out, d_x, d_gain, again) = same_on_any_threads(|| {
                let (mut out, mut inverse) = (vec![0.0; n_rows * d], vec![0.0; n_rows]);
                rms_norm(&x, &gain, eps, &mut out, &mut inverse);
                let (mut d_x, mut d_gain) = (vec![0.0; n_rows * d], vec![0.0; d]);
                rms_norm_backward(&x, &gain, &inverse, &d_out, &mut d_x, &mut d_gain);
                let mut again = vec![0.0; n_rows * d];
                rms_norm_again(&x, &gain, &inverse, &mut again);
                (out, d_x, d_gain, again)
            });
            assert_eq!(out, again);
            let (x, gain, d_out, eps) = (wide(&x), wide(&gain), wide(&d_out), f64::from(eps));
            assert!(worst(&out, &definition(&x, &gain, eps)) < 1e-6);
            let weigh = |y: Vec<f64>| y.iter().zip(&d_out).map(|(a, b)| a * b).sum::<f64>();
            assert!(worst(&d_x, &slope(&x, |x| weigh(definition(x, &gain, eps)))) < 2e-6);
            assert!(worst(&d_gain, &slope(&gain, |gain| weigh(definition(&x, gain, eps)))) < 2e-6);
        }
    }
}
