//! A tokenizer to GGUF's `tokenizer.ggml.*`.

use slmc_formats::gguf::Value;
use slmc_ir::{SpecialTokens, TokenizerFiles};

use super::{MODEL_NONE, bpe, json::TokenizerJson, keys, spm};
use crate::error::TokenizerError;

/// The metadata of a tokenizer for an embedding of `vocab_size` rows.
///
/// # Errors
/// When GGUF has no way to say what `tokenizer.json` says, or its parts contradict each other.
pub(crate) fn tokenizer_metadata(
    files: Option<&TokenizerFiles>,
    vocab_size: usize,
) -> Result<Vec<(&'static str, Value)>, TokenizerError> {
    let Some(files) = files else {
        return Ok(vec![(keys::MODEL, Value::String(MODEL_NONE.to_owned()))]);
    };
    let json = TokenizerJson::parse(&files.json)?;
    json.check_is_bpe()?;
    let mut metadata = if spm::is_spm(&json) {
        spm::to_metadata(&json, &files.special, vocab_size)?
    } else {
        bpe::to_metadata(&json, vocab_size)?
    };
    push_special(&files.special, vocab_size, &mut metadata)?;
    if let Some(template) = &files.chat_template {
        metadata.push((keys::CHAT_TEMPLATE, Value::String(template.clone())));
    }
    Ok(metadata)
}

fn push_special(
    special: &SpecialTokens,
    vocab_size: usize,
    metadata: &mut Vec<(&'static str, Value)>,
) -> Result<(), TokenizerError> {
    let ids = [
        (keys::BOS, special.bos),
        (keys::EOS, special.eos),
        (keys::UNK, special.unk),
        (keys::PAD, special.pad),
    ];
    for (key, id) in ids {
        let Some(id) = id else { continue };
        if id as usize >= vocab_size {
            return Err(TokenizerError::SpecialId { what: key, id: id.into(), vocab_size });
        }
        metadata.push((key, Value::U32(id)));
    }
    // Both are always said: what a reader infers otherwise depends on the pre-tokenizer's name.
    metadata.push((keys::ADD_BOS, Value::Bool(special.add_bos)));
    metadata.push((keys::ADD_EOS, Value::Bool(special.add_eos)));
    Ok(())
}
