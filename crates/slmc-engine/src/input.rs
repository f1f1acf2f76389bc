//! What projections are given, held as each of them multiplies it best.

use slmc_kernels::{
    Team,
    packed::{Activations, PackedMatrix, Precision},
};

/// What tokens are run for: it says how their activations are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Many are given, and all of a prompt or text is there: bf16 where the CPU has units for it.
    Read,
    /// One follows from the other.
    Write,
}

/// Prompts from this length on are read as such. Fewer tokens are sooner computed like written ones, as unpacking every weight
/// to bf16 takes as long for one token as for all of them: 8 tokens take half the time, 32 about the same.
const FEW_TO_READ: usize = 32;

impl Pass {
    /// How a prompt of so many tokens is read soonest.
    pub fn of_prompt(n_tokens: usize) -> Self {
        if n_tokens < FEW_TO_READ { Self::Write } else { Self::Read }
    }
}

/// Rows of activations: as int8 or bf16 for matrices of levels, as f32 for matrices of floats, both where both take them.
#[derive(Debug)]
pub(crate) struct Input {
    int8: Option<Activations>,
    /// In the place of int8 when tokens are read.
    half: Option<Activations>,
    float: Option<Activations>,
    /// What the rows that are held are for.
    pass: Pass,
}

impl Input {
    /// Room for what these matrices take; they have as many columns. `Float` holds everything as f32, `Half` what is read as
    /// bf16.
    pub fn new<'m>(precision: Precision, matrices: impl Iterator<Item = &'m PackedMatrix>) -> Self {
        let mut input = Self { int8: None, half: None, float: None, pass: Pass::Write };
        for matrix in matrices {
            let has_room = |held| Activations::new(matrix.n_columns(), held);
            if precision == Precision::Float || matrix.best_precision() == Precision::Float {
                input.float.get_or_insert_with(|| has_room(Precision::Float));
                continue;
            }
            input.int8.get_or_insert_with(|| has_room(Precision::Int8));
            if let Precision::Half(_) = precision {
                input.half.get_or_insert_with(|| has_room(precision));
            }
        }
        input
    }

    /// Gives back what many rows took; there is nothing to multiply until rows are taken in.
    pub fn shrink(&mut self) {
        for held in [&mut self.int8, &mut self.half, &mut self.float].into_iter().flatten() {
            *held = Activations::new(held.n_columns(), held.precision());
        }
    }

    /// Takes rows in, in the place of those before.
    pub fn set(&mut self, rows: &[f32], pass: Pass, team: &Team) {
        self.each(pass, |held| held.set_with(rows, team));
    }

    /// Takes in what RMSNorm makes of rows.
    pub fn set_rms_norm(&mut self, rows: &[f32], gain: &[f32], eps: f32, pass: Pass, team: &Team) {
        self.each(pass, |held| held.set_rms_norm(rows, gain, eps, team));
    }

    /// Takes in `silu(gate) · up` of rows, of which `gate_up` gives both.
    pub fn set_swiglu<'a>(
        &mut self,
        n_rows: usize,
        gate_up: &(dyn Fn(usize) -> [&'a [f32]; 2] + Sync),
        pass: Pass,
        team: &Team,
    ) {
        self.each(pass, |held| held.set_swiglu(n_rows, gate_up, team));
    }

    /// Takes in `silu(gate) · up` of products with what `x` holds, which are not kept. Where that can be done; says whether it
    /// was.
    pub fn set_gate_up(&mut self, gate_up: [(&PackedMatrix, usize); 2], x: &Self, team: &Team) -> bool {
        let is_read = x.pass == Pass::Read && self.float.is_none();
        let (Some(half), Some(x), true) = (&mut self.half, &x.half, is_read) else { return false };
        let is_set = half.set_gate_up(gate_up, x, team);
        if is_set {
            self.pass = Pass::Read;
        }
        is_set
    }

    fn each(&mut self, pass: Pass, take_in: impl FnMut(&mut Activations)) {
        self.pass = pass;
        let of_levels = match (&mut self.half, pass) {
            (Some(half), Pass::Read) => Some(half),
            _ => self.int8.as_mut(),
        };
        of_levels.into_iter().chain(&mut self.float).for_each(take_in);
    }

    /// What a matrix is multiplied with.
    ///
    /// # Panics
    /// When there was no room made for this matrix.
    pub fn of(&self, matrix: &PackedMatrix) -> &Activations {
        let of_levels = match (&self.half, self.pass) {
            (Some(half), Pass::Read) => Some(half),
            _ => self.int8.as_ref(),
        };
        let of_levels = of_levels.filter(|_| matrix.best_precision() == Precision::Int8);
        of_levels.or(self.float.as_ref()).expect("room was made for every matrix")
    }
}
