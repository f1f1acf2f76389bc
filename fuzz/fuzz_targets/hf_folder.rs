//! A sound Hugging Face folder in which one file is any bytes: an error, or a model.
//!
//! The first byte chooses the file, the rest is its content.
#![no_main]

#[path = "../../crates/slmc-interop/tests/common/mod.rs"]
mod common;
mod scratch;

use std::{fs, path::PathBuf, sync::OnceLock};

use common::FOLDER_FILES;
use libfuzzer_sys::fuzz_target;
use slmc_data::Tokenizer;
use slmc_interop::{WriteOptions, open, write_gguf, write_hf_folder};
use slmc_ir::SilentHost;

/// The folder, and what each file of it holds when it is sound.
fn folder() -> &'static (PathBuf, Vec<Option<Vec<u8>>>) {
    static FOLDER: OnceLock<(PathBuf, Vec<Option<Vec<u8>>>)> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let (gguf, folder) = (scratch::path("model.gguf"), scratch::path("model"));
        let original = common::checkpoint(common::every_spec().remove(1), Some(common::bpe()));
        // By way of GGUF, so that there is a sidecar too.
        write_gguf(&original, &gguf, &WriteOptions::default(), &SilentHost).unwrap();
        write_hf_folder(&open(&gguf).unwrap(), &folder, &WriteOptions::default(), &SilentHost).unwrap();
        let sound = FOLDER_FILES.iter().map(|name| fs::read(folder.join(name)).ok()).collect();
        (folder, sound)
    })
}

fuzz_target!(|input: &[u8]| {
    scratch::let_caught_panics_pass();
    let Some((&choice, content)) = input.split_first() else { return };
    let (folder, sound) = folder();
    let choice = usize::from(choice) % FOLDER_FILES.len();
    let path = folder.join(FOLDER_FILES[choice]);
    fs::write(&path, content).unwrap();
    if let Ok(opened) = open(folder) {
        if let Some(files) = &opened.tokenizer {
            let _ = Tokenizer::from_files(files);
        }
        let again = scratch::path("again.gguf");
        if write_gguf(&opened, &again, &WriteOptions::default(), &SilentHost).is_ok() {
            open(&again).map(|_| ()).expect("what slmc writes, slmc reads");
        }
    }
    match &sound[choice] {
        Some(bytes) => fs::write(&path, bytes).unwrap(),
        None => fs::remove_file(&path).unwrap(),
    }
});
