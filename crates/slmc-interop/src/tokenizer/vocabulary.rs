//! Tokens by id, from either form, with what every conversion has to check.

use std::collections::HashMap;

use super::{json::TokenizerJson, kinds};
use crate::error::{TokenizerError, shorten};

/// Ids by token. Hundreds of thousands are looked up whenever a model is opened, so the hash is a fast one, seeded anew in
/// every process.
pub(crate) type Ids<'a> = HashMap<&'a str, usize, foldhash::fast::RandomState>;

/// One token of a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// GGUF's type: normal, control, user defined.
    pub(crate) kind: i32,
}

/// The tokens of a `tokenizer.json` by id; `None` is a row of the embedding without a token.
pub(crate) fn tokens_by_id(
    json: &TokenizerJson,
    vocab_size: usize,
) -> Result<Vec<Option<Token>>, TokenizerError> {
    let mut tokens: Vec<Option<Token>> = Vec::new();
    tokens.resize(vocab_size, None);
    let mut place = |id: u32, text: &str, kind: i32| {
        let beyond = || TokenizerError::BeyondVocab { id: id.into(), token: shorten(text), vocab_size };
        let slot = tokens.get_mut(id as usize).ok_or_else(beyond)?;
        match slot {
            Some(other) if other.text != text => {
                Err(TokenizerError::SameId { id, token: shorten(text), other: shorten(&other.text) })
            }
            _ => {
                *slot = Some(Token { text: text.to_owned(), kind });
                Ok(())
            }
        }
    };
    for (text, id) in &json.model.vocab.0 {
        place(*id, text, kinds::NORMAL)?;
    }
    for added in &json.added_tokens {
        let is_control = added.special || looks_special(&added.content);
        let kind = if is_control { kinds::CONTROL } else { kinds::USER_DEFINED };
        place(added.id, &added.content, kind)?;
    }
    let texts = tokens.iter().enumerate();
    ids_of(texts.filter_map(|(id, token)| Some((id, token.as_ref()?.text.as_str()))), tokens.len())?;
    Ok(tokens)
}

/// The ids of tokens; no token may be there twice (llama.cpp refuses such a file).
pub(crate) fn ids_of<'a>(
    tokens: impl Iterator<Item = (usize, &'a str)>,
    capacity: usize,
) -> Result<Ids<'a>, TokenizerError> {
    let mut ids = Ids::with_capacity_and_hasher(capacity, foldhash::fast::RandomState::default());
    for (second, token) in tokens {
        if let Some(first) = ids.insert(token, second) {
            return Err(TokenizerError::Duplicate { token: shorten(token), first, second });
        }
    }
    Ok(ids)
}

/// Proves that a merge's two tokens and their union are in the vocabulary.
pub(crate) fn check_merge(
    ids: &Ids<'_>,
    index: usize,
    left: &str,
    right: &str,
    union: &mut String,
) -> Result<(), TokenizerError> {
    union.clear();
    union.push_str(left);
    union.push_str(right);
    if [left, right, union.as_str()].into_iter().all(|token| ids.contains_key(token)) {
        return Ok(());
    }
    Err(TokenizerError::Merge { index, merge: shorten(&format!("{left} {right}")) })
}

/// llama.cpp's converter takes such added tokens for control tokens even where Hugging Face does not say so
/// (`does_token_look_special`): its chat code relies on it.
fn looks_special(token: &str) -> bool {
    let framed = |open, close| token.starts_with(open) && token.ends_with(close);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]") || framed("<|", "|>") || framed("<｜", "｜>")
}
