//! What can be wrong with bytes or numbers that are to be decoded or encoded.

use slmc_ir::{Format, WeightError};

/// Bytes or weights that a format cannot take.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BlockError {
    /// The number of weights is not a whole number of blocks.
    #[error("{n_weights} weights are not whole {format} blocks of {block}", block = format.block_weights())]
    PartialBlock {
        /// The format asked for.
        format: Format,
        /// Weights given.
        n_weights: usize,
    },
    /// The number of bytes does not fit the number of weights.
    #[error("{found} bytes where {n_weights} weights in {format} take {expected}")]
    Length {
        /// The format asked for.
        format: Format,
        /// Weights given.
        n_weights: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A plain float format, where a packed one is needed.
    #[error("{format} has no levels and scales: choose a packed format, as q4_0 or q4_k")]
    NotPacked {
        /// The format asked for.
        format: Format,
    },
    /// A part of a block that its format has no room for.
    #[error("{what} {index} of the block is {value}: out of {format}'s range")]
    Part {
        /// The format asked for.
        format: Format,
        /// Which kind of part.
        what: &'static str,
        /// Its place among its kind, counted from 0.
        index: usize,
        /// The number that does not fit.
        value: i32,
    },
    /// A format that cannot hold the same weights.
    #[error("{format} does not hold these weights exactly: {why}")]
    Inexact {
        /// The format asked for.
        format: Format,
        /// What it lacks.
        why: &'static str,
    },
    /// An importance that is not a finite number from 0 up.
    #[error("the importance of column {column} is {value}: it must be finite and not negative")]
    Importance {
        /// The first such column, counted from 0.
        column: usize,
        /// What was given for it.
        value: f32,
    },
    /// Importances that do not go with rows of whole blocks.
    #[error(
        "{n_columns} importances for {n_weights} weights: one a column, and rows of whole {format} blocks"
    )]
    Columns {
        /// The format asked for.
        format: Format,
        /// Importances given.
        n_columns: usize,
        /// Weights given.
        n_weights: usize,
    },
    /// A NaN or an infinity, which packed formats cannot hold.
    #[error("weight {index} is {value}: {format} holds finite numbers only")]
    NotFinite {
        /// The format asked for.
        format: Format,
        /// The first such weight, counted from 0.
        index: usize,
        /// The number found there.
        value: f32,
    },
    /// A finite number so large that it, or its block's scale, would become infinite.
    #[error("weight {index} is {value}: too large for {format}; store this tensor as f32")]
    TooLarge {
        /// The format asked for.
        format: Format,
        /// The weight at fault, counted from 0.
        index: usize,
        /// The number found there.
        value: f32,
    },
    /// The tensor's shape does not go with the format.
    #[error(transparent)]
    Weight(#[from] WeightError),
}
