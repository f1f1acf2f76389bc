//! Whole levels with their scales, before any file's layout: `weight = (level - zero point) * scale`.

/// A matrix in a few bits a weight: what GPTQ, AWQ and compressed-tensors files all hold, each in its own order.
///
/// Rows are output features, columns input features. Columns are cut into groups; in each row a group has a scale
/// and a zero point. Scales are exact in f16, so every file says the same weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    parts: QuantizedParts,
}

/// The numbers of a [`Quantized`], before they are checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedParts {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Bits of a level, 2 to 8.
    pub bits: u8,
    /// Columns that share a scale; the last group may be shorter.
    pub group_size: usize,
    /// Levels `[rows, columns]`, from 0 to 2^bits - 1.
    pub levels: Vec<u8>,
    /// Scales `[rows, n_groups]`, finite and exact in f16.
    pub scales: Vec<f32>,
    /// Zero points `[rows, n_groups]`, from 0 to 2^bits - 1: the level that stands for 0.
    pub zero_points: Vec<u8>,
    /// The order in which columns were cut into groups (GPTQ's act-order): the first `group_size` columns named here
    /// are group 0, and so on. `None` is from left to right.
    pub column_order: Option<Vec<u32>>,
}

/// Numbers that are no quantized matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum QuantizedError {
    #[error("{0} bits a level: levels have 2 to 8")]
    Bits(u8),
    #[error("groups of 0 columns")]
    NoGroup,
    #[error("a matrix of {rows} rows and {columns} columns has more weights than memory has addresses")]
    TooLarge { rows: usize, columns: usize },
    #[error("{found} {what} where the matrix has {expected}")]
    Length { what: &'static str, expected: usize, found: usize },
    #[error("{what} {index} is {value}: {bits} bits hold at most {largest}", largest = (1_u32 << bits) - 1)]
    Level { what: &'static str, index: usize, value: u8, bits: u8 },
    #[error("scale {index} is {value}: it must be finite and exact in f16")]
    Scale { index: usize, value: f32 },
    #[error("the column order does not name each of the {columns} columns once")]
    ColumnOrder { columns: usize },
}

impl Quantized {
    /// Checks that the numbers are a matrix.
    ///
    /// # Errors
    /// [`QuantizedError`] for the first thing that is wrong.
    pub fn new(parts: QuantizedParts) -> Result<Self, QuantizedError> {
        let QuantizedParts { rows, columns, bits, group_size, .. } = parts;
        if !(2..=8).contains(&bits) {
            return Err(QuantizedError::Bits(bits));
        }
        if group_size == 0 {
            return Err(QuantizedError::NoGroup);
        }
        let too_large = QuantizedError::TooLarge { rows, columns };
        let n_weights = rows.checked_mul(columns).ok_or(too_large)?;
        let n_scales = rows * columns.div_ceil(group_size);
        let lengths = [
            ("levels", n_weights, parts.levels.len()),
            ("scales", n_scales, parts.scales.len()),
            ("zero points", n_scales, parts.zero_points.len()),
        ];
        for (what, expected, found) in lengths {
            if found != expected {
                return Err(QuantizedError::Length { what, expected, found });
            }
        }
        let largest = ((1_u32 << bits) - 1) as u8;
        for (what, numbers) in [("level", &parts.levels), ("zero point", &parts.zero_points)] {
            if let Some(index) = numbers.iter().position(|&n| n > largest) {
                return Err(QuantizedError::Level { what, index, value: numbers[index], bits });
            }
        }
        if let Some(index) = parts.scales.iter().position(|&scale| !is_half(scale)) {
            return Err(QuantizedError::Scale { index, value: parts.scales[index] });
        }
        if parts.column_order.as_ref().is_some_and(|order| !is_order(order, columns)) {
            return Err(QuantizedError::ColumnOrder { columns });
        }
        Ok(Self { parts })
    }

    /// The numbers.
    pub fn parts(&self) -> &QuantizedParts {
        &self.parts
    }

    /// The numbers, to be taken apart.
    pub fn into_parts(self) -> QuantizedParts {
        self.parts
    }

    /// Groups in a row.
    pub fn n_groups(&self) -> usize {
        self.parts.columns.div_ceil(self.parts.group_size)
    }

    /// The group of each column.
    pub fn group_of_columns(&self) -> Vec<u32> {
        let group = |place: usize| (place / self.parts.group_size) as u32;
        match &self.parts.column_order {
            None => (0..self.parts.columns).map(group).collect(),
            Some(order) => {
                let mut groups = vec![0; order.len()];
                for (place, &column) in order.iter().enumerate() {
                    groups[column as usize] = group(place);
                }
                groups
            }
        }
    }

    /// Whether every zero point is the middle level, 2^(bits - 1): the file then needs none.
    pub fn is_symmetric(&self) -> bool {
        let middle = 1_u8 << (self.parts.bits - 1);
        self.parts.zero_points.iter().all(|&zero| zero == middle)
    }

    /// The weights of a row, into a slice of one number a column.
    ///
    /// # Panics
    /// When there is no such row or the slice has another length.
    pub fn decode_row(&self, row: usize, weights: &mut [f32]) {
        let (columns, n_groups) = (self.parts.columns, self.n_groups());
        let levels = &self.parts.levels[row * columns..(row + 1) * columns];
        let scales = &self.parts.scales[row * n_groups..(row + 1) * n_groups];
        let zeros = &self.parts.zero_points[row * n_groups..(row + 1) * n_groups];
        assert_eq!(weights.len(), columns, "a row has one weight a column");
        let weight =
            |level: u8, group: usize| (i32::from(level) - i32::from(zeros[group])) as f32 * scales[group];
        match &self.parts.column_order {
            None => {
                for (column, (out, &level)) in weights.iter_mut().zip(levels).enumerate() {
                    *out = weight(level, column / self.parts.group_size);
                }
            }
            Some(order) => {
                for (place, &column) in order.iter().enumerate() {
                    let column = column as usize;
                    weights[column] = weight(levels[column], place / self.parts.group_size);
                }
            }
        }
    }

    /// All weights `[rows, columns]`.
    pub fn decode(&self) -> Vec<f32> {
        let columns = self.parts.columns;
        let mut weights = vec![0.0; self.parts.rows * columns];
        for row in 0..self.parts.rows {
            self.decode_row(row, &mut weights[row * columns..(row + 1) * columns]);
        }
        weights
    }

    /// The matrix with smaller groups: each of `group_size` columns, with the scale of the group that it was part
    /// of. `None` when the size does not divide the groups evenly or columns are not in order.
    pub fn with_group_size(&self, group_size: usize) -> Option<Self> {
        let old = &self.parts;
        if group_size == old.group_size {
            return Some(self.clone());
        }
        if old.column_order.is_some() || group_size == 0 || !old.group_size.is_multiple_of(group_size) {
            return None;
        }
        let (n_old, n_new) = (self.n_groups(), old.columns.div_ceil(group_size));
        let from = |index: usize| index / n_new * n_old + index % n_new * group_size / old.group_size;
        let scales = (0..old.rows * n_new).map(|i| old.scales[from(i)]).collect();
        let zero_points = (0..old.rows * n_new).map(|i| old.zero_points[from(i)]).collect();
        Some(Self { parts: QuantizedParts { group_size, scales, zero_points, ..old.clone() } })
    }
}

/// Whether the number is finite and one that f16 holds.
fn is_half(number: f32) -> bool {
    let magnitude = number.abs();
    // Ten bits after the leading one, steps of 2^-24 at the least, 65504 at the most.
    let fits = number.to_bits() & 0x1fff == 0 || magnitude < 2.0_f32.powi(-14);
    let steps = magnitude * 2.0_f32.powi(24);
    magnitude <= 65504.0 && fits && (magnitude >= 2.0_f32.powi(-14) || steps.fract() == 0.0)
}

fn is_order(order: &[u32], columns: usize) -> bool {
    let mut seen = vec![false; columns];
    order.len() == columns
        && order.iter().all(|&column| {
            let seen = seen.get_mut(column as usize);
            seen.is_some_and(|seen| !std::mem::replace(seen, true))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> QuantizedParts {
        QuantizedParts {
            rows: 2,
            columns: 5,
            bits: 4,
            group_size: 2,
            levels: vec![0, 1, 2, 3, 4, 15, 14, 13, 12, 11],
            scales: vec![1.0, 0.5, 0.25, 2.0, -1.0, 0.125],
            zero_points: vec![8, 0, 4, 8, 8, 11],
            column_order: None,
        }
    }

    #[test]
    fn weights_are_levels_above_zero_points_times_scales() {
        let matrix = Quantized::new(parts()).unwrap();
        assert_eq!(matrix.decode(), [-8., -7., 1., 1.5, 0., 14., 12., -5., -4., 0.]);
        assert_eq!(matrix.group_of_columns(), [0, 0, 1, 1, 2]);
        assert!(!matrix.is_symmetric());
    }

    #[test]
    fn a_column_order_moves_groups_not_columns() {
        let matrix =
            Quantized::new(QuantizedParts { column_order: Some(vec![4, 0, 3, 1, 2]), ..parts() }).unwrap();
        assert_eq!(matrix.group_of_columns(), [0, 1, 2, 1, 0]);
        assert_eq!(matrix.decode()[..5], [-8., 0.5, -0.5, 1.5, -4.]);
        assert!(matrix.with_group_size(1).is_none());
    }

    #[test]
    fn smaller_groups_are_the_same_weights() {
        let matrix = Quantized::new(parts()).unwrap();
        let fine = matrix.with_group_size(1).unwrap();
        assert_eq!(fine.n_groups(), 5);
        assert_eq!(fine.decode(), matrix.decode());
        assert!(matrix.with_group_size(4).is_none());
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        let check = |change: &dyn Fn(&mut QuantizedParts)| {
            let mut parts = parts();
            change(&mut parts);
            Quantized::new(parts).unwrap_err()
        };
        assert_eq!(check(&|p| p.bits = 1), QuantizedError::Bits(1));
        assert_eq!(check(&|p| p.group_size = 0), QuantizedError::NoGroup);
        assert_eq!(
            check(&|p| p.columns = usize::MAX),
            QuantizedError::TooLarge { rows: 2, columns: usize::MAX }
        );
        assert!(matches!(
            check(&|p| p.rows = 3),
            QuantizedError::Length { what: "levels", expected: 15, .. }
        ));
        assert!(matches!(
            check(&|p| p.levels[3] = 16),
            QuantizedError::Level { what: "level", index: 3, .. }
        ));
        assert!(matches!(
            check(&|p| p.zero_points[1] = 16),
            QuantizedError::Level { what: "zero point", .. }
        ));
        assert!(matches!(check(&|p| p.scales[2] = 0.1), QuantizedError::Scale { index: 2, .. }));
        assert!(matches!(check(&|p| p.scales[2] = f32::NAN), QuantizedError::Scale { .. }));
        let order =
            |order: &'static [u32]| move |p: &mut QuantizedParts| p.column_order = Some(order.to_vec());
        for bad in [&[0, 1, 2, 3][..], &[0, 1, 2, 3, 3], &[0, 1, 2, 3, 5]] {
            assert_eq!(check(&order(bad)), QuantizedError::ColumnOrder { columns: 5 });
        }
    }

    #[test]
    fn halves_are_told_from_other_numbers() {
        for half in [0.0, -0.0, 1.0, -65504.0, 2.0_f32.powi(-24), 3.0 * 2.0_f32.powi(-24), 1023.0 / 1024.0] {
            assert!(is_half(half), "{half:e}");
        }
        for other in [65520.0, 0.1, 1.5 * 2.0_f32.powi(-24), 2.0_f32.powi(-25), 1.0 + 2.0_f32.powi(-11)] {
            assert!(!is_half(other), "{other:e}");
        }
        assert!(!is_half(f32::INFINITY) && !is_half(f32::NAN));
    }
}
