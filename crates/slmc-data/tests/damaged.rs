//! Damaged `tokenizer.json` files are errors, never panics.

use serde_json::{Value, json};
use slmc_data::{Special, TokenizeError, Tokenizer, train_bpe};
use slmc_ir::{SpecialTokens, TokenizerFiles};

fn small() -> TokenizerFiles {
    train_bpe(&mut std::iter::empty(), 257, &["<end>"]).unwrap()
}

fn open(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizeError> {
    let files = small();
    let mut file: Value = serde_json::from_str(&files.json).unwrap();
    change(&mut file);
    Tokenizer::from_files(&TokenizerFiles { json: file.to_string(), ..files })
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    for json in ["", "{", "[]", "{}", "null", "\u{0}"] {
        let error = Tokenizer::from_files(&TokenizerFiles { json: json.into(), ..small() }).err().unwrap();
        assert!(matches!(error, TokenizeError::Json(_)), "{error}");
    }
    assert!(matches!(open(|file| file["model"] = json!(1)), Err(TokenizeError::Json(_))));
    let bad_map = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
    assert!(matches!(open(|file| file["normalizer"] = bad_map), Err(TokenizeError::Json(_))));
}

#[test]
fn settings_that_break_on_a_text_are_errors_then() {
    let replace = json!({ "type": "Replace", "pattern": { "Regex": "" }, "content": "_" });
    let steps =
        json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "_" }, replace] });
    let tokenizer = open(|file| file["normalizer"] = steps).unwrap();
    let error = tokenizer.encode("some  text\n", Special::Plain).unwrap_err();
    assert!(matches!(error, TokenizeError::Encode(_)), "{error}");
}

#[test]
fn special_tokens_must_be_in_the_vocabulary() {
    let with = |special| Tokenizer::from_files(&TokenizerFiles { special, ..small() }).err();
    let outside = with(SpecialTokens { eos: Some(257), ..SpecialTokens::default() });
    assert!(matches!(
        outside,
        Some(TokenizeError::SpecialOutside { which: "eos", id: 257, vocab_size: 257 })
    ));
    let nameless = with(SpecialTokens { add_bos: true, ..SpecialTokens::default() });
    assert!(matches!(nameless, Some(TokenizeError::NothingToAdd("bos"))));
    assert!(with(SpecialTokens { bos: Some(0), add_bos: true, ..SpecialTokens::default() }).is_none());
}
