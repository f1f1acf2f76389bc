//! Writes a GGUF: everything that llama.cpp needs, one tensor in memory at a time.

use std::path::Path;

use slmc_formats::{GgufWriter, gguf::PlannedTensor};
use slmc_ir::{Checkpoint, Format, Host, ModelSpec, RopeScaling, SourceError, TensorKey, Weight};

use super::{EXTRA, ROPE_FREQS, kept::recall, metadata::derive, read::rope_freqs_to_write};
use crate::{
    error::WriteError,
    family::FamilyRow,
    finite::ready,
    names::gguf_name,
    rotary::{halves_to_pairs, is_rotary},
    write::{Progress, WriteOptions, Written, check_options, is_matrix, read_checked},
};

/// Writes the checkpoint as a GGUF, which appears under its name when it is complete.
///
/// Matrices keep their format, float ones become [`WriteOptions::float`] if that is set; norms and biases are
/// f32, as llama.cpp wants them.
///
/// # Errors
/// When a tensor cannot be read or is not finite, GGUF has no way to say what the tokenizer does, the file
/// cannot be written, or the host asks to stop; then no file appears.
pub fn write_gguf(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &WriteOptions,
    host: &dyn Host,
) -> Result<Written, WriteError> {
    check_options(options)?;
    let spec = checkpoint.spec();
    let row = FamilyRow::of(spec.family);
    if let Some(what) = cannot_say(spec, row) {
        return Err(WriteError::Inexpressible { what, container: "GGUF", family: row.gguf });
    }
    let formats = written_formats(checkpoint, options.float)?;
    let derived = derive(checkpoint, &formats, options.name.as_deref())?;
    let kept = checkpoint.extras.get(EXTRA).and_then(|extra| extra.get("metadata"));
    let metadata = recall(kept, derived)?;
    let freqs = rope_freqs_to_write(checkpoint);
    let planned = plan(checkpoint, &formats, freqs.as_deref());

    let mut writer = GgufWriter::create(path, &metadata, &planned)?;
    if let Some(freqs) = &freqs {
        writer.tensor(&freqs.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    let mut progress = Progress::begin(host, "writing GGUF", formats.len());
    for &(key, format) in &formats {
        let name = gguf_name(key);
        let weight = read_checked(checkpoint, key)?;
        let weight = in_file_order(weight, key, spec.d_head, row.gguf_rotary_pairs, &name)?;
        writer.tensor(ready(key, &weight, format, &name)?.bytes())?;
        progress.advance()?;
    }
    let file_bytes = writer.finish()?;
    Ok(Written { file_bytes, tensors: formats, notes: Vec::new() })
}

/// What of the spec llama.cpp has no place for in the architecture.
fn cannot_say(spec: &ModelSpec, row: &FamilyRow) -> Option<&'static str> {
    if spec.qk_norm != row.qk_norm {
        return Some("norms of query and key heads");
    }
    let llama3 = matches!(spec.rope_scaling, RopeScaling::Llama3 { .. });
    (llama3 && !row.gguf_rope_factors).then_some("rotary frequencies scaled as in Llama 3")
}

/// The format of each tensor in the file.
fn written_formats(
    checkpoint: &Checkpoint,
    float: Option<Format>,
) -> Result<Vec<(TensorKey, Format)>, SourceError> {
    let written = |&key: &TensorKey| {
        if !is_matrix(key) {
            return Ok((key, Format::F32));
        }
        let stored = checkpoint.weights.format(key)?;
        Ok((key, float.filter(|_| stored.is_float()).unwrap_or(stored)))
    };
    checkpoint.weights.keys().iter().map(written).collect()
}

fn plan(
    checkpoint: &Checkpoint,
    formats: &[(TensorKey, Format)],
    freqs: Option<&[f32]>,
) -> Vec<PlannedTensor> {
    let spec = checkpoint.spec();
    let freqs = freqs.map(|freqs| PlannedTensor {
        name: ROPE_FREQS.to_owned(),
        dims: vec![freqs.len() as u64],
        format: Format::F32,
    });
    let tensor = |&(key, format): &(TensorKey, Format)| PlannedTensor {
        name: gguf_name(key),
        dims: key.shape(spec).iter().rev().map(|&n| n as u64).collect(),
        format,
    };
    freqs.into_iter().chain(formats.iter().map(tensor)).collect()
}

fn in_file_order(
    weight: Weight,
    key: TensorKey,
    d_head: usize,
    pairs: bool,
    name: &str,
) -> Result<Weight, WriteError> {
    if !pairs || !is_rotary(key) {
        return Ok(weight);
    }
    halves_to_pairs(&weight, d_head).map_err(|source| WriteError::Weight { name: name.to_owned(), source })
}
