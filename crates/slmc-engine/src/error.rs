//! What can go wrong.

use slmc_blocks::BlockError;
use slmc_ir::{ForwardError, SourceError, SpecError, TensorKey, TokenId};

/// A model that could not be loaded, or a step that gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The spec describes no possible model.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A tensor could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A tensor's packed numbers could not be laid out or decoded.
    #[error("tensor `{key}`: {source}")]
    Block {
        /// The tensor.
        key: TensorKey,
        /// What is wrong with it.
        source: BlockError,
    },
    /// The system would not start the threads.
    #[error("{0}")]
    Team(String),
    /// A token beyond the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}: is this the model's own tokenizer?")]
    Token {
        /// The token.
        token: TokenId,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// The context is full.
    #[error(
        "{n_tokens} more tokens do not fit: {held} of {capacity} are taken: shorten the prompt or ask for fewer tokens"
    )]
    Context {
        /// Tokens to be added.
        n_tokens: usize,
        /// Tokens that are there.
        held: usize,
        /// Tokens that fit.
        capacity: usize,
    },
    /// A setting that makes no sense.
    #[error("{what} = {value}: {why}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What was asked for.
        value: String,
        /// What it should be.
        why: String,
    },
    /// The result holds NaN or infinity.
    #[error("the logits at position {position} are not finite")]
    NotFinite {
        /// First position at fault.
        position: usize,
    },
    /// Nothing to go on from.
    #[error("the prompt has no tokens: give it a text, or a model that begins texts with BOS")]
    EmptyPrompt,
    /// The tokenizer refused the tokens.
    #[error(transparent)]
    Text(#[from] slmc_data::TokenizeError),
    /// The chat could not be written out.
    #[error(transparent)]
    Chat(#[from] slmc_data::ChatError),
}

impl EngineError {
    /// As evaluation knows it, while a sequence is run.
    pub(crate) fn into_forward(self, key: TensorKey) -> ForwardError {
        match self {
            Self::Token { token, vocab_size } => ForwardError::Token { token, vocab_size },
            Self::Context { n_tokens, capacity, .. } => {
                ForwardError::Context { n_tokens, context_len: capacity }
            }
            Self::NotFinite { position } => ForwardError::NotFinite { position },
            Self::Source(error) => error.into(),
            other => SourceError::Other { key, message: other.to_string() }.into(),
        }
    }
}
