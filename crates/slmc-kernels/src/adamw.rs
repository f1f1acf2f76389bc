//! AdamW's step (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), in one pass over memory.

use rayon::prelude::*;

use crate::{CHUNK, dispatch::dispatched};

/// The constants of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// The learning rate.
    pub learning_rate: f32,
    /// Decay of the gradients' mean.
    pub beta1: f32,
    /// Decay of the squared gradients' mean.
    pub beta2: f32,
    /// Added to the root of the squares' mean.
    pub eps: f32,
    /// Part of a weight taken away, times the learning rate.
    pub weight_decay: f32,
    /// Gradients are multiplied by it first (clipping).
    pub gradient_scale: f32,
    /// Which step this is, from 1: the means are corrected for having begun at 0.
    pub n: u64,
}

dispatched! {
    fn update(
        weights: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        constants: [f32; 7],
    ) {
        let [scale, beta1, beta2, eps, keep, rate, over_root] = constants;
        let rest = weights.iter_mut().zip(gradient).zip(first).zip(second);
        for (((weight, gradient), first), second) in rest {
            let g = gradient * scale;
            *first = *first * beta1 + g * (1.0 - beta1);
            *second = *second * beta2 + g * g * (1.0 - beta2);
            *weight = *weight * keep - rate * *first / (second.sqrt() * over_root + eps);
        }
    }
}

/// Changes the weights and the running means.
///
/// # Panics
/// When the sizes differ.
pub fn adamw(step: AdamWStep, weights: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
    assert!([gradient.len(), first.len(), second.len()] == [weights.len(); 3], "one of each a weight");
    let n = i32::try_from(step.n).unwrap_or(i32::MAX);
    let correction1 = 1.0 - f64::from(step.beta1).powi(n);
    let correction2 = 1.0 - f64::from(step.beta2).powi(n);
    let keep = 1.0 - step.learning_rate * step.weight_decay;
    let rate = (f64::from(step.learning_rate) / correction1) as f32;
    let over_root = (1.0 / correction2.sqrt()) as f32;
    let constants = [step.gradient_scale, step.beta1, step.beta2, step.eps, keep, rate, over_root];
    let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
    let tasks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(moments);
    tasks.for_each(|((weights, gradient), (first, second))| {
        update(weights, gradient, first, second, constants);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads, worst};

    #[test]
    fn three_steps_follow_the_paper() {
        let n = 70_001;
        let start = numbers(n, 1);
        let gradients: Vec<Vec<f32>> = (2..5).map(|seed| numbers(n, seed)).collect();
        let step = |n: u64| AdamWStep {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            gradient_scale: 0.5,
            n,
        };
        let found = same_on_any_threads(|| {
            let (mut w, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            for (i, gradient) in (1..).zip(&gradients) {
                adamw(step(i), &mut w, gradient, &mut m, &mut v);
            }
            w
        });
        let expected = start.iter().enumerate().map(|(i, &w)| {
            let (mut w, mut m, mut v) = (f64::from(w), 0.0, 0.0);
            for (t, gradient) in (1..).zip(&gradients) {
                let g = 0.5 * f64::from(gradient[i]);
                m = 0.9 * m + 0.1 * g;
                v = 0.95 * v + 0.05 * g * g;
                let (m_hat, v_hat) = (m / (1.0 - 0.9_f64.powi(t)), v / (1.0 - 0.95_f64.powi(t)));
                w = w - 1e-2 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * w);
            }
            w
        });
        assert!(worst(&found, &expected.collect::<Vec<_>>()) < 1e-6);
    }
}
