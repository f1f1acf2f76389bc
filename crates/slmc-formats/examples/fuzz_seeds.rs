//! Writes what the fuzz targets of this crate, and `blocks_decode`, start from.
//!
//! ```text
//! cargo run -p slmc-formats --example fuzz_seeds -- fuzz/corpus [MODEL.gguf | MODEL.safetensors …]
//! cargo fuzz run gguf_header
//! ```
//!
//! From each model given: its header with every array cut to a few elements and every tensor to one
//! block, and the first bytes of the file as they are.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use slmc_formats::{
    GgufHeader, GgufWriter, PlannedSafeTensor, PlannedTensor, SafetensorsHeader, SafetensorsWriter,
    gguf::{Array, Value},
    map_file,
};
use slmc_ir::Format;

const MAX_ELEMENTS: usize = 4;
const MAX_TENSORS: usize = 12;
const MAX_TEXT_CHARS: usize = 40;
const PREFIX_BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let corpus = args.next().ok_or("usage: fuzz_seeds CORPUS [MODEL …]")?;
    let folder = |target: &str| -> Result<PathBuf, std::io::Error> {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    };
    let (gguf, safetensors) = (folder("gguf_header")?, folder("safetensors_header")?);
    made_up_gguf(&gguf.join("every_type"))?;
    made_up_safetensors(&safetensors.join("every_dtype"))?;
    for (i, index) in INDICES.iter().enumerate() {
        fs::write(folder("shard_index")?.join(format!("index_{i}")), index)?;
    }
    for (i, format) in Format::ALL.into_iter().enumerate() {
        // The first byte chooses the format; two blocks of some pattern follow.
        let blocks = (0..2 * format.block_bytes()).map(|at| (at * 37) as u8);
        let seed: Vec<u8> = std::iter::once(i as u8).chain(blocks).collect();
        fs::write(folder("blocks_decode")?.join(format.name()), seed)?;
    }
    for (i, model) in args.enumerate() {
        let file = map_file(&model)?;
        let (place, shrink): (_, fn(&[u8], &Path) -> _) = match model.extension() {
            Some(kind) if kind == "gguf" => (&gguf, small_gguf),
            _ => (&safetensors, small_safetensors),
        };
        fs::write(place.join(format!("prefix_{i}")), &file[..file.len().min(PREFIX_BYTES)])?;
        shrink(&file, &place.join(format!("small_{i}")))?;
    }
    Ok(())
}

const INDICES: [&str; 3] = [
    r#"{"metadata":{"total_size":1024},"weight_map":{"a.weight":"model-00001-of-00002.safetensors","b.weight":"model-00002-of-00002.safetensors"}}"#,
    r#"{"weight_map":{"a":"../b","c":"\u002e\u002e","d":"C:\\x"}}"#,
    r#"{"metadata":{"total_size":1e3,"x":[{"y":null}]},"weight_map":{"a":"b","\u0061":"b"},"more":[[[]]]}"#,
];

fn made_up_gguf(path: &Path) -> Result<(), Box<dyn Error>> {
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("llama".into()),
        Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::Bool(vec![true]), Array::U16(vec![2])])),
        Value::Array(Array::Array(vec![Array::F32(vec![0.5]), Array::String(vec!["a".into()])])),
        Value::Array(Array::I64(vec![-1])),
        Value::U64(4),
        Value::I64(-4),
        Value::F64(0.25),
    ];
    let mut metadata: Vec<_> = values.into_iter().enumerate().map(|(i, v)| (format!("k{i}"), v)).collect();
    metadata.push(("general.alignment".into(), Value::U32(16)));
    let plan = |format: Format| {
        let dims = vec![format.block_weights() as u64, 1, 2];
        PlannedTensor { name: format.name().into(), dims, format }
    };
    write_gguf(path, &metadata, &Format::stored().map(plan).collect::<Vec<_>>())
}

fn write_gguf(
    path: &Path,
    metadata: &[(String, Value)],
    planned: &[PlannedTensor],
) -> Result<(), Box<dyn Error>> {
    let mut writer = GgufWriter::create(path, metadata, planned)?;
    for tensor in writer.header().tensors.clone() {
        writer.tensor(&vec![0; tensor.n_bytes as usize])?;
    }
    writer.finish()?;
    Ok(())
}

/// A real header, its shape kept and its size gone.
fn small_gguf(file: &[u8], path: &Path) -> Result<(), Box<dyn Error>> {
    let header = GgufHeader::parse(file)?;
    let short = |value: &Value| match value {
        Value::String(text) => Value::String(text.chars().take(MAX_TEXT_CHARS).collect()),
        Value::Array(Array::String(v)) => {
            Value::Array(Array::String(v.iter().take(MAX_ELEMENTS).cloned().collect()))
        }
        Value::Array(Array::I32(v)) => {
            Value::Array(Array::I32(v.iter().take(MAX_ELEMENTS).copied().collect()))
        }
        Value::Array(Array::F32(v)) => {
            Value::Array(Array::F32(v.iter().take(MAX_ELEMENTS).copied().collect()))
        }
        other => other.clone(),
    };
    let metadata: Vec<_> = header.metadata.iter().map(|(key, value)| (key.clone(), short(value))).collect();
    let plan = |tensor: &slmc_formats::TensorInfo| {
        let mut dims = vec![1; tensor.dims.len()];
        dims[0] = tensor.format.block_weights() as u64;
        PlannedTensor { name: tensor.name.clone(), dims, format: tensor.format }
    };
    let planned: Vec<_> = header.tensors.iter().take(MAX_TENSORS).map(plan).collect();
    write_gguf(path, &metadata, &planned)
}

fn made_up_safetensors(path: &Path) -> Result<(), Box<dyn Error>> {
    let plan = |(name, format, shape): (&str, Format, &[usize])| PlannedSafeTensor {
        name: name.into(),
        format,
        shape: shape.into(),
    };
    let planned = [
        plan(("scalar", Format::F32, &[])),
        plan(("empty", Format::F16, &[0, 3])),
        plan(("matrix", Format::Bf16, &[2, 3])),
    ];
    write_safetensors(path, &BTreeMap::from([("format".into(), "pt".into())]), &planned)
}

fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    planned: &[PlannedSafeTensor],
) -> Result<(), Box<dyn Error>> {
    let mut writer = SafetensorsWriter::create(path, metadata, planned)?;
    for tensor in planned {
        writer.tensor(&vec![0; tensor.shape.iter().product::<usize>() * tensor.format.block_bytes()])?;
    }
    writer.finish()?;
    Ok(())
}

/// A real header, its names kept and its size gone.
fn small_safetensors(file: &[u8], path: &Path) -> Result<(), Box<dyn Error>> {
    let header = SafetensorsHeader::parse(file)?;
    let plan = |tensor: &slmc_formats::SafeTensorInfo| PlannedSafeTensor {
        name: tensor.name.clone(),
        format: tensor.format,
        shape: vec![1; tensor.shape.len()],
    };
    let planned: Vec<_> = header.tensors.iter().take(MAX_TENSORS).map(plan).collect();
    write_safetensors(path, &header.metadata, &planned)
}
