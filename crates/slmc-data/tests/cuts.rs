//! A text encoded word by word gives the tokens of the whole, for every way of splitting that slmc cuts at.

use serde_json::{Value, json};
use slmc_data::{Special, Tokenizer, train_bpe};
use slmc_ir::TokenizerFiles;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Pieces that expressions treat differently: spaces of several kinds, line ends, digits, punctuation, marks.
const PARTS: [&str; 24] = [
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    "\u{A0}",
    "\u{3000}",
    "a",
    "the",
    "The",
    "é",
    "e\u{301}",
    "12",
    "7",
    "'s",
    "'LL",
    "...",
    "!\n",
    "—",
    "日本<|endoftext|>",
];

fn strange_text(seed: u64, n_parts: usize) -> String {
    let mut state = seed;
    let part = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        PARTS[(state >> 33) as usize % PARTS.len()]
    };
    (0..n_parts).map(part).collect()
}

fn byte_level(use_regex: bool, add_prefix_space: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex })
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

fn sequence(steps: &[Value]) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// Encodes strange texts whole with `tokenizers` itself, and with slmc; both must agree.
fn check(pre_tokenizer: Value, normalizer: Value) {
    let corpus = strange_text(99, 20_000);
    let trained = train_bpe(&mut [corpus].into_iter(), 320, &["<|endoftext|>"]).unwrap();
    let mut file: Value = serde_json::from_str(&trained.json).unwrap();
    file["pre_tokenizer"] = pre_tokenizer;
    file["normalizer"] = normalizer;
    let files = TokenizerFiles { json: file.to_string(), ..trained };
    let ours = Tokenizer::from_files(&files).unwrap();
    let mut whole: tokenizers::Tokenizer = files.json.parse().unwrap();
    for special in [Special::Plain, Special::Parse] {
        whole.set_encode_special_tokens(special == Special::Plain);
        for seed in 0..200 {
            let text = strange_text(seed, if seed == 0 { 40_000 } else { 60 });
            let expected = whole.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
            assert_eq!(ours.encode(&text, special).unwrap(), expected, "{text:?}");
        }
    }
}

#[test]
fn gpt2() {
    check(byte_level(true, false), Value::Null);
}

#[test]
fn smollm2_digits_first() {
    let digits = json!({ "type": "Digits", "individual_digits": true });
    check(sequence(&[digits, byte_level(true, false)]), Value::Null);
}

#[test]
fn llama3() {
    check(sequence(&[split(LLAMA3), byte_level(false, false)]), Value::Null);
}

#[test]
fn qwen2_composes_characters_first() {
    check(sequence(&[split(QWEN2), byte_level(false, false)]), json!({ "type": "NFC" }));
}

#[test]
fn ways_that_cannot_be_cut_are_not() {
    check(byte_level(true, true), Value::Null);
    check(byte_level(false, false), Value::Null);
    check(sequence(&[split(r"\s+\S"), byte_level(false, false)]), Value::Null);
    check(
        byte_level(true, false),
        json!({ "type": "Replace", "pattern": { "String": "a t" }, "content": "at" }),
    );
}
