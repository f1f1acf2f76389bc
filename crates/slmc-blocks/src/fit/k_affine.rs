//! Super-blocks whose groups have a scale and a minimum each: whole numbers times the block's two.

use super::affine::{Fixed, Line, Rounded, best_line, error, fixed_sums, levels};
use crate::{
    float::{f16_to_f32, f32_to_f16},
    parts::{MAX_GROUPS, Parts},
    range::inverse,
};

/// Rounds of refitting the block's two scales to the levels.
const N_ROUNDS: usize = 3;

/// A block's two scales with the groups' multiples of them.
struct Choice {
    scale: u16,
    min: u16,
    scales: [i8; MAX_GROUPS],
    mins: [u8; MAX_GROUPS],
    rounded: [Rounded; MAX_GROUPS],
    error: f32,
}

/// A group's weights, importances, line before rounding, and fixed sums.
struct Group<'a, const N: usize> {
    weights: &'a [f32; N],
    importance: &'a [f32; N],
    ideal: Line,
    fixed: Fixed,
}

/// Searches lines for groups of `N` weights with levels to `MAX`, with multiples to `LIMIT`.
#[inline(always)]
pub(super) fn fit<const MAX: i32, const N: usize, const LIMIT: i32>(
    weights: &[f32; 256],
    importance: &[f32; 256],
) -> Parts {
    let (weights, importance) = (weights.as_chunks::<N>().0, importance.as_chunks::<N>().0);
    let mut ideal = [Line { scale: 0.0, offset: 0.0 }; MAX_GROUPS];
    let mut fixed = [Fixed::default(); MAX_GROUPS];
    let (mut scale, mut min) = (0.0, 0.0);
    for group in 0..256 / N {
        let line = best_line::<MAX, N>(&weights[group], &importance[group], true);
        scale = if line.scale > scale { line.scale } else { scale };
        min = if -line.offset > min { -line.offset } else { min };
        ideal[group] = line;
        fixed[group] = fixed_sums(&weights[group], &importance[group]);
    }
    let group = |group: usize| Group {
        weights: &weights[group],
        importance: &importance[group],
        ideal: ideal[group],
        fixed: fixed[group],
    };
    let limit = LIMIT as f32;
    let mut best = choose::<MAX, N, LIMIT>(group, scale / limit, min / limit);
    // Coarse multiples gain from another place among the groups' scales, and from cutting off the largest.
    for (shrink, shrink_min) in [(0.96, 0.96), (0.92, 0.92), (1.0, 0.95), (0.95, 1.0)] {
        let candidate = choose::<MAX, N, LIMIT>(group, scale * shrink / limit, min * shrink_min / limit);
        if candidate.error < best.error {
            best = candidate;
        }
    }
    for _ in 0..N_ROUNDS {
        let (scale, min) = refit(&best, &fixed);
        let refitted = choose::<MAX, N, LIMIT>(group, scale, min);
        if refitted.error < best.error {
            best = refitted;
        } else {
            break;
        }
    }
    into_parts::<MAX, N>(&best, weights)
}

#[inline(always)]
fn into_parts<const MAX: i32, const N: usize>(best: &Choice, weights: &[[f32; N]]) -> Parts {
    let mut parts = Parts {
        scale: best.scale,
        min: best.min,
        group_scales: best.scales,
        group_mins: best.mins,
        ..Parts::default()
    };
    let (scale, min) = (f16_to_f32(best.scale), f16_to_f32(best.min));
    for (group, (weights, run)) in weights.iter().zip(parts.levels.as_chunks_mut::<N>().0).enumerate() {
        let line = Line {
            scale: scale * f32::from(best.scales[group]),
            offset: -(min * f32::from(best.mins[group])),
        };
        levels::<MAX>(weights, line, run);
    }
    parts
}

/// The block's two scales with the least squared error for the levels and multiples as they are.
#[inline(always)]
fn refit(choice: &Choice, fixed: &[Fixed; MAX_GROUPS]) -> (f32, f32) {
    // weight = scale * a - min * b with a = multiple * level and b = the minimum's multiple.
    let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0.0_f64, 0.0, 0.0, 0.0, 0.0);
    for group in 0..MAX_GROUPS {
        let (scale, min) = (f64::from(choice.scales[group]), f64::from(choice.mins[group]));
        let (rounded, fixed) = (&choice.rounded[group], &fixed[group]);
        aa += scale * scale * f64::from(rounded.level_level);
        ab += scale * min * f64::from(rounded.level);
        bb += min * min * f64::from(fixed.one);
        xa += scale * f64::from(rounded.weight_level);
        xb += min * f64::from(fixed.weight);
    }
    let determinant = aa * bb - ab * ab;
    if bb == 0.0 {
        return ((xa / aa) as f32, f16_to_f32(choice.min));
    }
    (((xa * bb - xb * ab) / determinant) as f32, ((xa * ab - xb * aa) / determinant) as f32)
}

/// The best multiples of a block's two scales.
#[inline(always)]
fn choose<'a, const MAX: i32, const N: usize, const LIMIT: i32>(
    group: impl Fn(usize) -> Group<'a, N>,
    scale: f32,
    min: f32,
) -> Choice {
    let mut choice = Choice {
        scale: f32_to_f16(scale),
        min: f32_to_f16(min),
        scales: [0; MAX_GROUPS],
        mins: [0; MAX_GROUPS],
        rounded: [Rounded::default(); MAX_GROUPS],
        error: 0.0,
    };
    let (scale, min) = (f16_to_f32(choice.scale), f16_to_f32(choice.min));
    for index in 0..256 / N {
        let (multiples, rounded) = choose_group::<MAX, N, LIMIT>(&group(index), scale, min);
        (choice.scales[index], choice.mins[index]) = (multiples.0 as i8, multiples.1 as u8);
        choice.rounded[index] = rounded;
        choice.error += rounded.error;
    }
    choice
}

/// The best two multiples for a group: three scales, each with the nearest minimum and with the one that its levels
/// call for.
#[inline(always)]
fn choose_group<const MAX: i32, const N: usize, const LIMIT: i32>(
    group: &Group<'_, N>,
    scale: f32,
    min: f32,
) -> ((i32, i32), Rounded) {
    let (inverse_scale, inverse_min) = (inverse(scale), inverse(min));
    let whole = |number: f32| (number.round_ties_even() as i32).clamp(0, LIMIT);
    let round = |multiples: (i32, i32)| {
        let line = Line { scale: scale * multiples.0 as f32, offset: -(min * multiples.1 as f32) };
        error::<MAX, N>(group.weights, group.importance, line)
    };
    let nearest = whole(group.ideal.scale * inverse_scale);
    let first_min = whole(-group.ideal.offset * inverse_min);
    let mut best = ((nearest, first_min), round((nearest, first_min)));
    for candidate in [nearest, nearest - 1, nearest + 1].map(|multiple| multiple.clamp(0, LIMIT)) {
        let first = if candidate == nearest { best.1 } else { round((candidate, first_min)) };
        if first.error < best.1.error {
            best = ((candidate, first_min), first);
        }
        // The least-squares offset of these levels.
        let offset = (scale * candidate as f32 * first.level - group.fixed.weight) / group.fixed.one;
        let second_min = whole(offset * inverse_min);
        if second_min != first_min {
            let second = round((candidate, second_min));
            if second.error < best.1.error {
                best = ((candidate, second_min), second);
            }
        }
    }
    best
}
