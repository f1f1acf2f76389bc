//! What evaluation knows of a model: tokens in, logits out.

/// A token's row in the embedding.
pub type TokenId = u32;

/// A forward pass that gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A token beyond the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}: is this the model's own tokenizer?")]
    Token {
        /// The token.
        token: TokenId,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// More tokens than the model can see at once.
    #[error("{n_tokens} tokens do not fit the context of {context_len}")]
    Context {
        /// Tokens given.
        n_tokens: usize,
        /// The model's limit.
        context_len: usize,
    },
    /// The weights could not be read.
    #[error(transparent)]
    Source(#[from] crate::SourceError),
    /// The result holds NaN or infinity.
    #[error("the logits at position {position} are not finite")]
    NotFinite {
        /// First position at fault.
        position: usize,
    },
}

/// The Burn model and the engine both are one: evaluation knows no other.
pub trait LanguageModel {
    /// Length of a row of logits.
    fn vocab_size(&self) -> usize;
    /// Longest sequence, in tokens.
    fn context_len(&self) -> usize;
    /// Runs one sequence from an empty context and hands over the logits of positions `first..`, in order, one or more
    /// rows at a time: `visit(position, rows)` with rows of `vocab_size`, the first of them after `position`. Logits of a
    /// whole sequence are never held at once.
    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError>;
}
