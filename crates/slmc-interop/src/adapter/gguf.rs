//! An adapter as a GGUF that llama.cpp loads beside its model (`src/llama-adapter.cpp`, `convert_lora_to_gguf.py`):
//! `general.type = adapter`, `adapter.type = lora`, and `TENSOR.lora_a` `[in, rank]`, `TENSOR.lora_b` `[rank, out]`, the
//! fastest dimension first.

use std::path::Path;

use slmc_formats::{
    GgufWriter,
    gguf::{PlannedTensor, Value},
};
use slmc_ir::{Adapter, Format, ModelSpec, Weight};

use crate::{
    error::WriteError,
    family::FamilyRow,
    names::gguf_name,
    rotary::{halves_to_pairs, is_rotary},
};

/// Writes the adapter of a model of this spec; the file appears under its name when it is complete. Returns its size in
/// bytes.
///
/// Where the architecture keeps the rows of query and key in pairs, the rows of their `B` follow.
///
/// # Errors
/// When the adapter does not fit the spec, or the system cannot write.
pub fn write_adapter_gguf(adapter: &Adapter, spec: &ModelSpec, path: &Path) -> Result<u64, WriteError> {
    adapter.check(spec)?;
    let row = FamilyRow::of(spec.family);
    let text = |text: &str| Value::String(text.to_owned());
    let metadata = [
        ("general.type".to_owned(), text("adapter")),
        ("general.architecture".to_owned(), text(row.gguf)),
        ("adapter.type".to_owned(), text("lora")),
        ("adapter.lora.alpha".to_owned(), Value::F32(adapter.alpha as f32)),
    ];
    let mut planned = Vec::new();
    let mut weights = Vec::new();
    for (&key, factors) in &adapter.factors {
        let (shape, rank, name) = (key.shape(spec), adapter.rank, gguf_name(key));
        let weight = |shape: [usize; 2], numbers: &[f32]| {
            Weight::from_f32(shape.to_vec(), numbers)
                .map_err(|source| WriteError::Weight { name: name.clone(), source })
        };
        let a = weight([rank, shape[1]], &factors.a)?;
        let mut b = weight([shape[0], rank], &factors.b)?;
        if row.gguf_rotary_pairs && is_rotary(key) {
            b = halves_to_pairs(&b, spec.d_head)
                .map_err(|source| WriteError::Weight { name: name.clone(), source })?;
        }
        for (ending, weight) in [("lora_a", a), ("lora_b", b)] {
            planned.push(PlannedTensor {
                name: format!("{name}.{ending}"),
                dims: weight.shape().iter().rev().map(|&n| n as u64).collect(),
                format: Format::F32,
            });
            weights.push(weight);
        }
    }
    let mut writer = GgufWriter::create(path, &metadata, &planned)?;
    for weight in &weights {
        writer.tensor(weight.bytes())?;
    }
    Ok(writer.finish()?)
}
