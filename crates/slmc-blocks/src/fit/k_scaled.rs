//! Super-blocks whose groups have a scale each: whole numbers times the block's.

use super::scaled::{Rounded, best_scale, error, levels};
use crate::{
    float::{f16_to_f32, f32_to_f16},
    parts::{MAX_GROUPS, Parts},
    steps::Steps,
};

/// Rounds of refitting the block's scale to the levels.
const N_ROUNDS: usize = 3;

/// A block's scale with the groups' multiples of it.
struct Choice {
    scale: u16,
    multiples: [i8; MAX_GROUPS],
    rounded: [Rounded; MAX_GROUPS],
    error: f32,
}

/// Searches scales for groups of `N` weights, with multiples from `LOW` to `HIGH`.
#[inline(always)]
pub(super) fn fit<S: Steps, const N: usize, const LOW: i32, const HIGH: i32>(
    weights: &[f32; 256],
    importance: &[f32; 256],
) -> Parts {
    let groups = (weights.as_chunks::<N>().0, importance.as_chunks::<N>().0);
    let mut ideal = [0.0; MAX_GROUPS];
    let mut farthest: f32 = 0.0;
    for (ideal, (weights, importance)) in ideal.iter_mut().zip(groups.0.iter().zip(groups.1)) {
        *ideal = best_scale::<S, N>(weights, importance);
        farthest = if ideal.abs() > farthest.abs() { *ideal } else { farthest };
    }
    let (low, high) = (LOW as f32, HIGH as f32);
    let mut best = choose::<S, N, LOW, HIGH>(groups, &ideal, farthest / low);
    for end in [high, low * 0.97, high * 0.97, low * 0.94] {
        best = better(best, choose::<S, N, LOW, HIGH>(groups, &ideal, farthest / end));
    }
    for _ in 0..N_ROUNDS {
        let (mut numerator, mut denominator) = (0.0, 0.0);
        for (multiple, rounded) in best.multiples.iter().zip(&best.rounded).take(256 / N) {
            let multiple = f32::from(*multiple);
            numerator += multiple * rounded.weight_step;
            denominator += multiple * multiple * rounded.step_step;
        }
        let refitted = choose::<S, N, LOW, HIGH>(groups, &ideal, numerator / denominator);
        if refitted.error < best.error {
            best = refitted;
        } else {
            break;
        }
    }
    let mut parts = Parts { scale: best.scale, group_scales: best.multiples, ..Parts::default() };
    let scale = f16_to_f32(best.scale);
    for (group, (weights, run)) in groups.0.iter().zip(parts.levels.as_chunks_mut::<N>().0).enumerate() {
        levels::<S>(weights, scale * f32::from(best.multiples[group]), run);
    }
    parts
}

/// The first unless the second is closer; it stays also when its error is not a number, as that of a scale beyond
/// f16.
#[inline(always)]
fn better(first: Choice, second: Choice) -> Choice {
    if second.error < first.error { second } else { first }
}

/// The best multiples of a block's scale.
#[inline(always)]
fn choose<S: Steps, const N: usize, const LOW: i32, const HIGH: i32>(
    groups: (&[[f32; N]], &[[f32; N]]),
    ideal: &[f32; MAX_GROUPS],
    scale: f32,
) -> Choice {
    let bits = f32_to_f16(scale);
    let scale = f16_to_f32(bits);
    let inverse = crate::range::inverse(scale);
    let mut choice = Choice {
        scale: bits,
        multiples: [0; MAX_GROUPS],
        rounded: [Rounded::default(); MAX_GROUPS],
        error: 0.0,
    };
    for (group, (weights, importance)) in groups.0.iter().zip(groups.1).enumerate() {
        let nearest = ((ideal[group] * inverse).round_ties_even() as i32).clamp(LOW, HIGH);
        let mut best = (nearest, error::<S, N>(weights, importance, scale * nearest as f32));
        for multiple in [nearest - 1, nearest + 1].map(|m| m.clamp(LOW, HIGH)) {
            let rounded = error::<S, N>(weights, importance, scale * multiple as f32);
            if rounded.error < best.1.error {
                best = (multiple, rounded);
            }
        }
        choice.multiples[group] = best.0 as i8;
        choice.rounded[group] = best.1;
        choice.error += best.1.error;
    }
    choice
}
