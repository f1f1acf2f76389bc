//! Whole levels with one scale for each group of columns: what GPTQ, AWQ and compressed-tensors files hold.
//!
//! On the way they are kept as blocks of a ggml format that says the same weights ([`slmc_blocks::exact_format`]), so that
//! they can go into a GGUF as well: one set of codes, many files.

use half::f16;
use ndarray::{ArrayView1, ArrayView2};
use slmc_compress::quant::{Codes, Grid};
use slmc_interop::{PackedLayout, PackedScheme};
use slmc_ir::{Format, Quantized, QuantizedParts, Weight};

/// Bits and groups, such as `w4g128`: 4 bits, a scale for 128 columns; `w4g128-asym` with a zero point for each, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    bits: u8,
    group: usize,
    is_symmetric: bool,
}

impl Scheme {
    /// Reads a name; `None` where it is no scheme's but a format's.
    ///
    /// # Errors
    /// In words, for a scheme that there is not.
    pub fn parse(name: &str) -> Result<Option<Self>, String> {
        let Some(rest) = name.strip_prefix('w').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        else {
            return Ok(None);
        };
        let (sizes, is_symmetric) = match rest.strip_suffix("-asym") {
            Some(sizes) => (sizes, false),
            None => (rest, true),
        };
        let wrong = || {
            format!(
                "format `{name}`: write a scheme as w4g128, or w4g128-asym with zero points: 2 to 8 bits, \
                        groups of a multiple of 32 columns"
            )
        };
        let (bits, group) = sizes.split_once('g').ok_or_else(wrong)?;
        let (bits, group) = (bits.parse().map_err(|_| wrong())?, group.parse().map_err(|_| wrong())?);
        let is_known = (2..=8).contains(&bits) && (32..=1 << 16).contains(&group) && group % 32 == 0;
        // A signed level and a zero point of 8 bits are more than the blocks hold that carry them.
        if !is_known || (bits == 8 && !is_symmetric) {
            return Err(wrong());
        }
        Ok(Some(Self { bits, group, is_symmetric }))
    }

    /// Its name.
    pub fn name(self) -> String {
        let end = if self.is_symmetric { "" } else { "-asym" };
        format!("w{}g{}{end}", self.bits, self.group)
    }

    /// Stored bits of a weight.
    pub fn bits_per_weight(self) -> f64 {
        let zero = if self.is_symmetric { 0.0 } else { f64::from(self.bits) };
        f64::from(self.bits) + (16.0 + zero) / self.group as f64
    }

    /// The files of a layout that hold it.
    pub fn packed_in(self, layout: PackedLayout) -> PackedScheme {
        let Self { bits, group, is_symmetric } = self;
        PackedScheme { layout, bits, group_size: Some(group), symmetric: is_symmetric, column_order: false }
    }

    /// The numbers that it can hold.
    pub fn grid(self) -> Grid {
        Grid::integers(self.bits.into(), self.group, self.is_symmetric)
    }

    /// The level that stands for 0 where there are no zero points.
    fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// The blocks that carry rows of so many columns; `None` where none does.
    pub fn container(self, n_columns: usize) -> Option<Format> {
        let largest = ((1_u32 << self.bits) - 1) as u8;
        let zeros = if self.is_symmetric { (self.middle(), self.middle()) } else { (0, largest) };
        slmc_blocks::exact_format(n_columns, self.group, self.bits, zeros)
    }

    /// Codes on the scheme's grid, as blocks.
    ///
    /// # Errors
    /// In words, when the codes are not of the grid.
    pub fn pack(self, codes: &Codes, container: Format) -> Result<Weight, String> {
        let zero = |&[scale, min]: &[f32; 2]| match self.is_symmetric {
            true => self.middle(),
            false if scale == 0.0 => 0,
            false => (min / scale).round() as u8,
        };
        let matrix = Quantized::new(QuantizedParts {
            rows: codes.n_rows,
            columns: codes.n_columns,
            bits: self.bits,
            group_size: self.group,
            levels: codes.levels.clone(),
            scales: codes.groups.iter().map(|&[scale, _]| scale).collect(),
            zero_points: codes.groups.iter().map(zero).collect(),
            column_order: None,
        });
        let matrix = matrix.map_err(|e| e.to_string())?;
        slmc_blocks::from_quantized(&matrix, container).map_err(|e| e.to_string())
    }

    /// The matrix that [`Scheme::pack`] put into blocks: the same weights; of zero points, one that they can have.
    ///
    /// # Errors
    /// In words, for blocks of another origin.
    pub fn unpack(self, weight: &Weight) -> Result<Quantized, String> {
        let blocks = slmc_blocks::to_quantized(weight).map_err(|e| e.to_string())?;
        let blocks = blocks.into_parts();
        let (rows, columns) = (blocks.rows, blocks.columns);
        let (n_groups, n_blocks) = (columns.div_ceil(self.group), columns.div_ceil(blocks.group_size));
        let mut matrix = QuantizedParts {
            rows,
            columns,
            bits: self.bits,
            group_size: self.group,
            levels: vec![0; rows * columns],
            ..QuantizedParts::default()
        };
        for row in 0..rows {
            for group in 0..n_groups {
                let own =
                    row * columns + group * self.group..row * columns + columns.min((group + 1) * self.group);
                let block = row * n_blocks + group * self.group / blocks.group_size;
                let middle = i32::from(blocks.zero_points[block]);
                let offsets = blocks.levels[own.clone()].iter().map(|&level| i32::from(level) - middle);
                let zero = match self.is_symmetric {
                    true => i32::from(self.middle()),
                    false => -offsets.clone().min().unwrap_or(0).min(0),
                };
                for (to, offset) in matrix.levels[own].iter_mut().zip(offsets) {
                    *to = u8::try_from(offset + zero).map_err(|_| self.foreign())?;
                }
                matrix.scales.push(blocks.scales[block]);
                matrix.zero_points.push(u8::try_from(zero).map_err(|_| self.foreign())?);
            }
        }
        Quantized::new(matrix).map_err(|e| e.to_string())
    }

    fn foreign(self) -> String {
        format!("the blocks hold levels that are none of {}", self.name())
    }

    /// Each weight to the nearest level of a scale that just covers its group: the baseline to beat.
    pub fn round(self, weight: ArrayView2<'_, f32>) -> Codes {
        self.round_clipped(weight, |_, _, _| [1.0; 2])
    }

    /// Each weight to the nearest level of the scale whose errors cost least, columns being of so much importance: scales may cover
    /// less than their group (AWQ's clipping).
    pub fn round_weighted(self, weight: ArrayView2<'_, f32>, importance: &[f32]) -> Codes {
        /// Shares of a group's range that are tried: all of it down to half.
        const CLIPS: u8 = 21;
        self.round_clipped(weight, |first, group, step| {
            let cost = |clips: [f32; 2]| {
                let step = step(clips);
                let costs =
                    group.iter().zip(&importance[first..]).map(|(&w, by)| by * (w - step.nearest(w)).powi(2));
                costs.sum::<f32>()
            };
            let best = |of: &dyn Fn(f32) -> [f32; 2]| {
                let clips = (0..CLIPS).map(|i| of(1.0 - 0.025 * f32::from(i)));
                // The widest of equals.
                clips.min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or([1.0; 2])
            };
            if self.is_symmetric {
                return best(&|clip| [clip; 2]);
            }
            // Both ends, one after the other.
            let [_, upper] = best(&|clip| [1.0, clip]);
            best(&|clip| [clip, upper])
        })
    }

    /// Rounds with what `clip` says of a group, from its first column, its weights, and the levels there are between shares of its ends.
    fn round_clipped(
        self,
        weight: ArrayView2<'_, f32>,
        clip: impl Fn(usize, ArrayView1<'_, f32>, &dyn Fn([f32; 2]) -> Step) -> [f32; 2],
    ) -> Codes {
        let grid = self.grid();
        let (n_rows, n_columns) = weight.dim();
        let ends = grid.ends();
        let (mut levels, mut groups) = (Vec::with_capacity(n_rows * n_columns), Vec::new());
        for row in weight.rows() {
            for (index, group) in row.axis_chunks_iter(ndarray::Axis(0), self.group).enumerate() {
                let least = group.iter().fold(0.0_f32, |least, &w| least.min(w));
                let most = group.iter().fold(0.0_f32, |most, &w| most.max(w));
                let step = |[lower, upper]: [f32; 2]| {
                    Step::of([least * lower, most * upper], ends, self.is_symmetric)
                };
                let step = step(clip(index * self.group, group, &step));
                levels.extend(group.iter().map(|&w| step.level(w)));
                groups.push([step.scale, step.zero * step.scale]);
            }
        }
        let units = vec![[1.0; 2]; groups.len()];
        Codes { grid, n_rows, n_columns, levels, groups, units, row_errors: vec![0.0; n_rows] }
    }
}

/// The levels of a group.
struct Step {
    scale: f32,
    zero: f32,
    inverse: f32,
    ends: [f32; 2],
}

impl Step {
    /// Those that cover a range.
    fn of([least, most]: [f32; 2], [low, high]: [f32; 2], is_symmetric: bool) -> Self {
        let half = |x: f32| f16::from_f32(x).to_f32();
        let (scale, zero) = match is_symmetric {
            true => (half((least / low).max(most / high)), 0.0),
            false => {
                let scale = half((most - least) / (high - low));
                (scale, if scale > 0.0 { (-least / scale).round().clamp(low, high) } else { 0.0 })
            }
        };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        Self { scale, zero, inverse, ends: [low, high] }
    }

    fn point(&self, w: f32) -> f32 {
        (w * self.inverse + self.zero).round().clamp(self.ends[0], self.ends[1])
    }

    fn level(&self, w: f32) -> u8 {
        (self.point(w) - self.ends[0]) as u8
    }

    fn nearest(&self, w: f32) -> f32 {
        (self.point(w) - self.zero) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    fn numbers(rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            ((i * 7919 + j * 104_729) as f32 * 0.618).sin().powi(3) * 0.1
        })
    }

    #[test]
    fn names_are_schemes() {
        assert_eq!(Scheme::parse("q4_0"), Ok(None));
        for name in ["w4g128", "w4g32-asym", "w8g64", "w3g96"] {
            assert_eq!(Scheme::parse(name).unwrap().unwrap().name(), name);
        }
        for name in ["w4", "w1g32", "w4g100", "w4g0", "w9g64", "w4g64-sym", "w8g64-asym"] {
            assert!(Scheme::parse(name).is_err(), "{name}");
        }
    }

    #[test]
    fn clipping_costs_less_where_columns_matter() {
        let mut weight = numbers(6, 128);
        // One large weight in each group, in a column that nothing comes by.
        let is_large = |j: usize| j % 64 == 5;
        weight.indexed_iter_mut().filter(|((_, j), _)| is_large(*j)).for_each(|(_, w)| *w = 1.0);
        let importance: Vec<f32> = (0..128).map(|j| if is_large(j) { 1e-4 } else { 1.0 }).collect();
        for name in ["w4g128", "w4g64-asym"] {
            let scheme = Scheme::parse(name).unwrap().unwrap();
            let cost = |codes: &Codes| -> f32 {
                let decoded = codes.decode();
                let one = |((i, j), w): ((usize, usize), &f32)| importance[j] * (w - decoded[[i, j]]).powi(2);
                weight.indexed_iter().map(one).sum()
            };
            let (plain, clipped) =
                (scheme.round(weight.view()), scheme.round_weighted(weight.view(), &importance));
            assert!(cost(&clipped) < 0.6 * cost(&plain), "{name}: {} {}", cost(&clipped), cost(&plain));
            let carrier = scheme.container(128).unwrap();
            assert!(scheme.pack(&clipped, carrier).is_ok(), "{name}");
        }
    }

    #[test]
    fn rounded_packed_and_unpacked_it_is_the_same_matrix() {
        // Rows whose last group is shorter, as those of a width of 576 with groups of 128.
        let weight = numbers(5, 160);
        for name in ["w4g64", "w4g64-asym", "w8g32", "w3g64", "w2g32-asym"] {
            let scheme = Scheme::parse(name).unwrap().unwrap();
            let codes = scheme.round(weight.view());
            let container = scheme.container(160).unwrap();
            let packed = scheme.pack(&codes, container).unwrap();
            let expected: Vec<f32> = codes.decode().iter().copied().collect();
            for (found, expected) in slmc_blocks::decode_weight(&packed).unwrap().iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{name}: {found} {expected}");
            }
            let matrix = scheme.unpack(&packed).unwrap();
            assert_eq!(matrix.decode(), slmc_blocks::decode_weight(&packed).unwrap(), "{name}");
            assert_eq!(matrix.parts().bits, scheme.bits);
            // No weight is further off than half a step, but for the rounding of scales to f16.
            for (row, n_groups) in (0..5).zip(std::iter::repeat(codes.n_groups())) {
                for column in 0..160 {
                    let [scale, _] = codes.groups[row * n_groups + column / scheme.group];
                    let apart = (weight[[row, column]] - expected[row * 160 + column]).abs();
                    assert!(apart <= 0.51 * scale, "{name}: {apart} of {scale}");
                }
            }
        }
    }
}
