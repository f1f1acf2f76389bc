//! What can go wrong while a model is measured.

use slmc_data::TokenizeError;
use slmc_ir::ForwardError;

/// A measurement that gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The text could not be tokenized.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// The task asks for what cannot be done.
    #[error(transparent)]
    Task(Box<crate::tasks::TaskError>),
    /// The model failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The text is too short for one window.
    #[error(
        "the text has {n_tokens} tokens, fewer than one chunk of {ctx}: use a longer text or a smaller --ctx"
    )]
    TooShort {
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens of a chunk.
        ctx: usize,
    },
    /// A window size that scores nothing or that the model cannot see.
    #[error("{what} = {value}: {why}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What it says.
        value: usize,
        /// What it should be.
        why: String,
    },
    /// A model handed over something other than rows of its vocabulary, in order.
    #[error(
        "the model handed over position {position} with {n_logits} logits where position {expected} with {vocab_size} was due"
    )]
    Row {
        /// The position it named.
        position: usize,
        /// Length of the row.
        n_logits: usize,
        /// The position that was due.
        expected: usize,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// A logit is NaN or infinite.
    #[error(
        "the logits at token {token_index} of the text are not finite: the model is damaged or its arithmetic overflowed"
    )]
    NotFinite {
        /// The position in the text, in tokens.
        token_index: usize,
    },
    /// Two models that do not speak the same tokens.
    #[error("the model has {model} tokens and the baseline {baseline}: KL divergence needs one vocabulary")]
    Vocabulary {
        /// Of the model.
        model: usize,
        /// Of the baseline.
        baseline: usize,
    },
    /// The baseline was recorded on fewer tokens.
    #[error("the baseline has predictions for {found} tokens, fewer than are scored: record it again")]
    BaselineRows {
        /// Predictions that there are.
        found: usize,
    },
    /// The file of a baseline's predictions cannot be written.
    #[error("the baseline's predictions cannot be kept: {0}")]
    Cache(slmc_formats::FileError),
    /// The baseline's predictions cannot be used.
    #[error("{path}: {error}", path = path.display())]
    Baseline {
        /// The file that they are in.
        path: std::path::PathBuf,
        /// Why.
        error: crate::BaselineError,
    },
    /// The user stopped it.
    #[error("stopped after {done} of {total} {unit}")]
    Stopped {
        /// Chunks or items done.
        done: usize,
        /// Chunks or items planned.
        total: usize,
        /// What they are.
        unit: String,
        /// Whether the same evaluation will go on from there.
        kept: bool,
    },
}
