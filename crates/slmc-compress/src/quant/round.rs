//! The nearest point of a grid, without branches: loops over sixteen candidates at a time vectorize.

use super::grid::Points;

/// Rounds to one kind of points.
pub(crate) trait Round: Copy + Send + Sync {
    /// The point nearest to a number.
    fn nearest(self, x: f32) -> f32;
    /// The level of a point.
    fn level(self, point: f32) -> u8;
}

/// Integers between two.
#[derive(Clone, Copy)]
pub(crate) struct ToInteger {
    low: f32,
    high: f32,
}

impl Round for ToInteger {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        /// Adding it leaves no room for fractions: 1.5 · 2²³.
        const NO_FRACTION: f32 = 12_582_912.0;
        let inside = if x > self.low { x } else { self.low };
        let inside = if inside < self.high { inside } else { self.high };
        (inside + NO_FRACTION) - NO_FRACTION
    }

    #[inline(always)]
    fn level(self, point: f32) -> u8 {
        (point - self.low) as u8
    }
}

/// Points of a table, sixteen at most.
#[derive(Clone, Copy)]
pub(crate) struct ToTable {
    first: f32,
    /// Between point `i` and the next; infinite behind the last.
    middles: [f32; 15],
    /// From point `i` to the next.
    steps: [f32; 15],
    values: [f32; 16],
    levels: [u8; 16],
}

impl Round for ToTable {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let mut point = self.first;
        for i in 0..15 {
            point += if x > self.middles[i] { self.steps[i] } else { 0.0 };
        }
        point
    }

    #[inline(always)]
    fn level(self, point: f32) -> u8 {
        let at = self.values.iter().position(|&value| value == point);
        self.levels[at.unwrap_or(0)]
    }
}

/// Runs `$body` with `$round` bound to what rounds to the points.
macro_rules! with_round {
    ($points:expr, $round:ident => $body:expr) => {
        match $points {
            $crate::quant::grid::Points::Integers { low, high } => {
                let $round = $crate::quant::round::to_integer(*low, *high);
                $body
            }
            points @ $crate::quant::grid::Points::Table { .. } => {
                let $round = $crate::quant::round::to_table(points);
                $body
            }
        }
    };
}
pub(crate) use with_round;

pub(crate) fn to_integer(low: i32, high: i32) -> ToInteger {
    ToInteger { low: low as f32, high: high as f32 }
}

pub(crate) fn to_table(points: &Points) -> ToTable {
    let Points::Table { values: table, levels: codes } = points else {
        unreachable!("integers have a rounding of their own");
    };
    let (mut middles, mut steps) = ([f32::INFINITY; 15], [0.0; 15]);
    for (i, pair) in table.windows(2).enumerate() {
        (middles[i], steps[i]) = ((pair[0] + pair[1]) / 2.0, pair[1] - pair[0]);
    }
    let (mut values, mut levels) = ([f32::NAN; 16], [0; 16]);
    values[..table.len()].copy_from_slice(table);
    levels[..codes.len()].copy_from_slice(codes);
    ToTable { first: table[0], middles, steps, values, levels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Grid;

    #[test]
    fn the_nearest_point_is_the_nearest() {
        for grid in [Grid::q4_0(), Grid::q4_1(), Grid::iq4_nl(), Grid::mxfp4(), Grid::q8_0()] {
            let [low, high] = grid.ends();
            for i in 0..2000 {
                let x = low * 1.2 + (high - low) * 1.3 * i as f32 / 2000.0;
                let (found, level) =
                    with_round!(&grid.points, round => (round.nearest(x), round.level(round.nearest(x))));
                assert_eq!(grid.point(level), found, "{x}");
                let all: Vec<f32> = match &grid.points {
                    Points::Integers { low, high } => (*low..=*high).map(|i| i as f32).collect(),
                    Points::Table { values, .. } => values.clone(),
                };
                let best = all.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
                assert!((found - x).abs() <= best + 1e-5, "{x}: {found}");
            }
        }
    }
}
