//! What projections are given, held as each of them multiplies it best.

use slmc_kernels::{
    Team,
    packed::{Activations, PackedMatrix, Precision},
};

/// Rows of activations: as int8 for matrices of levels, as f32 for matrices of floats, both where both take them.
#[derive(Debug)]
pub(crate) struct Input {
    int8: Option<Activations>,
    float: Option<Activations>,
}

impl Input {
    /// Room for what these matrices take; they have as many columns. `Float` holds everything as f32.
    pub fn new<'m>(precision: Precision, matrices: impl Iterator<Item = &'m PackedMatrix>) -> Self {
        let mut input = Self { int8: None, float: None };
        for matrix in matrices {
            let held = if precision == Precision::Float { precision } else { matrix.best_precision() };
            let place = match held {
                Precision::Int8 => &mut input.int8,
                Precision::Float => &mut input.float,
            };
            place.get_or_insert_with(|| Activations::new(matrix.n_columns(), held));
        }
        input
    }

    /// Takes rows in, in the place of those before.
    pub fn set(&mut self, rows: &[f32], team: &Team) {
        self.each(|held| held.set_with(rows, team));
    }

    /// Takes in what RMSNorm makes of rows.
    pub fn set_rms_norm(&mut self, rows: &[f32], gain: &[f32], eps: f32, team: &Team) {
        self.each(|held| held.set_rms_norm(rows, gain, eps, team));
    }

    /// Takes in `silu(gate) · up` of rows, of which `gate_up` gives both.
    pub fn set_swiglu<'a>(
        &mut self,
        n_rows: usize,
        gate_up: &(dyn Fn(usize) -> [&'a [f32]; 2] + Sync),
        team: &Team,
    ) {
        self.each(|held| held.set_swiglu(n_rows, gate_up, team));
    }

    fn each(&mut self, take_in: impl FnMut(&mut Activations)) {
        [&mut self.int8, &mut self.float].into_iter().flatten().for_each(take_in);
    }

    /// What a matrix is multiplied with.
    ///
    /// # Panics
    /// When there was no room made for this matrix.
    pub fn of(&self, matrix: &PackedMatrix) -> &Activations {
        let int8 = self.int8.as_ref().filter(|_| matrix.best_precision() == Precision::Int8);
        int8.or(self.float.as_ref()).expect("room was made for every matrix")
    }
}
