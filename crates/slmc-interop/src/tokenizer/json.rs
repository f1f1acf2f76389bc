//! `tokenizer.json`, as far as slmc has to understand it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::error::{TokenizerError, shorten};

/// A tokenizer in Hugging Face's form.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenizerJson {
    #[serde(default)]
    pub(crate) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub(crate) normalizer: Option<Value>,
    #[serde(default)]
    pub(crate) pre_tokenizer: Option<Value>,
    #[serde(default)]
    pub(crate) post_processor: Option<Value>,
    pub(crate) model: Model,
}

/// A token that is found in the text before anything else.
#[derive(Debug, Deserialize)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) special: bool,
}

/// The model part; only BPE has these fields.
#[derive(Debug, Deserialize)]
pub(crate) struct Model {
    #[serde(default, rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) dropout: Option<f64>,
    #[serde(default)]
    pub(crate) unk_token: Option<String>,
    #[serde(default)]
    pub(crate) continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub(crate) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(crate) byte_fallback: bool,
    #[serde(default)]
    pub(crate) ignore_merges: bool,
    pub(crate) vocab: Vocab,
    #[serde(default)]
    pub(crate) merges: Vec<Merge>,
}

/// Tokens with their ids, in the order of the file.
#[derive(Debug)]
pub(crate) struct Vocab(pub(crate) Vec<(String, u32)>);

/// Two tokens that become one. Old files write `"a b"`, new ones `["a", "b"]`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Merge(pub(crate) String, pub(crate) String);

impl TokenizerJson {
    pub(crate) fn parse(json: &str) -> Result<Self, TokenizerError> {
        serde_json::from_str(json).map_err(TokenizerError::Json)
    }

    /// Refuses models that are not plain BPE.
    pub(crate) fn check_is_bpe(&self) -> Result<(), TokenizerError> {
        let model = &self.model;
        let inexpressible =
            |what, found: &str| Err(TokenizerError::Inexpressible { what, found: shorten(found) });
        if let Some(kind) = model.kind.as_deref().filter(|kind| *kind != "BPE") {
            return inexpressible("a model of type", kind);
        }
        if let Some(dropout) = model.dropout.filter(|p| *p != 0.0) {
            return inexpressible("dropout", &dropout.to_string());
        }
        let affixes = [
            ("continuing_subword_prefix", &model.continuing_subword_prefix),
            ("end_of_word_suffix", &model.end_of_word_suffix),
        ];
        for (what, affix) in affixes {
            if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
                return inexpressible(what, affix);
            }
        }
        Ok(())
    }

    /// The id of a token, added or not.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        let added = self.added_tokens.iter().find(|added| added.content == token).map(|added| added.id);
        added.or_else(|| self.model.vocab.0.iter().find(|(text, _)| text == token).map(|(_, id)| *id))
    }

    /// The special tokens that the post-processor puts around a text: before it and after it.
    pub(crate) fn template(&self) -> Result<(Vec<String>, Vec<String>), TokenizerError> {
        let mut around = (Vec::new(), Vec::new());
        let mut open: Vec<&Value> = self.post_processor.iter().filter(|value| !value.is_null()).collect();
        while let Some(processor) = open.pop() {
            let unsupported = || TokenizerError::Inexpressible {
                what: "the post-processor",
                found: shorten(&processor.to_string()),
            };
            match processor["type"].as_str() {
                Some("ByteLevel") => {}
                Some("Sequence") => open.extend(processor["processors"].as_array().ok_or_else(unsupported)?),
                Some("TemplateProcessing") => {
                    around = read_template(&processor["single"]).ok_or_else(unsupported)?;
                }
                _ => return Err(unsupported()),
            }
        }
        Ok(around)
    }
}

/// `[SpecialToken…, Sequence A, SpecialToken…]`.
fn read_template(single: &Value) -> Option<(Vec<String>, Vec<String>)> {
    let (mut before, mut after, mut seen) = (Vec::new(), Vec::new(), false);
    for piece in single.as_array()? {
        if let Some(id) = piece["SpecialToken"]["id"].as_str() {
            if seen { &mut after } else { &mut before }.push(id.to_owned());
        } else if piece["Sequence"]["id"] == "A" && !seen {
            seen = true;
        } else {
            return None;
        }
    }
    seen.then_some((before, after))
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a BPE vocabulary, an object of ids by token")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Vocab, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab(entries))
            }
        }
        deserializer.deserialize_map(VocabVisitor)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge, `\"a b\"` or `[\"a\", \"b\"]`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !left.is_empty() && !right.is_empty() => {
                        Ok(Merge(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::custom(format!("merge `{}` is not two tokens", shorten(text)))),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Merge, A::Error> {
                let two = |n| A::Error::invalid_length(n, &"two tokens");
                let left = access.next_element()?.ok_or_else(|| two(0))?;
                let right = access.next_element()?.ok_or_else(|| two(1))?;
                match access.next_element::<String>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(two(3)),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}
