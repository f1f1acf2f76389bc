//! A sound folder with a packed matrix in which the configuration or the weights are any bytes: an error, or a model
//! whose tensors can be read.
//!
//! The first byte chooses layout and file, the rest is the file's content.
#![no_main]

#[path = "../../crates/slmc-interop/tests/common/mod.rs"]
mod common;
mod scratch;

use std::{collections::BTreeMap, fs, path::PathBuf, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use slmc_interop::{PackedLayout, PackedMatrices, WriteOptions, open, write_packed_folder};
use slmc_ir::{Family, Quantized, QuantizedParts, Role, SilentHost, TensorKey};

const FILES: [&str; 2] = ["config.json", "model.safetensors"];

/// A sound folder of each layout, with its files.
fn folders() -> &'static Vec<(PathBuf, [Vec<u8>; 2])> {
    static FOLDERS: OnceLock<Vec<(PathBuf, [Vec<u8>; 2])>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let matrix = Quantized::new(QuantizedParts {
            rows: 32,
            columns: 64,
            bits: 4,
            group_size: 32,
            levels: (0..32 * 64).map(|i| (i * 5 % 16) as u8).collect(),
            scales: vec![0.25; 64],
            zero_points: vec![8; 64],
            column_order: None,
        });
        let matrices = BTreeMap::from([(TensorKey::block(1, Role::Down), matrix.unwrap())]);
        let model = common::checkpoint(common::spec(Family::Llama), None);
        let folder = |layout: PackedLayout| {
            let path = scratch::path(layout.name());
            let packed = PackedMatrices { layout, matrices: &matrices };
            write_packed_folder(&model, packed, &path, &WriteOptions::default(), &SilentHost).unwrap();
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
