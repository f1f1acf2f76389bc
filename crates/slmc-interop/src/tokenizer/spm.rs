//! SentencePiece BPE, GGUF's `llama`: spaces are `▁`, scores order the merges, bytes stand in for characters
//! without a token.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use slmc_formats::gguf::{Array, Value};
use slmc_ir::SpecialTokens;

use super::{
    MODEL_SPM,
    build::{Parts, tokenizer_json},
    json::TokenizerJson,
    keys, kinds, padding_token,
    vocabulary::{Ids, Token, check_merge, ids_of, tokens_by_id},
};
use crate::error::{TokenizerError, shown};

const SPACE: &str = "▁";
/// Score of user-defined tokens, as llama.cpp's converter writes it.
const ADDED_SCORE: f32 = -1000.0;
/// Longest token whose splits are tried, in characters; SentencePiece makes none longer than 16 by default.
const MAX_MERGED_CHARS: usize = 256;

/// The text of a `tokenizer.json`.
pub(crate) fn to_json(
    tokens: &[Token],
    scores: &[f32],
    space_prefix: bool,
    special: &SpecialTokens,
) -> Result<String, TokenizerError> {
    let ids = ids_of(tokens.iter().map(|token| token.text.as_str()).enumerate(), tokens.len())?;
    let merges = merges_of(tokens, scores, &ids);
    let unk = tokens.iter().find(|token| token.kind == kinds::UNKNOWN).map(|token| token.text.as_str());
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let normalizer = if space_prefix {
        json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": SPACE }, replace] })
    } else {
        json!({ "type": "Sequence", "normalizers": [replace] })
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space_prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    tokenizer_json(&Parts {
        tokens,
        merges: &merges,
        normalizer,
        pre_tokenizer: Json::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        unk_token: unk,
        byte_fallback: (0..=u8::MAX).all(|byte| ids.contains_key(byte_token(byte).as_str())),
        ignore_merges: false,
        special,
    })
}

fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

fn is_byte_token(token: &str) -> bool {
    token.len() == 6 && (0..=u8::MAX).any(|byte| token == byte_token(byte))
}

/// Every way to make a normal token of two others, best score first (transformers
/// `convert_slow_tokenizer.generate_merges`).
fn merges_of(tokens: &[Token], scores: &[f32], ids: &Ids<'_>) -> Vec<String> {
    struct Candidate<'a> {
        score: f32,
        left: &'a str,
        right: &'a str,
        lengths: (usize, usize),
    }
    let is_normal = |text: &str| ids.get(text).is_some_and(|&id| tokens[id].kind == kinds::NORMAL);
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        // A space inside would make `left right` ambiguous; SentencePiece has `▁` there.
        if token.kind != kinds::NORMAL || token.text.contains(' ') {
            continue;
        }
        if token.text.chars().nth(MAX_MERGED_CHARS).is_some() {
            continue;
        }
        let n_chars = token.text.chars().count();
        let first = candidates.len();
        for (n_left, (at, _)) in token.text.char_indices().enumerate().skip(1) {
            let (left, right) = token.text.split_at(at);
            if is_normal(left) && is_normal(right) {
                candidates.push(Candidate { score, left, right, lengths: (n_left, n_chars - n_left) });
            }
        }
        candidates[first..].sort_by_key(|c| (ids[c.left], ids[c.right]));
    }
    // Stable: equals stay in the order of ids.
    let by_score = |a: &Candidate<'_>, b: &Candidate<'_>| {
        b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal)
    };
    candidates.sort_by(|a, b| by_score(a, b).then(b.lengths.cmp(&a.lengths)));
    candidates.iter().map(|c| format!("{} {}", c.left, c.right)).collect()
}

/// Whether the tokenizer works on characters with `▁` for spaces, not on bytes.
pub(crate) fn is_spm(json: &TokenizerJson) -> bool {
    let mentions = |part: Option<&Json>| part.is_some_and(|value| value.to_string().contains(SPACE));
    json.model.byte_fallback || mentions(json.normalizer.as_ref()) || mentions(json.pre_tokenizer.as_ref())
}

/// Model, tokens and scores as metadata.
pub(crate) fn to_metadata(
    json: &TokenizerJson,
    special: &SpecialTokens,
    vocab_size: usize,
) -> Result<Vec<(&'static str, Value)>, TokenizerError> {
    let space_prefix = space_prefix(json)?;
    let tokens = tokens_by_id(json, vocab_size)?;
    let ids = ids_of(
        tokens.iter().enumerate().filter_map(|(id, token)| Some((id, token.as_ref()?.text.as_str()))),
        vocab_size,
    )?;
    let merged_scores = scores_of_merges(json, &ids)?;
    let n_merged = merged_scores.len();
    let unknown = json.model.unk_token.as_deref().and_then(|token| json.id_of(token)).or(special.unk);
    let (mut texts, mut types, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    let mut n_unmerged = 0;
    for (id, token) in tokens.iter().enumerate() {
        let Some(token) = token else {
            texts.push(padding_token(id));
            types.push(kinds::UNUSED);
            scores.push(ADDED_SCORE);
            continue;
        };
        let is_unknown = unknown.is_some_and(|unk| unk as usize == id);
        let kind = match token.kind {
            _ if is_unknown => kinds::UNKNOWN,
            kinds::NORMAL if json.model.byte_fallback && is_byte_token(&token.text) => kinds::BYTE,
            kind => kind,
        };
        scores.push(match kind {
            kinds::NORMAL => merged_scores.get(&id).copied().unwrap_or_else(|| {
                n_unmerged += 1;
                0.0 - (n_merged + n_unmerged - 1) as f32
            }),
            kinds::USER_DEFINED => ADDED_SCORE,
            _ => 0.0,
        });
        texts.push(token.text.clone());
        types.push(kind);
    }
    Ok(vec![
        (keys::ADD_SPACE_PREFIX, Value::Bool(space_prefix)),
        (keys::MODEL, Value::String(MODEL_SPM.to_owned())),
        (keys::PRE, Value::String("default".to_owned())),
        (keys::TOKENS, Value::Array(Array::String(texts))),
        (keys::SCORES, Value::Array(Array::F32(scores))),
        (keys::TYPES, Value::Array(Array::I32(types))),
    ])
}

/// The score of each token that a merge makes: 0 for the first, and one less for each that comes after.
fn scores_of_merges(json: &TokenizerJson, ids: &Ids<'_>) -> Result<BTreeMap<usize, f32>, TokenizerError> {
    let mut scores = BTreeMap::new();
    let mut union = String::new();
    for (index, merge) in json.model.merges.iter().enumerate() {
        check_merge(ids, index, &merge.0, &merge.1, &mut union)?;
        let next = 0.0 - scores.len() as f32;
        scores.entry(ids[union.as_str()]).or_insert(next);
    }
    Ok(scores)
}

/// Whether a space is put before the text; an error when text is prepared in another way.
fn space_prefix(json: &TokenizerJson) -> Result<bool, TokenizerError> {
    let normalizer = json.normalizer.as_ref().filter(|value| !value.is_null());
    let pre_tokenizer = json.pre_tokenizer.as_ref().filter(|value| !value.is_null());
    let inexpressible = |what, found: &Json| TokenizerError::Inexpressible { what, found: shown(found) };
    match (normalizer, pre_tokenizer) {
        (Some(normalizer), None) => {
            of_normalizer(normalizer).ok_or_else(|| inexpressible("the normalizer", normalizer))
        }
        (None, Some(pre)) => of_metaspace(pre).ok_or_else(|| inexpressible("the pre-tokenizer", pre)),
        (Some(_), Some(pre)) => Err(inexpressible("a normalizer and the pre-tokenizer", pre)),
        (None, None) => Err(inexpressible("no normalizer and the pre-tokenizer", &Json::Null)),
    }
}

fn of_normalizer(normalizer: &Json) -> Option<bool> {
    let steps = match normalizer["type"].as_str()? {
        "Sequence" => normalizer["normalizers"].as_array()?.as_slice(),
        _ => std::slice::from_ref(normalizer),
    };
    let is_replace = |step: &Json| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
    };
    match steps {
        [replace] if is_replace(replace) => Some(false),
        [prepend, replace] if is_replace(replace) => {
            (prepend["type"] == "Prepend" && prepend["prepend"] == SPACE).then_some(true)
        }
        _ => None,
    }
}

fn of_metaspace(pre: &Json) -> Option<bool> {
    // Splitting at spaces would forbid merges over them, which llama.cpp allows.
    let plain = pre["type"] == "Metaspace" && pre["replacement"] == SPACE && pre["split"] == false;
    match pre["prepend_scheme"].as_str()? {
        "never" if plain => Some(false),
        "first" | "always" if plain => Some(true),
        _ => None,
    }
}
