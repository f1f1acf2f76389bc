//! GGUF's `tokenizer.ggml.*` to a tokenizer.

use slmc_formats::gguf::{Array, GgufHeader, Value};
use slmc_ir::{SpecialTokens, TokenizerFiles};

use super::{
    MODEL_BYTE_BPE, MODEL_NONE, MODEL_SPM, bpe, keys, kinds, pre::PreTokenizer, spm, vocabulary::Token,
};
use crate::error::{TokenizerError, shorten};

/// What llama.cpp takes a SentencePiece model for that does not say (`llama_vocab::impl::load`).
const SPM_IMPLIED: SpecialTokens =
    SpecialTokens { bos: Some(1), eos: Some(2), unk: Some(0), pad: None, add_bos: true, add_eos: false };

/// The tokenizer of a GGUF whose embedding has `n_rows` rows; `None` when it has none.
///
/// # Errors
/// When the metadata are incomplete, contradict each other or the embedding, or describe a tokenizer that slmc
/// does not know.
pub(crate) fn read_tokenizer(
    header: &GgufHeader,
    n_rows: usize,
) -> Result<Option<TokenizerFiles>, TokenizerError> {
    let model = match text(header, keys::MODEL)? {
        None | Some(MODEL_NONE) => return Ok(None),
        Some(model) => model,
    };
    let tokens = read_tokens(header, n_rows)?;
    let (json, special) = match model {
        MODEL_BYTE_BPE => {
            let name = text(header, keys::PRE)?.ok_or(TokenizerError::MissingKey(keys::PRE))?;
            let pre = PreTokenizer::of_name(name)?;
            let implied = SpecialTokens { add_bos: pre.implied_add_bos, ..SpecialTokens::default() };
            let special = read_special(header, implied, n_rows)?;
            let merges = strings(header, keys::MERGES)?.ok_or(TokenizerError::MissingKey(keys::MERGES))?;
            (bpe::to_json(&tokens, merges, pre, &special)?, special)
        }
        MODEL_SPM => {
            let special = read_special(header, SPM_IMPLIED, n_rows)?;
            let scores = read_scores(header, n_rows)?;
            if flag(header, keys::REMOVE_EXTRA_SPACES)? == Some(true) {
                let what = "metadata that remove repeated spaces:";
                return Err(TokenizerError::Inexpressible {
                    what,
                    found: keys::REMOVE_EXTRA_SPACES.to_owned(),
                });
            }
            let space_prefix = flag(header, keys::ADD_SPACE_PREFIX)?.unwrap_or(true);
            (spm::to_json(&tokens, scores, space_prefix, &special)?, special)
        }
        other => return Err(TokenizerError::Model(shorten(other))),
    };
    let chat_template = text(header, keys::CHAT_TEMPLATE)?.map(str::to_owned);
    Ok(Some(TokenizerFiles { json, special, chat_template }))
}

fn read_tokens(header: &GgufHeader, n_rows: usize) -> Result<Vec<Token>, TokenizerError> {
    let texts = strings(header, keys::TOKENS)?.ok_or(TokenizerError::MissingKey(keys::TOKENS))?;
    let count = |what, found| {
        if found == n_rows { Ok(()) } else { Err(TokenizerError::Count { what, found, expected: n_rows }) }
    };
    count("tokens", texts.len())?;
    let types = match header.get(keys::TYPES) {
        None => None,
        Some(Value::Array(Array::I32(types))) => Some(types),
        Some(_) => return Err(TokenizerError::KeyType { key: keys::TYPES, wanted: "a list of i32" }),
    };
    count("token types", types.map_or(n_rows, Vec::len))?;
    let token = |(id, text): (usize, &String)| {
        let kind = types.map_or(kinds::NORMAL, |types| types[id]);
        if !(kinds::NORMAL..=kinds::BYTE).contains(&kind) {
            return Err(TokenizerError::TokenType { id, found: kind });
        }
        Ok(Token { text: text.clone(), kind })
    };
    texts.iter().enumerate().map(token).collect()
}

fn read_scores(header: &GgufHeader, n_rows: usize) -> Result<&[f32], TokenizerError> {
    let scores = match header.get(keys::SCORES) {
        None => return Err(TokenizerError::MissingKey(keys::SCORES)),
        Some(Value::Array(Array::F32(scores))) => scores,
        Some(_) => return Err(TokenizerError::KeyType { key: keys::SCORES, wanted: "a list of f32" }),
    };
    if scores.len() != n_rows {
        return Err(TokenizerError::Count { what: "scores", found: scores.len(), expected: n_rows });
    }
    match scores.iter().position(|score| score.is_nan()) {
        Some(id) => Err(TokenizerError::Score { id }),
        None => Ok(scores),
    }
}

fn read_special(
    header: &GgufHeader,
    implied: SpecialTokens,
    n_rows: usize,
) -> Result<SpecialTokens, TokenizerError> {
    let id = |key: &'static str| match header.get(key) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            None => Err(TokenizerError::KeyType { key, wanted: "a token's id" }),
            Some(id) if id < n_rows as u64 => Ok(Some(id as u32)),
            Some(id) => Err(TokenizerError::SpecialId { what: key, id, vocab_size: n_rows }),
        },
    };
    Ok(SpecialTokens {
        bos: id(keys::BOS)?.or(implied.bos),
        eos: id(keys::EOS)?.or(implied.eos),
        unk: id(keys::UNK)?.or(implied.unk),
        pad: id(keys::PAD)?.or(implied.pad),
        add_bos: flag(header, keys::ADD_BOS)?.unwrap_or(implied.add_bos),
        add_eos: flag(header, keys::ADD_EOS)?.unwrap_or(implied.add_eos),
    })
}

fn text<'a>(header: &'a GgufHeader, key: &'static str) -> Result<Option<&'a str>, TokenizerError> {
    let wanted = || TokenizerError::KeyType { key, wanted: "a text" };
    header.get(key).map(|value| value.as_str().ok_or_else(wanted)).transpose()
}

fn flag(header: &GgufHeader, key: &'static str) -> Result<Option<bool>, TokenizerError> {
    let wanted = || TokenizerError::KeyType { key, wanted: "true or false" };
    header.get(key).map(|value| value.as_bool().ok_or_else(wanted)).transpose()
}

fn strings<'a>(header: &'a GgufHeader, key: &'static str) -> Result<Option<&'a [String]>, TokenizerError> {
    let wanted = || TokenizerError::KeyType { key, wanted: "a list of texts" };
    header.get(key).map(|value| value.as_array().and_then(Array::as_strings).ok_or_else(wanted)).transpose()
}
