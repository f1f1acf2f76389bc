//! Tokens as a model sees them first.

use slmc_ir::{Checkpoint, Role, TensorKey, TokenId, Weight};

/// A model's embedding, still packed.
pub struct Embedding(Weight);

impl Embedding {
    /// # Errors
    /// In words, when it cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, String> {
        checkpoint.weights.read(TensorKey::model(Role::Embedding)).map(Self).map_err(|e| e.to_string())
    }

    /// The tokens' rows, `[n_tokens, d_model]`.
    ///
    /// # Errors
    /// In words, when a token is none of the model's.
    pub fn rows<'a>(&self, tokens: impl IntoIterator<Item = &'a TokenId>) -> Result<Vec<f32>, String> {
        let rows: Vec<usize> = tokens.into_iter().map(|&token| token as usize).collect();
        if let Some(row) = rows.iter().find(|&&row| row >= self.0.n_rows()) {
            return Err(format!(
                "the text has token {row}, and the model's vocabulary is {}",
                self.0.n_rows()
            ));
        }
        slmc_blocks::decode_weight(&self.0.with_rows(&rows)).map_err(|e| e.to_string())
    }
}
