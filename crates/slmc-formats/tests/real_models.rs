//! Real files: read whole, written again, byte for byte the same.
//!
//! `SLMC_MODELS` names the folder of models; without it, `models-cache` in the repository's root.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};
use slmc_formats::{
    GgufHeader, GgufWriter, PlannedSafeTensor, PlannedTensor, SafetensorsHeader, SafetensorsWriter,
    gguf::{Array, Value},
    map_file,
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

/// Elements as little-endian bytes, strings with a zero byte after each, as `gguf_dump.py` digests them.
fn described(array: &Array) -> Json {
    let mut digest = Sha256::new();
    let kind = match array {
        Array::String(texts) => {
            texts.iter().for_each(|text| digest.update([text.as_bytes(), &[0]].concat()));
            "string"
        }
        Array::I32(numbers) => {
            numbers.iter().for_each(|n| digest.update(n.to_le_bytes()));
            "int32"
        }
        Array::F32(numbers) => {
            numbers.iter().for_each(|n| digest.update(n.to_le_bytes()));
            "float32"
        }
        other => panic!("these files have no {other:?}"),
    };
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    json!(["array", kind, array.len(), hex])
}

/// A metadata entry as a line of the golden file.
fn line(key: &str, value: &Value) -> Vec<Json> {
    let described = match value {
        Value::U32(n) => json!(["uint32", n]),
        Value::F32(x) => json!(["float32", f64::from(*x)]),
        Value::Bool(b) => json!(["bool", b]),
        Value::String(text) => json!(["string", text]),
        Value::Array(array) => described(array),
        other => panic!("these files have no {other:?}"),
    };
    let mut line = vec![json!(key)];
    line.extend(described.as_array().unwrap().iter().cloned());
    line
}

/// Compares the header with what gguf-py found (`tests/reference/gguf_dump.py`).
#[track_caller]
fn as_gguf_py(name: &str, golden: &str) {
    let golden: Json = serde_json::from_str(golden).unwrap();
    let file = map_file(&model(name)).unwrap();
    let header = GgufHeader::parse(&file).unwrap();
    assert_eq!(json!([header.version, header.alignment]), json!([golden["version"], golden["alignment"]]));
    let metadata: Vec<_> = header.metadata.iter().map(|(key, value)| line(key, value)).collect();
    assert_eq!(json!(metadata), golden["metadata"]);
    let tensor = |t: &slmc_formats::TensorInfo| {
        json!([t.name, t.format.name(), t.dims, header.tensor_range(t).start, t.n_bytes])
    };
    let tensors: Vec<_> = header.tensors.iter().map(tensor).collect();
    assert_eq!(json!(tensors), golden["tensors"]);
}

#[test]
#[ignore = "needs the real model: SmolLM2-135M-Instruct.Q4_1.gguf"]
fn q4_1_gguf_is_what_gguf_py_finds() {
    as_gguf_py("SmolLM2-135M-Instruct.Q4_1.gguf", include_str!("golden/SmolLM2-135M-Instruct.Q4_1.json"));
}

#[test]
#[ignore = "needs the real model: smollm2-float/model-f16.gguf"]
fn f16_gguf_is_what_gguf_py_finds() {
    as_gguf_py("smollm2-float/model-f16.gguf", include_str!("golden/smollm2-float-f16.json"));
}
