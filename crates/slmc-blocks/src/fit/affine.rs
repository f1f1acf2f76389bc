//! The scale and offset of a group whose weights are levels times one plus the other.

use super::sums::{LANES, extremes, total};
use crate::{
    float::f16_to_f32,
    range::inverse,
    steps::{Steps, Uniform},
};

/// Tries on each side of the range that just covers the group.
const N_TRIES: i32 = 10;
/// Rounds of rounding with the least-squares line of the levels before.
const N_ROUNDS: usize = 3;

/// `weight = scale * level + offset`.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub scale: f32,
    pub offset: f32,
}

impl Line {
    #[inline(always)]
    pub fn from_f16((scale, offset): (u16, u16)) -> Self {
        Self { scale: f16_to_f32(scale), offset: f16_to_f32(offset) }
    }
}

/// What rounding with some line gives: sums over the group, weighted with the importance.
#[derive(Clone, Copy, Default)]
pub(super) struct Rounded {
    /// Σ weight · level.
    pub weight_level: f32,
    /// Σ level².
    pub level_level: f32,
    /// Σ level.
    pub level: f32,
    /// Σ (weight − scale · level − offset)².
    pub error: f32,
}

/// Sums that no rounding changes.
#[derive(Clone, Copy, Default)]
pub(super) struct Fixed {
    /// Σ weight.
    pub weight: f32,
    /// Σ 1.
    pub one: f32,
}

/// The line from the smallest weight to the largest.
#[inline(always)]
pub(super) fn plain_line<const MAX: i32, const N: usize>(weights: &[f32; N]) -> Line {
    let (low, high) = extremes(weights);
    Line { scale: (high - low) / MAX as f32, offset: low }
}

/// The line with the least squared error among those tried. With `to_zero` its offset is not above zero, as the
/// formats need whose minimums are subtracted.
#[inline(always)]
pub(super) fn best_line<const MAX: i32, const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    to_zero: bool,
) -> Line {
    let (mut low, high) = extremes(weights);
    if to_zero && low > 0.0 {
        low = 0.0;
    }
    let range = high - low;
    let mut line = Line { scale: if range > 0.0 { range / MAX as f32 } else { 0.0 }, offset: low };
    if range <= 0.0 {
        return line;
    }
    let fixed = fixed_sums(weights, importance);
    let mut most = f32::NEG_INFINITY;
    let width = 1.2 / N_TRIES as f32;
    for i in -N_TRIES..=N_TRIES {
        let inverse = (MAX as f32 + width * i as f32) / range;
        let (candidate, gain) =
            refit(round_with::<MAX, N>(weights, importance, inverse, low), fixed, to_zero);
        if gain > most {
            (most, line) = (gain, candidate);
        }
    }
    for _ in 0..N_ROUNDS {
        let rounded = round_with::<MAX, N>(weights, importance, inverse(line.scale), line.offset);
        let (candidate, gain) = refit(rounded, fixed, to_zero);
        if gain > most {
            (most, line) = (gain, candidate);
        }
    }
    line
}

/// The least-squares line of the levels, and what it takes off Σ weight².
#[inline(always)]
fn refit(rounded: Rounded, fixed: Fixed, to_zero: bool) -> (Line, f32) {
    let Rounded { weight_level, level_level, level, .. } = rounded;
    let determinant = fixed.one * level_level - level * level;
    let mut scale = (fixed.one * weight_level - fixed.weight * level) / determinant;
    let mut offset = (level_level * fixed.weight - level * weight_level) / determinant;
    if to_zero && offset > 0.0 {
        (scale, offset) = (weight_level / level_level, 0.0);
    }
    (Line { scale, offset }, scale * weight_level + offset * fixed.weight)
}

/// The group's fixed sums.
#[inline(always)]
pub(super) fn fixed_sums<const N: usize>(weights: &[f32; N], importance: &[f32; N]) -> Fixed {
    let (mut weight, mut one) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in weights.as_chunks::<LANES>().0.iter().zip(importance.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            weight[i] += w[i] * x[i];
            one[i] += w[i];
        }
    }
    Fixed { weight: total(weight), one: total(one) }
}

/// Rounds with an inverse scale and an offset. Leaves the error out.
#[inline(always)]
fn round_with<const MAX: i32, const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    inverse: f32,
    offset: f32,
) -> Rounded {
    let (mut weight_level, mut level_level, mut level) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for (x, w) in weights.as_chunks::<LANES>().0.iter().zip(importance.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let q = step::<MAX>((x[i] - offset) * inverse);
            let weighted = w[i] * q;
            weight_level[i] += weighted * x[i];
            level_level[i] += weighted * q;
            level[i] += weighted;
        }
    }
    Rounded {
        weight_level: total(weight_level),
        level_level: total(level_level),
        level: total(level),
        error: 0.0,
    }
}

/// Rounds with a line.
#[inline(always)]
pub(super) fn error<const MAX: i32, const N: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    line: Line,
) -> Rounded {
    let inverse = inverse(line.scale);
    let (mut weight_level, mut level_level, mut level) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let mut error = [0.0; LANES];
    for (x, w) in weights.as_chunks::<LANES>().0.iter().zip(importance.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let q = step::<MAX>((x[i] - line.offset) * inverse);
            let weighted = w[i] * q;
            weight_level[i] += weighted * x[i];
            level_level[i] += weighted * q;
            level[i] += weighted;
            let difference = x[i] - (line.scale * q + line.offset);
            error[i] += w[i] * (difference * difference);
        }
    }
    Rounded {
        weight_level: total(weight_level),
        level_level: total(level_level),
        level: total(level),
        error: total(error),
    }
}

/// The nearest levels.
#[inline(always)]
pub(super) fn levels<const MAX: i32>(weights: &[f32], line: Line, levels: &mut [u8]) {
    let inverse = inverse(line.scale);
    for (level, weight) in levels.iter_mut().zip(weights) {
        *level = step::<MAX>((weight - line.offset) * inverse) as u8;
    }
}

/// The nearest whole number from 0 to `MAX`.
#[inline(always)]
fn step<const MAX: i32>(number: f32) -> f32 {
    Uniform::<0, MAX>::step(number)
}
