//! The numbers that a block format can hold, as data: one solver serves them all.
//!
//! A weight is `scale · q - min`, where `q` is one of the grid's points (`min` is 0 for most), scale and min are
//! shared by a *group* of neighbouring columns, and a *unit* of one or more groups is packed together: K-quants'
//! super-blocks hold their groups' scales as small integers times a scale of the unit. The layouts themselves are
//! ggml's (`ggml-common.h`); here only what can be represented counts.

/// A block format's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Columns that share a scale: 16, 32 or 128.
    pub group: usize,
    /// What weights are multiples of the scale of.
    pub points: Points,
    /// What scales can be.
    pub scales: Scales,
}

/// The numbers that a scale is multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub enum Points {
    /// The integers `low..=high`; a level is the distance from `low`.
    Integers {
        /// The lowest, 0 or below.
        low: i32,
        /// The highest.
        high: i32,
    },
    /// These numbers, ascending, and the level that stands for each.
    Table {
        /// The numbers, sixteen at most, some below and some above 0.
        values: Vec<f32>,
        /// Their levels.
        levels: Vec<u8>,
    },
}

/// What the scale of a group can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Any f16, of either sign.
    Half,
    /// Any f16, and an f16 min beside it.
    HalfAndMin,
    /// Any f16 above 0, and a min that is a whole number of scales: a zero point between 0 and the highest point.
    HalfAndZero,
    /// Any f16 above 0.
    PositiveHalf,
    /// A power of two.
    PowerOfTwo,
    /// An integer between the two, times the unit's f16 scale.
    Integers {
        /// Groups of a unit.
        n_groups: usize,
        /// Lowest integer.
        low: i32,
        /// Highest integer.
        high: i32,
    },
    /// An integer up to this, times the unit's f16 scale; and an integer up to this, times the unit's f16 min.
    IntegersAndMin {
        /// Groups of a unit.
        n_groups: usize,
        /// Highest integer; the lowest is 0.
        high: i32,
    },
}

impl Scales {
    /// Groups that are packed together.
    pub const fn n_groups(self) -> usize {
        match self {
            Self::Integers { n_groups, .. } | Self::IntegersAndMin { n_groups, .. } => n_groups,
            _ => 1,
        }
    }

    /// Whether groups have a min.
    pub const fn has_min(self) -> bool {
        matches!(self, Self::HalfAndMin | Self::HalfAndZero | Self::IntegersAndMin { .. })
    }
}

impl Grid {
    /// Columns that are packed together: a row is a whole number of units.
    pub const fn unit(&self) -> usize {
        self.group * self.scales.n_groups()
    }

    /// Lowest and highest point.
    pub fn ends(&self) -> [f32; 2] {
        match &self.points {
            Points::Integers { low, high } => [*low as f32, *high as f32],
            Points::Table { values, .. } => [values[0], values[values.len() - 1]],
        }
    }

    /// The point that a level stands for.
    ///
    /// # Panics
    /// When no point has this level.
    pub fn point(&self, level: u8) -> f32 {
        match &self.points {
            Points::Integers { low, .. } => (i32::from(level) + low) as f32,
            Points::Table { values, levels } => {
                values[levels.iter().position(|&l| l == level).expect("a level of the grid")]
            }
        }
    }

    /// Integers with a scale of their own for each group of columns: what GPTQ and AWQ files hold. `bits` is 2 to 8.
    pub fn integers(bits: u32, group: usize, is_symmetric: bool) -> Self {
        let n = 1_i32 << bits;
        let low = if is_symmetric { -n / 2 } else { 0 };
        let scales = if is_symmetric { Scales::PositiveHalf } else { Scales::HalfAndZero };
        Self { group, points: Points::Integers { low, high: low + n - 1 }, scales }
    }

    /// `Q4_0`: 4-bit integers, an f16 scale for 32.
    pub fn q4_0() -> Self {
        Self::blocks(-8, 7, Scales::Half)
    }

    /// `Q5_0`.
    pub fn q5_0() -> Self {
        Self::blocks(-16, 15, Scales::Half)
    }

    /// `Q8_0`: its lowest integer, -128, is not used by the format's own encoder.
    pub fn q8_0() -> Self {
        Self::blocks(-127, 127, Scales::Half)
    }

    /// `Q4_1`: 4-bit integers, an f16 scale and an f16 min for 32.
    pub fn q4_1() -> Self {
        Self::blocks(0, 15, Scales::HalfAndMin)
    }

    /// `Q5_1`.
    pub fn q5_1() -> Self {
        Self::blocks(0, 31, Scales::HalfAndMin)
    }

    /// `IQ4_NL`: sixteen numbers that lie closer around 0, an f16 scale for 32.
    pub fn iq4_nl() -> Self {
        Self { group: 32, points: uneven(), scales: Scales::Half }
    }

    /// `MXFP4` (OCP Microscaling Formats, section 5.3): 4-bit floats, a power of two for 32. The scale is half the
    /// block's own, as the values are doubled.
    pub fn mxfp4() -> Self {
        let magnitudes = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
        let below =
            magnitudes.iter().enumerate().skip(1).rev().map(|(i, &v): (usize, &f32)| (-v, i as u8 + 8));
        let above = magnitudes.iter().enumerate().map(|(i, &v)| (v, i as u8));
        let (values, levels) = below.chain(above).unzip();
        Self { group: 32, points: Points::Table { values, levels }, scales: Scales::PowerOfTwo }
    }

    /// `IQ4_XS`: the numbers of `IQ4_NL`, eight groups of 32 with 6-bit scales.
    pub fn iq4_xs() -> Self {
        let scales = Scales::Integers { n_groups: 8, low: -32, high: 31 };
        Self { group: 32, points: uneven(), scales }
    }

    /// `Q2_K`: 2-bit integers, sixteen groups of 16 with 4-bit scales and mins.
    pub fn q2_k() -> Self {
        Self::super_blocks(16, [0, 3], Scales::IntegersAndMin { n_groups: 16, high: 15 })
    }

    /// `Q3_K`: 3-bit integers, sixteen groups of 16 with 6-bit scales.
    pub fn q3_k() -> Self {
        Self::super_blocks(16, [-4, 3], Scales::Integers { n_groups: 16, low: -32, high: 31 })
    }

    /// `Q4_K`: 4-bit integers, eight groups of 32 with 6-bit scales and mins.
    pub fn q4_k() -> Self {
        Self::super_blocks(32, [0, 15], Scales::IntegersAndMin { n_groups: 8, high: 63 })
    }

    /// `Q5_K`.
    pub fn q5_k() -> Self {
        Self::super_blocks(32, [0, 31], Scales::IntegersAndMin { n_groups: 8, high: 63 })
    }

    /// `Q6_K`: 6-bit integers, sixteen groups of 16 with 8-bit scales.
    pub fn q6_k() -> Self {
        Self::super_blocks(16, [-32, 31], Scales::Integers { n_groups: 16, low: -128, high: 127 })
    }

    fn blocks(low: i32, high: i32, scales: Scales) -> Self {
        Self { group: 32, points: Points::Integers { low, high }, scales }
    }

    fn super_blocks(group: usize, [low, high]: [i32; 2], scales: Scales) -> Self {
        Self { group, points: Points::Integers { low, high }, scales }
    }
}

/// The points of `IQ4_NL` and `IQ4_XS` (`kvalues_iq4nl` in ggml's `ggml-common.h`).
fn uneven() -> Points {
    const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    Points::Table { values: VALUES.map(f32::from).to_vec(), levels: (0..16).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_the_formats_blocks() {
        for grid in [
            Grid::q4_0(),
            Grid::q4_1(),
            Grid::q5_0(),
            Grid::q5_1(),
            Grid::q8_0(),
            Grid::iq4_nl(),
            Grid::mxfp4(),
        ] {
            assert_eq!(grid.unit(), 32);
        }
        for grid in [Grid::q2_k(), Grid::q3_k(), Grid::q4_k(), Grid::q5_k(), Grid::q6_k(), Grid::iq4_xs()] {
            assert_eq!(grid.unit(), 256);
        }
    }

    #[test]
    fn levels_stand_for_points() {
        assert_eq!(Grid::q4_0().point(0), -8.0);
        assert_eq!(Grid::q4_1().point(15), 15.0);
        assert_eq!(Grid::mxfp4().point(9), -1.0);
        assert_eq!(Grid::mxfp4().point(7), 12.0);
        assert_eq!(Grid::iq4_nl().point(8), 1.0);
        assert_eq!(Grid::mxfp4().ends(), [-12.0, 12.0]);
        assert_eq!(Grid::integers(4, 128, true).ends(), [-8.0, 7.0]);
    }
}
