//! Writes a `tokenizer.json` from tokens by id.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use slmc_ir::SpecialTokens;

use super::{kinds, padding_token, vocabulary::Token};
use crate::error::TokenizerError;

/// The parts of a `tokenizer.json` that differ between tokenizers.
pub(crate) struct Parts<'a> {
    /// Tokens by id.
    pub(crate) tokens: &'a [Token],
    /// Merges, each `"left right"`.
    pub(crate) merges: &'a [String],
    pub(crate) normalizer: Value,
    pub(crate) pre_tokenizer: Value,
    pub(crate) decoder: Value,
    pub(crate) unk_token: Option<&'a str>,
    pub(crate) byte_fallback: bool,
    pub(crate) ignore_merges: bool,
    pub(crate) special: &'a SpecialTokens,
}

/// The text of a `tokenizer.json`.
pub(crate) fn tokenizer_json(parts: &Parts<'_>) -> Result<String, TokenizerError> {
    let document = Document {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: added_tokens(parts.tokens),
        normalizer: &parts.normalizer,
        pre_tokenizer: &parts.pre_tokenizer,
        post_processor: post_processor(parts.tokens, parts.special),
        decoder: &parts.decoder,
        model: ModelDocument {
            kind: "BPE",
            dropout: None,
            unk_token: parts.unk_token,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: parts.byte_fallback,
            byte_fallback: parts.byte_fallback,
            ignore_merges: parts.ignore_merges,
            vocab: VocabDocument(parts.tokens),
            merges: parts.merges,
        },
    };
    serde_json::to_string(&document).map_err(TokenizerError::Json)
}

#[derive(Serialize)]
struct Document<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<Value>,
    normalizer: &'a Value,
    pre_tokenizer: &'a Value,
    post_processor: Value,
    decoder: &'a Value,
    model: ModelDocument<'a>,
}

#[derive(Serialize)]
struct ModelDocument<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Option<f64>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<()>,
    end_of_word_suffix: Option<()>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: VocabDocument<'a>,
    merges: &'a [String],
}

/// Ids by token, in the order of ids. Rows of the embedding without a token are left out.
struct VocabDocument<'a>(&'a [Token]);

impl Serialize for VocabDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (id, token) in self.0.iter().enumerate().filter(|(id, token)| !is_padding(*id, token)) {
            map.serialize_entry(&token.text, &id)?;
        }
        map.end()
    }
}

fn is_padding(id: usize, token: &Token) -> bool {
    token.kind == kinds::UNUSED && token.text == padding_token(id)
}

fn added_tokens(tokens: &[Token]) -> Vec<Value> {
    let is_added = |kind| matches!(kind, kinds::UNKNOWN | kinds::CONTROL | kinds::USER_DEFINED);
    let added = tokens.iter().enumerate().filter(|(_, token)| is_added(token.kind));
    let entry = |(id, token): (usize, &Token)| {
        json!({
            "id": id,
            "content": token.text,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": token.kind != kinds::USER_DEFINED,
        })
    };
    added.map(entry).collect()
}

/// Puts `bos` before and `eos` after a text where that is asked for.
fn post_processor(tokens: &[Token], special: &SpecialTokens) -> Value {
    let text = |id: Option<u32>| id.and_then(|id| Some((id, tokens.get(id as usize)?.text.as_str())));
    let bos = text(special.bos).filter(|_| special.add_bos);
    let eos = text(special.eos).filter(|_| special.add_eos);
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let piece = |token: &str, segment: u32| json!({ "SpecialToken": { "id": token, "type_id": segment } });
    let around = |sequence: &str, segment: u32| {
        let mut pieces: Vec<Value> = bos.iter().map(|(_, token)| piece(token, segment)).collect();
        pieces.push(json!({ "Sequence": { "id": sequence, "type_id": segment } }));
        pieces.extend(eos.iter().map(|(_, token)| piece(token, segment)));
        pieces
    };
    let (single, second) = (around("A", 0), around("B", 1));
    let pair: Vec<Value> = single.iter().cloned().chain(second).collect();
    let entry =
        |(id, token): (u32, &str)| (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    let special: serde_json::Map<String, Value> = bos.into_iter().chain(eos).map(entry).collect();
    json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special })
}
