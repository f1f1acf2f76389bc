//! Any bytes as `tokenizer.json`: an error, or a tokenizer that encodes and decodes without panic.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use slmc_data::{Special, Tokenizer};
use slmc_ir::{SpecialTokens, TokenizerFiles};

const TEXT: &str = "The café's 12 cats\n\n\u{1f408} sat <|im_end|> on\tthe  mat.";

fuzz_target!(|json: &[u8]| {
    scratch::let_caught_panics_pass();
    let Ok(json) = std::str::from_utf8(json) else { return };
    let files =
        TokenizerFiles { json: json.to_owned(), special: SpecialTokens::default(), chat_template: None };
    let Ok(tokenizer) = Tokenizer::from_files(&files) else { return };
    if let Ok(ids) = tokenizer.encode(TEXT, Special::Plain) {
        let _ = tokenizer.decode(&ids);
    }
});
