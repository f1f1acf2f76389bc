//! Any bytes as a text, a JSONL file, a list of documents or a dataset manifest: an error, or documents.
//!
//! The first byte chooses the kind, the rest is the file.
#![no_main]

mod scratch;

use std::fs;

use libfuzzer_sys::fuzz_target;
use slmc_data::{Documents, Manifest};

const KINDS: [&str; 4] = ["data.txt", "data.jsonl", "data.json", "data.toml"];

fuzz_target!(|input: &[u8]| {
    let Some((&choice, content)) = input.split_first() else { return };
    let name = KINDS[usize::from(choice) % KINDS.len()];
    let path = scratch::path(name);
    fs::write(&path, content).unwrap();
    if name.ends_with(".toml") {
        let _ = Manifest::read(&path);
        return;
    }
    let Ok(documents) = Documents::open(&path, None) else { return };
    for document in documents.iter() {
        if document.is_err() {
            return;
        }
    }
});
