//! Writes what the fuzz targets of models, tokenizers, recipes and data start from.
//!
//! ```text
//! cargo run -p slmc-interop --example fuzz_seeds_of_models -- fuzz/corpus [FOLDER.of.a.model | RECIPE.toml | DATA.jsonl …]
//! ```
//!
//! Tiny models of every kind, and of what is given: a model folder's small files, a recipe or a manifest as it is,
//! the first lines of a text or a JSONL file.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use common::{FOLDER_FILES, bpe, checkpoint, every_spec, spec, write_packed};
use slmc_formats::GgufHeader;
use slmc_interop::{
    OnnxOptions, OnnxPrecision, PackedLayout, WriteOptions, open, write_gguf, write_hf_folder,
    write_onnx_file,
};
use slmc_ir::{Family, SilentHost};

/// The order of the target `documents`.
const KINDS: [&str; 4] = ["txt", "jsonl", "json", "toml"];
/// Larger seeds only make the fuzzer slow.
const MAX_SEED_BYTES: usize = 16 << 10;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let corpus = args.next().ok_or("usage: fuzz_seeds_of_models CORPUS [FOLDER | RECIPE.toml | DATA …]")?;
    let scratch = tempfile::tempdir()?;
    for (i, spec) in every_spec().into_iter().enumerate() {
        let (gguf, folder) = (scratch.path().join("model.gguf"), scratch.path().join("model"));
        write_gguf(&checkpoint(spec, Some(bpe())), &gguf, &WriteOptions::default(), &SilentHost)?;
        let bytes = fs::read(&gguf)?;
        let n_header = GgufHeader::parse(&bytes)?.data_start as usize;
        seed(&corpus, "gguf_model", &format!("tiny_{i}"), &[], &bytes[..n_header])?;
        write_hf_folder(&open(&gguf)?, &folder, &WriteOptions::default(), &SilentHost)?;
        folder_seeds(&corpus, &folder, &format!("tiny_{i}"))?;
        fs::remove_dir_all(&folder)?;
    }
    for (i, layout) in PackedLayout::ALL.into_iter().enumerate() {
        let folder = scratch.path().join(layout.name());
        write_packed(layout, &folder);
        // The order of the target `packed_folder`.
        for (j, file) in ["config.json", "model.safetensors"].into_iter().enumerate() {
            let choice = (i + j * PackedLayout::ALL.len()) as u8;
            whole_seed(
                &corpus,
                "packed_folder",
                &format!("{i}_{j}"),
                &[choice],
                &fs::read(folder.join(file))?,
            )?;
        }
    }
    for (i, precision) in [OnnxPrecision::F32, OnnxPrecision::Int4].into_iter().enumerate() {
        let onnx = scratch.path().join("model.onnx");
        let model = checkpoint(spec(Family::Llama), Some(bpe()));
        let options = OnnxOptions { precision: Some(precision), ..OnnxOptions::default() };
        write_onnx_file(&model, &onnx, &options, &SilentHost, &mut |_| Ok(()))?;
        whole_seed(&corpus, "onnx_model", &format!("tiny_{i}"), &[], &fs::read(&onnx)?)?;
    }
    for (i, path) in args.enumerate() {
        let name = format!("real_{i}");
        if path.is_dir() {
            folder_seeds(&corpus, &path, &name)?;
            continue;
        }
        let bytes = fs::read(&path)?;
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let kind = KINDS.iter().position(|&kind| kind == extension).unwrap_or(0);
        seed(&corpus, "documents", &name, &[kind as u8], &bytes)?;
        if extension == "toml" {
            seed(&corpus, "recipe", &name, &[], &bytes)?;
        }
    }
    Ok(())
}

fn folder_seeds(corpus: &Path, folder: &Path, name: &str) -> Outcome {
    for (choice, file) in FOLDER_FILES.into_iter().enumerate() {
        let path = folder.join(file);
        if !path.is_file() || fs::metadata(&path)?.len() > 1 << 20 {
            continue;
        }
        let bytes = fs::read(path)?;
        seed(corpus, "hf_folder", &format!("{name}_{choice}"), &[choice as u8], &bytes)?;
        if file == "tokenizer.json" {
            seed(corpus, "tokenizer", name, &[], &bytes)?;
        }
    }
    Ok(())
}

fn seed(corpus: &Path, target: &str, name: &str, prefix: &[u8], bytes: &[u8]) -> Outcome {
    whole_seed(corpus, target, name, prefix, &bytes[..bytes.len().min(MAX_SEED_BYTES)])
}

fn whole_seed(corpus: &Path, target: &str, name: &str, prefix: &[u8], bytes: &[u8]) -> Outcome {
    let folder = corpus.join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), [prefix, bytes].concat())?;
    Ok(())
}
