//! The scale of a group whose weights are steps times it.

use super::sums::{LANES, extremes, total};
use crate::{range::inverse, steps::Steps};

/// Tries on each side of the range that just covers the group.
const N_TRIES: i32 = 10;
/// Rounds of rounding with the least-squares scale of the levels before.
const N_ROUNDS: usize = 2;

/// What rounding with some scale gives: sums over the group, weighted with the importance.
#[derive(Clone, Copy, Default)]
pub(super) struct Rounded {
    /// Σ weight · step.
    pub weight_step: f32,
    /// Σ step².
    pub step_step: f32,
    /// Σ (weight − scale · step)².
    pub error: f32,
}

/// The scales that put the weight of largest magnitude on the step farthest out, on either side.
#[inline(always)]
pub(super) fn plain_scales<S: Steps, const N: usize>(weights: &[f32; N]) -> [f32; 2] {
    let farthest = farthest(weights);
    [farthest / S::FAR, farthest / S::NEAR]
}

#[inline(always)]
fn farthest<const N: usize>(weights: &[f32; N]) -> f32 {
    let (low, high) = extremes(weights);
    if high >= -low { high } else { low }
}

/// The scale, of either sign, with the least squared error among those tried; 0 for a group of zeros.
#[inline(always)]
pub(super) fn best_scale<S: Steps, const N: usize>(weights: &[f32; N], importance: &[f32; N]) -> f32 {
    let farthest = farthest(weights);
    if farthest == 0.0 {
        return 0.0;
    }
    let mut scale = farthest / S::FAR;
    // With the best scale for given levels, what the squares lose is (Σ weight·step)² / Σ step².
    let mut most = 0.0;
    // Few levels gain from cutting off more of the range.
    let width = 1.2 / (S::TABLE.len() as f32 / 2.0) / N_TRIES as f32;
    for end in [S::FAR, S::NEAR] {
        for i in -N_TRIES..=N_TRIES {
            let inverse = end * (1.0 + width * i as f32) / farthest;
            let sums = products::<S, N>(weights, importance, inverse);
            let gain = sums.weight_step * sums.weight_step / sums.step_step;
            if gain > most {
                (most, scale) = (gain, sums.weight_step / sums.step_step);
            }
        }
    }
    for _ in 0..N_ROUNDS {
        let sums = products::<S, N>(weights, importance, inverse(scale));
        let gain = sums.weight_step * sums.weight_step / sums.step_step;
        if gain > most {
            (most, scale) = (gain, sums.weight_step / sums.step_step);
        }
    }
    scale
}

/// Rounds with the inverse of a scale. Leaves the error out.
#[inline(always)]
fn products<S: Steps, const N: usize>(weights: &[f32; N], importance: &[f32; N], inverse: f32) -> Rounded {
    let (mut weight_step, mut step_step) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in weights.as_chunks::<LANES>().0.iter().zip(importance.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let step = S::step(x[i] * inverse);
            let weighted = w[i] * step;
            weight_step[i] += weighted * x[i];
            step_step[i] += weighted * step;
        }
    }
    Rounded { weight_step: total(weight_step), step_step: total(step_step), error: 0.0 }
}

/// Rounds with a scale.
#[inline(always)]
pub(super) fn error<S: Steps, const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    scale: f32,
) -> Rounded {
    let inverse = inverse(scale);
    let (mut weight_step, mut step_step, mut error) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for (x, w) in weights.as_chunks::<LANES>().0.iter().zip(importance.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let step = S::step(x[i] * inverse);
            let weighted = w[i] * step;
            weight_step[i] += weighted * x[i];
            step_step[i] += weighted * step;
            let difference = x[i] - scale * step;
            error[i] += w[i] * (difference * difference);
        }
    }
    Rounded { weight_step: total(weight_step), step_step: total(step_step), error: total(error) }
}

/// The nearest levels.
#[inline(always)]
pub(super) fn levels<S: Steps>(weights: &[f32], scale: f32, levels: &mut [u8]) {
    let inverse = inverse(scale);
    for (level, weight) in levels.iter_mut().zip(weights) {
        *level = S::level(weight * inverse);
    }
}
