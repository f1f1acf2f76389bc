//! What a solver decides: levels and scales of a matrix, before any file's layout.

use ndarray::Array2;

use super::grid::Grid;
use crate::MatRef;

/// Levels and scales of a matrix on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// What they are levels and scales of.
    pub grid: Grid,
    /// Output features.
    pub n_rows: usize,
    /// Input features.
    pub n_columns: usize,
    /// The level of each weight, `[n_rows, n_columns]`.
    pub levels: Vec<u8>,
    /// Scale and min of each group, `[n_rows, n_groups]`: exactly what the grid can store.
    pub groups: Vec<[f32; 2]>,
    /// Scale and min of each unit, `[n_rows, n_units]`, that its groups' are multiples of; 1 where groups have their own.
    pub units: Vec<[f32; 2]>,
    /// `Δ H Δᵀ` of each row, by the Hessian that it was solved with.
    pub row_errors: Vec<f64>,
}

impl Codes {
    /// Codes whose rows are still to be put in their places.
    pub fn empty(grid: &Grid, n_rows: usize, n_columns: usize) -> Self {
        let mut codes = Self {
            grid: grid.clone(),
            n_rows,
            n_columns,
            levels: vec![0; n_rows * n_columns],
            groups: Vec::new(),
            units: Vec::new(),
            row_errors: vec![0.0; n_rows],
        };
        codes.groups = vec![[0.0; 2]; n_rows * codes.n_groups()];
        codes.units = vec![[0.0; 2]; n_rows * codes.n_units()];
        codes
    }

    /// Puts the rows of a part, of the same grid and as many columns, in the places of `rows`.
    pub fn put_rows(&mut self, part: &Self, rows: &[usize]) {
        let (n, n_groups, n_units) = (self.n_columns, self.n_groups(), self.n_units());
        for (from, &to) in rows.iter().enumerate() {
            self.levels[to * n..(to + 1) * n].copy_from_slice(&part.levels[from * n..(from + 1) * n]);
            self.groups[to * n_groups..(to + 1) * n_groups]
                .copy_from_slice(&part.groups[from * n_groups..(from + 1) * n_groups]);
            self.units[to * n_units..(to + 1) * n_units]
                .copy_from_slice(&part.units[from * n_units..(from + 1) * n_units]);
            self.row_errors[to] = part.row_errors[from];
        }
    }

    /// Groups of a row.
    pub fn n_groups(&self) -> usize {
        self.n_columns.div_ceil(self.grid.group)
    }

    /// Units of a row.
    pub fn n_units(&self) -> usize {
        self.n_columns.div_ceil(self.grid.unit())
    }

    /// The integers that a group's scale and min are of its unit's.
    pub fn integers(&self, row: usize, group: usize) -> [i32; 2] {
        let [scale, min] = self.groups[row * self.n_groups() + group];
        let unit = group * self.grid.group / self.grid.unit();
        let [unit_scale, unit_min] = self.units[row * self.n_units() + unit];
        let whole = |x: f32, of: f32| if of == 0.0 { 0 } else { (x / of).round() as i32 };
        [whole(scale, unit_scale), whole(min, unit_min)]
    }

    /// The weights that the codes stand for.
    pub fn decode(&self) -> Array2<f32> {
        Array2::from_shape_fn((self.n_rows, self.n_columns), self.decoder())
    }

    /// Squared error of the weights, and the squares of the weights `[n_rows, n_columns]` that were asked for.
    pub fn squares(&self, weight: MatRef<'_>) -> [f64; 2] {
        let found = self.decoder();
        weight.indexed_iter().fold([0.0, 0.0], |[error, squares], (at, &asked)| {
            [error + f64::from(asked - found(at)).powi(2), squares + f64::from(asked).powi(2)]
        })
    }

    /// The weight of a row and a column.
    fn decoder(&self) -> impl Fn((usize, usize)) -> f32 {
        let points: Vec<f32> = (0..=u8::MAX).map(|level| self.point_or_nan(level)).collect();
        move |(row, column)| {
            let [scale, min] = self.groups[row * self.n_groups() + column / self.grid.group];
            scale * points[usize::from(self.levels[row * self.n_columns + column])] - min
        }
    }

    fn point_or_nan(&self, level: u8) -> f32 {
        use super::grid::Points;
        match &self.grid.points {
            Points::Integers { low, high } if i32::from(level) + low <= *high => self.grid.point(level),
            Points::Table { levels, .. } if levels.contains(&level) => self.grid.point(level),
            _ => f32::NAN,
        }
    }
}
