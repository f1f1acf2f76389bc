//! A model's tokenizer as it travels: the canonical form is Hugging Face's `tokenizer.json`.

use crate::TokenId;

/// Which ids have a meaning of their own, and what is added around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<TokenId>,
    /// Ends a text.
    pub eos: Option<TokenId>,
    /// Stands for what has no token.
    pub unk: Option<TokenId>,
    /// Fills a batch.
    pub pad: Option<TokenId>,
    /// Whether a text is begun with `bos`.
    pub add_bos: bool,
    /// Whether a text is ended with `eos`.
    pub add_eos: bool,
}

/// Everything that turns text into tokens and chats into text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// The whole of `tokenizer.json`.
    pub json: String,
    /// Ids with a meaning of their own.
    pub special: SpecialTokens,
    /// The chat template (Jinja), if the model has one.
    pub chat_template: Option<String>,
}
