//! A handful of token sequences on which importance is measured.

use std::path::Path;

use slmc_data::{Documents, PackedTokens, Tokenizer};
use slmc_ir::{Checkpoint, TokenId};
use slmc_recipe::StageError;

use crate::Surroundings;

/// The model's own tokenizer.
pub fn tokenizer_of(checkpoint: &Checkpoint) -> Result<Tokenizer, StageError> {
    let none = || StageError::Input("the model has no tokenizer: text cannot be read with it".to_owned());
    let files = checkpoint.tokenizer.as_ref().ok_or_else(none)?;
    Tokenizer::from_files(files).map_err(|e| StageError::Input(e.to_string()))
}

/// The documents of a dataset.
pub fn documents_of(data: &str, surroundings: &Surroundings) -> Result<Documents, StageError> {
    Documents::open(Path::new(data), surroundings.data_root.as_deref())
        .map_err(|e| StageError::Input(e.to_string()))
}

/// `n_sequences` sequences of `seq_len` tokens, spread evenly over the dataset's training split.
pub fn sequences(
    data: &str,
    n_sequences: usize,
    seq_len: usize,
    tokenizer: &Tokenizer,
    surroundings: &Surroundings,
) -> Result<Vec<Vec<TokenId>>, StageError> {
    let documents = documents_of(data, surroundings)?;
    let packed =
        PackedTokens::pack(documents.train(), tokenizer).map_err(|e| StageError::Input(e.to_string()))?;
    let tokens = packed.tokens();
    let n_windows = tokens.len() / seq_len.max(1);
    if n_windows < n_sequences || n_sequences == 0 {
        let message = format!("{data}: {} tokens are not {n_sequences} sequences of {seq_len}", tokens.len());
        return Err(StageError::Input(message));
    }
    let start = |i: usize| i * n_windows / n_sequences * seq_len;
    Ok((0..n_sequences).map(|i| tokens[start(i)..start(i) + seq_len].to_vec()).collect())
}
