//! What can keep an algorithm from an answer.

/// Statistics or a request that cannot be solved.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CompressError {
    /// Statistics were asked before any activation was observed.
    #[error("no tokens were observed: run the calibration data through the model first")]
    NoTokens,
    /// A statistic or a weight is NaN or infinite.
    #[error("{what} of channel {channel} is {value}: an activation or a weight is not finite")]
    NotFinite {
        /// The quantity at fault.
        what: &'static str,
        /// The channel, counted from 0.
        channel: usize,
        /// The number found there.
        value: f64,
    },
    /// Weights and statistics belong to different layers.
    #[error(
        "the weight has {columns} input channels, the statistics {channels}: they are of different layers"
    )]
    Channels {
        /// Columns of the weight.
        columns: usize,
        /// Channels of the statistics.
        channels: usize,
    },
    /// The channels to keep are not an ascending choice of those that are there.
    #[error("the channels to keep must be at least one, ascending and below {n_channels}")]
    Kept {
        /// Channels that are there.
        n_channels: usize,
    },
    /// Damping below zero, or not a number.
    #[error("damping is {0}: it must be a finite number of at least 0, usually 0.01")]
    Damping(f64),
    /// Rows that are not whole units of a grid.
    #[error("rows of {columns} weights are not whole units of {unit}")]
    Units {
        /// Columns of the layer.
        columns: usize,
        /// Columns that the format packs together.
        unit: usize,
    },
    /// The Gram matrix could not be factored with any damping.
    #[error(
        "the activations' Gram matrix cannot be factored, even with a damping of {0} of its mean diagonal"
    )]
    Singular(f64),
}

/// A choice of layers that could not be made. `E` is the error of the caller's loss.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError<E: std::error::Error + 'static> {
    /// More layers to remove than may go.
    #[error("cannot remove {n_remove} of {n_layers} layers: at least one must stay")]
    TooMany {
        /// Layers to remove.
        n_remove: usize,
        /// Layers that are there.
        n_layers: usize,
    },
    /// The influences do not fit the layers, are not finite, or no candidate is allowed.
    #[error("the prefilter needs at least 1 candidate and {n_layers} finite influences, one for each layer")]
    Candidates {
        /// Layers that are there.
        n_layers: usize,
    },
    /// Every removal left a model without a finite loss.
    #[error("beside layers {removed:?}, the loss is not finite whichever layer is removed next")]
    NoFiniteLoss {
        /// Layers removed before, ascending.
        removed: Vec<usize>,
    },
    /// The caller's loss failed.
    #[error("the loss without layers {removed:?} could not be measured")]
    Loss {
        /// Layers left out, ascending.
        removed: Vec<usize>,
        /// The caller's error.
        source: E,
    },
}
