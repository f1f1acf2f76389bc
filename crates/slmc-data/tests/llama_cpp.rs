//! Tokens of whole files equal those of llama.cpp 0.5.0 for the same model.
//!
//! The expected values are SHA-256 of the ids (u32, little-endian) that `llama_tokenize` gives with `add_special` and
//! without `parse_special` for SmolLM2-135M-Instruct's GGUF.

use std::path::{Path, PathBuf};

use slmc_data::{Special, Tokenizer, read_text, sha256_bytes};
use slmc_ir::{SpecialTokens, TokenizerFiles};

fn root(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(default), PathBuf::from);
    assert!(path.is_dir(), "{} is not there: set {variable}", path.display());
    path
}

fn smollm2() -> Tokenizer {
    let path = root("SLMC_MODELS", "models-cache").join("smollm2-float/tokenizer.json");
    let special =
        SpecialTokens { bos: Some(1), eos: Some(2), unk: Some(0), pad: Some(2), ..Default::default() };
    let json = read_text(&path).unwrap();
    Tokenizer::from_files(&TokenizerFiles { json, special, chat_template: None }).unwrap()
}

const FILES: [(&str, usize, &str); 3] = [
    (
        "wikitext-2-raw/wiki.test.raw",
        303_415,
        "18e663b61dd00f49796c8a6ae498b7dbe009cac4a2eaf3c67fa7d81baf47d945",
    ),
    (
        "text/james-joyce_ulysses.txt",
        392_454,
        "31b994e07f4bc0444063227cfbcd50c0b4875e5ffdecb3c2746ed7c6d4c1dd78",
    ),
    (
        "text/victor-hugo_les-miserables_isabel-f-hapgood.txt",
        780_479,
        "9bf1430fcb14162bf49df4179f32c41e7014b0612639bcd7ff395adcf297661f",
    ),
];

#[test]
#[ignore = "needs the real model: SLMC_MODELS, and the data: SLMC_DATA"]
fn tokens_are_those_of_llama_cpp() {
    let (tokenizer, data) = (smollm2(), root("SLMC_DATA", "../shared/data"));
    for (file, n_tokens, sha256) in FILES {
        let text = read_text(&data.join(file)).unwrap();
        let tokens = tokenizer.encode_document(&text).unwrap();
        assert_eq!(tokens.len(), n_tokens, "{file}");
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        assert_eq!(sha256_bytes(&bytes), sha256, "{file}");
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text, "{file}");
        let n_bytes: usize = tokens.iter().map(|&token| tokenizer.n_bytes(token) as usize).sum();
        assert_eq!(n_bytes, text.len(), "{file}");
    }
}

#[test]
#[ignore = "needs the real model: SLMC_MODELS"]
fn special_tokens_are_read_only_where_asked() {
    let tokenizer = smollm2();
    let text = "<|im_start|>user\nhi<|im_end|>";
    let parsed = tokenizer.encode(text, Special::Parse).unwrap();
    assert_eq!((parsed.first(), parsed.last()), (Some(&1), Some(&2)));
    let plain = tokenizer.encode(text, Special::Plain).unwrap();
    assert!(plain.iter().all(|&token| !tokenizer.is_special(token)));
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
}
