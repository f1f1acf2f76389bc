//! A sound folder with a packed matrix in which the configuration or the weights are any bytes: an error, or a model
//! whose tensors can be read.
//!
//! The first byte chooses layout and file, the rest is the file's content.
#![no_main]

#[path = "../../crates/slmc-interop/tests/common/mod.rs"]
mod common;
mod scratch;

use std::{fs, path::PathBuf, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use slmc_interop::{PackedLayout, open};

const FILES: [&str; 2] = ["config.json", "model.safetensors"];

/// A sound folder of each layout, with its files.
fn folders() -> &'static Vec<(PathBuf, [Vec<u8>; 2])> {
    static FOLDERS: OnceLock<Vec<(PathBuf, [Vec<u8>; 2])>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let folder = |layout: PackedLayout| {
            let path = scratch::path(layout.name());
            common::write_packed(layout, &path);
            let files = FILES.map(|name| fs::read(path.join(name)).unwrap());
            (path, files)
        };
        PackedLayout::ALL.map(folder).into()
    })
}

fuzz_target!(|input: &[u8]| {
    scratch::let_caught_panics_pass();
    let Some((&choice, content)) = input.split_first() else { return };
    let choice = usize::from(choice);
    let (folder, sound) = &folders()[choice % PackedLayout::ALL.len()];
    let file = choice / PackedLayout::ALL.len() % FILES.len();
    let path = folder.join(FILES[file]);
    fs::write(&path, content).unwrap();
    if let Ok(opened) = open(folder) {
        for &key in opened.weights.keys() {
            let Ok(weight) = opened.weights.read(key) else { continue };
            assert_eq!(weight.format(), opened.weights.format(key).unwrap());
            assert_eq!(weight.shape(), key.shape(opened.spec()));
        }
    }
    fs::write(&path, &sound[file]).unwrap();
});
