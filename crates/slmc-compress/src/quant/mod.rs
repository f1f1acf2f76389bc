//! Rounding weights to the numbers that a block format can hold.
//!
//! [`Hessian`] collects what enters a layer, [`Factor`] turns it into the order of rounding and what makes up for what,
//! [`solve`] rounds a weight to a [`Grid`], [`Outputs::solve`] with rows that make up for each other. [`neighbours`] says which channels should share a block. Formats are data: all of them go through the same solver.

mod awq;
mod budget;
mod cholesky;
mod codes;
mod factor;
mod grid;
mod hessian;
mod inputs;
mod neighbours;
mod outputs;
mod propose;
mod refine;
mod round;
mod solve;
#[cfg(test)]
mod test_support;
mod trial;
mod widest;

pub use awq::{FoundScales, RoundBy, ScaleSearch, importance_of};
pub use budget::{Choice, allocate};
pub use codes::Codes;
pub use factor::Factor;
pub use grid::{Grid, Points, Scales};
pub use hessian::Hessian;
pub use inputs::{InputRounding, energies};
pub use neighbours::{Reader, neighbours};
pub use outputs::Outputs;
pub use solve::{SolveSettings, solve};
