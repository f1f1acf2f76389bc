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
    /// The format can be read but not written.
    #[error("{format} can be decoded but not encoded here: choose f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 or q8_0")]
    NoEncoder {
        /// The format asked for.
        format: Format,
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
