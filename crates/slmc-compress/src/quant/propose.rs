//! Which scales of a group are worth trying.

use half::f16;

use super::{
    grid::{Grid, Scales},
    trial::{Candidates, LANES},
};

/// The scales of a unit that its groups' scales are multiples of; 1 where groups have scales of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct UnitScales {
    pub scale: f32,
    pub min: f32,
}

/// The number as f16 stores it.
pub(crate) fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// How far below the scale that holds every weight it is worth looking, and how far above: coarse points gain by
/// letting the largest weights go, fine ones do not.
fn span(n_points: f32) -> [f32; 2] {
    match n_points {
        n if n <= 8.0 => [0.45, 1.15],
        n if n <= 16.0 => [0.60, 1.10],
        n if n <= 32.0 => [0.75, 1.05],
        n if n <= 64.0 => [0.85, 1.03],
        _ => [0.95, 1.01],
    }
}

/// Sets of candidates that the whole span takes. What a scale and a min cost together has many valleys: sixteen pairs
/// are too few to find a deep one.
pub(crate) fn n_wide(grid: &Grid) -> usize {
    if grid.scales.has_min() { 4 } else { 1 }
}

/// How far apart the candidates of each closer look are, as a share of those of the first.
pub(crate) fn closer_looks(grid: &Grid) -> &'static [f32] {
    if grid.scales.has_min() { &[1.0, 0.4] } else { &[1.0] }
}

/// The candidates of a set: all sets together cover the whole span.
pub(crate) fn wide(grid: &Grid, w: &[f32], unit: UnitScales, set: usize) -> Candidates {
    let [low, high] = grid.ends();
    let [from, to] = span(high - low + 1.0);
    if grid.scales.has_min() {
        let (least, most) =
            w.iter().fold((0.0_f32, 0.0_f32), |(least, most), &w| (least.min(w), most.max(w)));
        let (least, most) = match grid.scales {
            // Its min may be of either sign.
            Scales::HalfAndMin => {
                w.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &w| (a.min(w), b.max(w)))
            }
            _ => (least, most),
        };
        // Eight places of either end, from a little beyond it; a set has every other of both.
        let cut = |i: usize| (most - least) * (1.0 - from) / 2.0 * (i as f32 / 7.0 * 1.2 - 0.1);
        return candidates(grid, unit, |i| {
            let (bottom, top) = (least + cut(i % 4 * 2 + set % 2), most - cut(i / 4 * 2 + set / 2));
            [(top - bottom) / high, -bottom]
        });
    }
    let extreme = w.iter().fold(0.0_f32, |extreme, &w| if w.abs() > extreme.abs() { w } else { extreme });
    let share = |i: usize, n: usize| from + (to - from) * i as f32 / (n - 1) as f32;
    match grid.scales {
        Scales::PowerOfTwo => {
            let top = (extreme.abs() / high.max(-low)).log2().ceil();
            candidates(grid, unit, |i| [(top + 1.0 - (i % 4) as f32).exp2(), 0.0])
        }
        Scales::PositiveHalf => {
            let whole =
                w.iter().fold(0.0_f32, |scale, &w| scale.max(if w < 0.0 { w / low } else { w / high }));
            candidates(grid, unit, |i| [whole * share(i, LANES), 0.0])
        }
        // The largest weight at the end with more points, mostly; then at the other.
        _ => candidates(grid, unit, |i| {
            let (end, share) = if i < 11 { (low, share(i, 11)) } else { (high, share(i - 11, 5)) };
            [extreme / end * share, 0.0]
        }),
    }
}

/// Candidates around the best so far. Where scales are integers, all looks are alike.
pub(crate) fn narrow(grid: &Grid, unit: UnitScales, [scale, min]: [f32; 2], fineness: f32) -> Candidates {
    let [low, high] = grid.ends();
    let [from, to] = span(high - low + 1.0);
    let step = (to - from) / 10.0 * fineness;
    match grid.scales {
        Scales::Integers { .. } => candidates(grid, unit, |i| [scale + (i as f32 - 8.0) * unit.scale, 0.0]),
        Scales::IntegersAndMin { .. } => candidates(grid, unit, |i| {
            [scale + ((i % 4) as f32 - 1.0) * unit.scale, min + ((i / 4) as f32 - 1.0) * unit.min]
        }),
        Scales::HalfAndMin => candidates(grid, unit, |i| {
            let (s, m) = ((i % 4) as f32 - 1.5, (i / 4) as f32 - 1.5);
            [scale * (1.0 + s * step * 0.3), min + m * scale * 0.25 * fineness]
        }),
        Scales::HalfAndZero => candidates(grid, unit, |i| {
            let (s, m) = ((i % 8) as f32 - 3.5, (i / 8) as f32);
            [scale * (1.0 + s * step * 0.2), min + (m - 0.5) * scale]
        }),
        Scales::PowerOfTwo => candidates(grid, unit, |_| [scale, 0.0]),
        Scales::Half | Scales::PositiveHalf => {
            candidates(grid, unit, |i| [scale * (1.0 + (i as f32 - 7.5) / 8.0 * step), 0.0])
        }
    }
}

fn candidates(grid: &Grid, unit: UnitScales, wanted: impl Fn(usize) -> [f32; 2]) -> Candidates {
    let mut found = Candidates { scale: [0.0; LANES], min: [0.0; LANES] };
    for i in 0..LANES {
        [found.scale[i], found.min[i]] = representable(grid, unit, wanted(i));
    }
    found
}

/// The nearest scale and min that the grid can store.
pub(crate) fn representable(grid: &Grid, unit: UnitScales, [scale, min]: [f32; 2]) -> [f32; 2] {
    let whole = |x: f32, of: f32, low: i32, high: i32| {
        if of == 0.0 { 0.0 } else { (x / of).round().clamp(low as f32, high as f32) * of }
    };
    match grid.scales {
        Scales::Half => [half(scale), 0.0],
        Scales::PositiveHalf => [half(scale.max(0.0)), 0.0],
        // `scale · q + m` is what is stored: the min's f16 has the other sign.
        Scales::HalfAndMin => [half(scale), half(min)],
        Scales::HalfAndZero => {
            let scale = half(scale.max(0.0));
            [scale, whole(min, scale, 0, grid.ends()[1] as i32)]
        }
        Scales::PowerOfTwo => [
            if scale > 0.0 { scale.log2().round().clamp(-127.0, 127.0).exp2() } else { 2.0_f32.powi(-127) },
            0.0,
        ],
        Scales::Integers { low, high, .. } => [whole(scale, unit.scale, low, high), 0.0],
        Scales::IntegersAndMin { high, .. } => {
            [whole(scale, unit.scale, 0, high), whole(min, unit.min, 0, high)]
        }
    }
}
