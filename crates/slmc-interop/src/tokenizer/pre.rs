//! How text is split before BPE: the names of GGUF (`tokenizer.ggml.pre`) and the regular expressions behind
//! them (llama.cpp `src/llama-vocab.cpp`, `llm_tokenizer_bpe`), as Hugging Face writes them.

use serde_json::{Value, json};

use crate::error::{TokenizerError, shown};

/// One way to split.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    /// Names in GGUF; the first is written.
    pub(crate) names: &'static [&'static str],
    /// Expressions, one after another; each isolates its matches in what the ones before left.
    splits: &'static [&'static str],
    /// Whether text is brought to Unicode form NFC first. llama.cpp does not, Hugging Face does.
    nfc: bool,
    /// Whether a whole piece that is a token is taken as it is, whatever the merges say.
    pub(crate) ignore_merges: bool,
    /// Whether texts begin with `bos` when the file does not say.
    pub(crate) implied_add_bos: bool,
    /// `trim_offsets` and the like: without effect on tokens, kept as the families' own files have them.
    flags: bool,
}

/// Single digits: what `Digits` with `individual_digits` isolates.
const DIGIT: &str = r"\p{N}";
/// GPT-2's expression: what `ByteLevel` with `use_regex` does by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does for `default`, in four passes.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

const TABLE: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        splits: &[DIGIT, GPT2],
        nfc: false,
        ignore_merges: false,
        implied_add_bos: false,
        flags: true,
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2"],
        splits: &[GPT2],
        nfc: false,
        ignore_merges: false,
        implied_add_bos: false,
        flags: true,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        splits: &[LLAMA3],
        nfc: false,
        ignore_merges: true,
        implied_add_bos: true,
        flags: true,
    },
    PreTokenizer {
        names: &["qwen2"],
        splits: &[QWEN2],
        nfc: true,
        ignore_merges: false,
        implied_add_bos: false,
        flags: false,
    },
    PreTokenizer {
        names: &["deepseek-r1-qwen"],
        splits: &[QWEN2],
        nfc: false,
        ignore_merges: false,
        implied_add_bos: false,
        flags: true,
    },
    PreTokenizer {
        names: &["tekken"],
        splits: &[TEKKEN],
        nfc: false,
        ignore_merges: true,
        implied_add_bos: true,
        flags: true,
    },
    PreTokenizer {
        names: &["default"],
        splits: &DEFAULT,
        nfc: false,
        ignore_merges: false,
        implied_add_bos: false,
        flags: true,
    },
];

impl PreTokenizer {
    /// The one of a name in GGUF.
    pub(crate) fn of_name(name: &str) -> Result<&'static Self, TokenizerError> {
        let row = TABLE.iter().find(|row| row.names.contains(&name));
        row.ok_or_else(|| TokenizerError::PreName { name: crate::error::shorten(name), known: known() })
    }

    /// The one that a `tokenizer.json` describes.
    pub(crate) fn of_json(
        normalizer: Option<&Value>,
        pre_tokenizer: Option<&Value>,
    ) -> Result<&'static Self, TokenizerError> {
        let row = is_nfc(normalizer).zip(splits_of(pre_tokenizer)).and_then(|(nfc, splits)| {
            TABLE.iter().find(|row| row.nfc == nfc && row.splits == splits.as_slice())
        });
        row.ok_or_else(|| TokenizerError::PreUnknown {
            pre_tokenizer: pre_tokenizer.map_or_else(|| "null".to_owned(), shown),
            normalizer: normalizer.map_or_else(|| "null".to_owned(), shown),
            known: known(),
        })
    }

    /// `normalizer` of `tokenizer.json`.
    pub(crate) fn normalizer(&self) -> Value {
        if self.nfc { json!({ "type": "NFC" }) } else { Value::Null }
    }

    /// `pre_tokenizer` of `tokenizer.json`.
    pub(crate) fn pre_tokenizer(&self) -> Value {
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": self.flags,
                "use_regex": use_regex,
            })
        };
        let (last, first) = match self.splits.split_last() {
            Some((&GPT2, first)) => (byte_level(true), first),
            _ => (byte_level(false), self.splits),
        };
        if first.is_empty() {
            return last;
        }
        let mut steps: Vec<Value> = first.iter().map(|split| split_json(split)).collect();
        steps.push(last);
        json!({ "type": "Sequence", "pretokenizers": steps })
    }

    /// `decoder` of `tokenizer.json`.
    pub(crate) fn decoder(&self) -> Value {
        let flags = self.flags;
        json!({ "type": "ByteLevel", "add_prefix_space": flags, "trim_offsets": flags, "use_regex": flags })
    }
}

fn known() -> String {
    TABLE.iter().map(|row| row.names[0]).collect::<Vec<_>>().join(", ")
}

fn split_json(split: &str) -> Value {
    if split == DIGIT {
        return json!({ "type": "Digits", "individual_digits": true });
    }
    json!({ "type": "Split", "pattern": { "Regex": split }, "behavior": "Isolated", "invert": false })
}

/// Whether the normalizer is NFC (or nothing); `None` when it is something else.
fn is_nfc(normalizer: Option<&Value>) -> Option<bool> {
    let Some(normalizer) = normalizer.filter(|value| !value.is_null()) else {
        return Some(false);
    };
    match normalizer["type"].as_str()? {
        "NFC" => Some(true),
        "Sequence" => match normalizer["normalizers"].as_array()?.as_slice() {
            [] => Some(false),
            [one] => is_nfc(Some(one)),
            _ => None,
        },
        _ => None,
    }
}

/// The expressions of a pre-tokenizer that ends in bytes; `None` when it does something else.
fn splits_of(pre_tokenizer: Option<&Value>) -> Option<Vec<&str>> {
    let mut splits = Vec::new();
    let mut steps = Vec::new();
    flatten(pre_tokenizer?, &mut steps)?;
    let (last, first) = steps.split_last()?;
    for step in first {
        splits.push(split_of(step)?);
    }
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    // Absent means true, in both fields: tokenizers' defaults.
    if last["add_prefix_space"].is_null() {
        return None;
    }
    if last["use_regex"] != false {
        splits.push(GPT2);
    }
    Some(splits)
}

fn flatten<'a>(step: &'a Value, steps: &mut Vec<&'a Value>) -> Option<()> {
    if step["type"] != "Sequence" {
        steps.push(step);
        return Some(());
    }
    step["pretokenizers"].as_array()?.iter().try_for_each(|inner| {
        // One level, as files have it: a deeper nest is not followed.
        (inner["type"] != "Sequence").then(|| steps.push(inner))
    })
}

fn split_of(step: &Value) -> Option<&str> {
    match step["type"].as_str()? {
        "Digits" if step["individual_digits"] == true => Some(DIGIT),
        "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
            step["pattern"]["Regex"].as_str()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_from_its_json() {
        for row in TABLE {
            let (normalizer, pre_tokenizer) = (row.normalizer(), row.pre_tokenizer());
            let found = PreTokenizer::of_json(Some(&normalizer), Some(&pre_tokenizer)).unwrap();
            assert_eq!(found.names, row.names);
            for name in row.names {
                assert_eq!(PreTokenizer::of_name(name).unwrap().names, row.names);
            }
        }
    }

    #[test]
    fn smollm_is_digits_and_bytes() {
        let expected = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] });
        assert_eq!(PreTokenizer::of_name("smollm").unwrap().pre_tokenizer(), expected);
    }

    #[test]
    fn other_ways_to_split_are_refused() {
        let split = |regex: &str, behavior: &str| {
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": regex }, "behavior": behavior, "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false },
            ] })
        };
        let of_json = |pre: &Value| PreTokenizer::of_json(None, Some(pre));
        assert_eq!(of_json(&split(LLAMA3, "Isolated")).unwrap().names[0], "llama-bpe");
        let message = of_json(&split("[a-z]+", "Isolated")).unwrap_err().to_string();
        assert!(message.contains("[a-z]+") && message.contains("llama-bpe"), "{message}");
        assert!(of_json(&split(LLAMA3, "Removed")).is_err());
        assert!(of_json(&json!({ "type": "ByteLevel", "add_prefix_space": true })).is_err());
        assert!(of_json(&json!({ "type": "ByteLevel" })).is_err());
        assert!(of_json(&json!({ "type": "Whitespace" })).is_err());
        assert!(PreTokenizer::of_json(None, None).is_err());
        let strip = json!({ "type": "Strip" });
        assert!(PreTokenizer::of_json(Some(&strip), Some(&split(LLAMA3, "Isolated"))).is_err());
        assert!(PreTokenizer::of_name("gpt-4o").unwrap_err().to_string().contains("gpt-4o"));
    }
}
