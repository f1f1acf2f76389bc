//! A text made ready to be scored.

use slmc_data::Tokenizer;
use slmc_ir::TokenId;

use crate::EvalError;

/// The tokens of a text, and how many bytes each stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalText {
    tokens: Vec<TokenId>,
    /// Bytes of each token, `[n_tokens]`.
    n_bytes: Vec<u32>,
    /// Put in place of each chunk's first token where the model begins texts with it.
    bos: Option<TokenId>,
}

impl EvalText {
    /// Tokenizes a text whole, as llama.cpp's tools do.
    ///
    /// # Errors
    /// When the tokenizer refuses it.
    pub fn new(tokenizer: &Tokenizer, text: &str) -> Result<Self, EvalError> {
        let tokens = tokenizer.encode_document(text)?;
        let n_bytes = tokens.iter().map(|&token| tokenizer.n_bytes(token)).collect();
        let special = tokenizer.special();
        Ok(Self { tokens, n_bytes, bos: special.bos.filter(|_| special.add_bos) })
    }

    /// A text that is tokens already. `n_bytes` says how many bytes each stands for.
    ///
    /// # Panics
    /// When the two are not of one length.
    pub fn from_tokens(tokens: Vec<TokenId>, n_bytes: Vec<u32>, bos: Option<TokenId>) -> Self {
        assert_eq!(tokens.len(), n_bytes.len(), "each token has a number of bytes");
        Self { tokens, n_bytes, bos }
    }

    /// The tokens.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Bytes that each token stands for.
    pub fn n_bytes(&self) -> &[u32] {
        &self.n_bytes
    }

    /// What the model wants at the start of a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }
}
