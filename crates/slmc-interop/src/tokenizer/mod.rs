//! Tokenizers: `tokenizer.json`, the form inside slmc, to and from GGUF's `tokenizer.ggml.*`.

pub(crate) mod bpe;
pub(crate) mod build;
pub(crate) mod from_gguf;
pub(crate) mod json;
pub(crate) mod pre;
pub(crate) mod spm;
pub(crate) mod to_gguf;
pub(crate) mod vocabulary;

/// Keys of GGUF metadata that say what a tokenizer does.
pub(crate) mod keys {
    pub(crate) const MODEL: &str = "tokenizer.ggml.model";
    pub(crate) const PRE: &str = "tokenizer.ggml.pre";
    pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
    pub(crate) const TYPES: &str = "tokenizer.ggml.token_type";
    pub(crate) const SCORES: &str = "tokenizer.ggml.scores";
    pub(crate) const MERGES: &str = "tokenizer.ggml.merges";
    pub(crate) const BOS: &str = "tokenizer.ggml.bos_token_id";
    pub(crate) const EOS: &str = "tokenizer.ggml.eos_token_id";
    pub(crate) const UNK: &str = "tokenizer.ggml.unknown_token_id";
    pub(crate) const PAD: &str = "tokenizer.ggml.padding_token_id";
    pub(crate) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    pub(crate) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    pub(crate) const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
    pub(crate) const REMOVE_EXTRA_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
    pub(crate) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
}

/// Values of [`keys::MODEL`].
pub(crate) const MODEL_BYTE_BPE: &str = "gpt2";
pub(crate) const MODEL_SPM: &str = "llama";
pub(crate) const MODEL_NONE: &str = "no_vocab";

/// Values of [`keys::TYPES`].
pub(crate) mod kinds {
    pub(crate) const NORMAL: i32 = 1;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const CONTROL: i32 = 3;
    pub(crate) const USER_DEFINED: i32 = 4;
    pub(crate) const UNUSED: i32 = 5;
    pub(crate) const BYTE: i32 = 6;
}

/// What stands for a row of the embedding that has no token (llama.cpp's converter writes the same).
pub(crate) fn padding_token(id: usize) -> String {
    format!("[PAD{id}]")
}
