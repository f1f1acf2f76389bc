//! One group of a row under many scales at once: what each would cost once the errors within the group have been made
//! up for by its later columns.

use super::round::Round;

/// Scales that are tried side by side.
pub(crate) const LANES: usize = 16;

/// Scales and mins to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates {
    pub scale: [f32; LANES],
    pub min: [f32; LANES],
}

/// The columns of a group in the order of rounding.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// The group's part of `U`, `[g, g]` in row order.
    pub upper: &'a [f32],
    /// One over its diagonal.
    pub over_diagonal: &'a [f32],
}

/// Reciprocal of a scale; 0 for 0, so that everything is rounded to the same point.
#[inline(always)]
pub(crate) fn over(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `Σ e²` of each candidate, where `e = (w - rounded) / U_jj` and each column's `e` times its row of `U` is taken from the
/// columns after it: the exact increase of the layer's error, if the columns after the group are free (GPTQ,
/// arXiv:2210.17323, equation 2). Without `FEEDBACK`, columns do not make up for each other. `x` is room for the group.
#[inline(always)]
pub(crate) fn costs<R: Round, const FEEDBACK: bool>(
    round: R,
    w: &[f32],
    block: Block<'_>,
    candidates: &Candidates,
    x: &mut [[f32; LANES]],
) -> [f32; LANES] {
    let g = w.len();
    let (scale, min) = (candidates.scale, candidates.min);
    let inverse = scale.map(over);
    let mut cost = [0.0_f32; LANES];
    let x = &mut x[..g];
    for (x, &w) in x.iter_mut().zip(w) {
        *x = [w; LANES];
    }
    for j in 0..g {
        let (head, tail) = x.split_at_mut(j + 1);
        let (column, over_diagonal) = (&head[j], block.over_diagonal[j]);
        let mut e = [0.0_f32; LANES];
        for i in 0..LANES {
            let rounded = round.nearest((column[i] + min[i]) * inverse[i]) * scale[i] - min[i];
            e[i] = (column[i] - rounded) * over_diagonal;
            cost[i] += e[i] * e[i];
        }
        if FEEDBACK {
            for (x, &u) in tail.iter_mut().zip(&block.upper[j * g + j + 1..(j + 1) * g]) {
                for i in 0..LANES {
                    x[i] -= e[i] * u;
                }
            }
        }
    }
    cost
}

/// Rounds the group with one scale: its levels, and the `e` of each column for the columns after the group.
#[inline(always)]
pub(crate) fn commit<R: Round>(
    round: R,
    w: &mut [f32],
    block: Block<'_>,
    [scale, min]: [f32; 2],
    levels: &mut [u8],
    errors: &mut [f32],
) {
    let g = w.len();
    let inverse = over(scale);
    for j in 0..g {
        let (head, tail) = w.split_at_mut(j + 1);
        let point = round.nearest((head[j] + min) * inverse);
        let rounded = point * scale - min;
        let e = (head[j] - rounded) * block.over_diagonal[j];
        levels[j] = round.level(point);
        errors[j] = e;
        head[j] = rounded;
        for (x, &u) in tail.iter_mut().zip(&block.upper[j * g + j + 1..(j + 1) * g]) {
            *x -= e * u;
        }
    }
}

/// The cheapest candidate; the first of equal ones. Costs that are not numbers are never chosen.
pub(crate) fn cheapest(costs: &[f32; LANES]) -> (usize, f32) {
    let mut best = (0, f32::INFINITY);
    for (i, &cost) in costs.iter().enumerate() {
        if cost < best.1 {
            best = (i, cost);
        }
    }
    best
}
