//! Real files: read whole, written again, byte for byte the same.
//!
//! `SLMC_MODELS` names the folder of models; without it, `models-cache` in the repository's root.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use slmc_formats::{
    GgufHeader, GgufWriter, PlannedSafeTensor, PlannedTensor, SafetensorsHeader, SafetensorsWriter, map_file,
};

fn model(name: &str) -> PathBuf {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models-cache");
    let folder = env::var_os("SLMC_MODELS").map_or(cache, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not there: fetch it, or set SLMC_MODELS to the folder of models",
        path.display()
    );
    path
}

/// Writes the GGUF again from its parsed header and its tensors, in the order of their data.
#[track_caller]
fn rewrite_gguf(name: &str) {
    let file = map_file(&model(name)).unwrap();
    let header = GgufHeader::parse(&file).unwrap();
    assert!(header.tensors.len() > 100 && header.metadata.len() > 10);
    let plan = |t: &slmc_formats::TensorInfo| PlannedTensor {
        name: t.name.clone(),
        dims: t.dims.clone(),
        format: t.format,
    };
    let planned: Vec<_> = header.tensors.iter().map(plan).collect();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.gguf");
    let mut writer = GgufWriter::create(&copy, &header.metadata, &planned).unwrap();
    for tensor in &header.tensors {
        writer.tensor(&file[header.tensor_range(tensor)]).unwrap();
    }
    writer.finish().unwrap();
    // Not assert_eq: a failure must not print hundreds of megabytes.
    assert!(map_file(&copy).unwrap() == file, "{name}: the copy differs");
}

#[test]
#[ignore = "needs the real model: SmolLM2-135M-Instruct.Q4_1.gguf"]
fn q4_1_gguf_rewrites_exactly() {
    rewrite_gguf("SmolLM2-135M-Instruct.Q4_1.gguf");
}

#[test]
#[ignore = "needs the real model: smollm2-float/model-f16.gguf"]
fn f16_gguf_rewrites_exactly() {
    rewrite_gguf("smollm2-float/model-f16.gguf");
}

#[test]
#[ignore = "needs the real model: smollm2-float/model-f32.gguf"]
fn f32_gguf_rewrites_exactly() {
    rewrite_gguf("smollm2-float/model-f32.gguf");
}

#[test]
#[ignore = "needs the real model: smollm2-float/model.safetensors"]
fn safetensors_rewrites_exactly() {
    let file = map_file(&model("smollm2-float/model.safetensors")).unwrap();
    let header = SafetensorsHeader::parse(&file).unwrap();
    assert!(header.tensors.len() > 100);
    let planned: Vec<_> = header
        .tensors
        .iter()
        .map(|t| PlannedSafeTensor { name: t.name.clone(), format: t.format, shape: t.shape.clone() })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.safetensors");
    let mut writer = SafetensorsWriter::create(&copy, &header.metadata, &planned).unwrap();
    for tensor in &header.tensors {
        writer.tensor(&file[tensor.range.clone()]).unwrap();
    }
    writer.finish().unwrap();
    assert!(map_file(&copy).unwrap() == file, "the copy differs");
}

#[test]
#[ignore = "needs the real model: SmolLM2-135M-Instruct.Q4_1.gguf"]
fn real_headers_cut_anywhere_are_refused() {
    let file = fs::read(model("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let header = GgufHeader::parse(&file).unwrap();
    let data_start = header.data_start as usize;
    // Every cut of the first 4 KiB and of the last 256 bytes of the tensor infos; in between (two million
    // bytes of vocabulary) at steps that fall on every residue of 8.
    let near = |n: &usize| *n < 4096 || *n + 256 > data_start || n.is_multiple_of(8191);
    for n in (0..data_start).filter(near) {
        assert!(GgufHeader::parse(&file[..n]).is_err(), "the first {n} bytes were accepted");
    }
    assert!(GgufHeader::parse(&file[..file.len() - 32]).is_err());
}
