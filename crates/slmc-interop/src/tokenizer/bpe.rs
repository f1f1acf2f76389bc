//! Byte-level BPE, GGUF's `gpt2`.

use slmc_formats::gguf::{Array, Value};
use slmc_ir::SpecialTokens;

use super::{
    MODEL_BYTE_BPE,
    build::{Parts, tokenizer_json},
    json::TokenizerJson,
    keys, kinds, padding_token,
    pre::PreTokenizer,
    vocabulary::{Token, check_merge, ids_of, tokens_by_id},
};
use crate::error::{TokenizerError, shorten};

/// The text of a `tokenizer.json`.
pub(crate) fn to_json(
    tokens: &[Token],
    merges: &[String],
    pre: &PreTokenizer,
    special: &SpecialTokens,
) -> Result<String, TokenizerError> {
    let texts = tokens.iter().map(|token| token.text.as_str()).enumerate();
    let ids = ids_of(texts, tokens.len())?;
    let mut union = String::new();
    for (index, merge) in merges.iter().enumerate() {
        let halves = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let (left, right) =
            halves.ok_or_else(|| TokenizerError::MergeForm { index, merge: shorten(merge) })?;
        check_merge(&ids, index, left, right, &mut union)?;
    }
    tokenizer_json(&Parts {
        tokens,
        merges,
        normalizer: pre.normalizer(),
        pre_tokenizer: pre.pre_tokenizer(),
        decoder: pre.decoder(),
        unk_token: None,
        byte_fallback: false,
        ignore_merges: pre.ignore_merges,
        special,
    })
}

/// Model, splitting, tokens and merges as metadata.
pub(crate) fn to_metadata(
    json: &TokenizerJson,
    vocab_size: usize,
) -> Result<Vec<(&'static str, Value)>, TokenizerError> {
    let pre = PreTokenizer::of_json(json.normalizer.as_ref(), json.pre_tokenizer.as_ref())?;
    if json.model.ignore_merges && !pre.ignore_merges {
        return Err(TokenizerError::Inexpressible { what: "ignore_merges", found: "true".to_owned() });
    }
    let tokens = tokens_by_id(json, vocab_size)?;
    let by_id = tokens.iter().enumerate();
    let ids = ids_of(by_id.filter_map(|(id, token)| Some((id, token.as_ref()?.text.as_str()))), vocab_size)?;
    let mut merges = Vec::with_capacity(json.model.merges.len());
    let mut union = String::new();
    for (index, merge) in json.model.merges.iter().enumerate() {
        let (left, right) = (merge.0.as_str(), merge.1.as_str());
        if left.is_empty() || right.is_empty() || left.contains(' ') || right.contains(' ') {
            let merge = shorten(&format!("{left} {right}"));
            return Err(TokenizerError::MergeForm { index, merge });
        }
        check_merge(&ids, index, left, right, &mut union)?;
        merges.push(format!("{left} {right}"));
    }
    drop(ids);
    let mut texts = Vec::with_capacity(vocab_size);
    let mut types = Vec::with_capacity(vocab_size);
    for (id, token) in tokens.into_iter().enumerate() {
        let token = token.unwrap_or_else(|| Token { text: padding_token(id), kind: kinds::UNUSED });
        texts.push(token.text);
        types.push(token.kind);
    }
    Ok(vec![
        (keys::MODEL, Value::String(MODEL_BYTE_BPE.to_owned())),
        (keys::PRE, Value::String(pre.names[0].to_owned())),
        (keys::TOKENS, Value::Array(Array::String(texts))),
        (keys::TYPES, Value::Array(Array::I32(types))),
        (keys::MERGES, Value::Array(Array::String(merges))),
    ])
}
