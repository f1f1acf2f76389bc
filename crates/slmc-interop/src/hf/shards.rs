//! Safetensors of a folder on their way out: what goes into which file.

use std::{collections::BTreeMap, path::Path};

use serde_json::json;
use slmc_formats::{Dtype, FloatType, PlannedTypedTensor, SafetensorsWriter};
use slmc_ir::{Checkpoint, Format, Host, Quantized, TensorKey, WeightError};

use super::{
    weights::{INDEX_FILE, WEIGHTS_FILE},
    write::Files,
};
use crate::{
    error::WriteError,
    finite::ready,
    names::hf_name,
    packed::{PackedScheme, module_name},
    write::{Progress, read_checked},
};

/// Largest shard, as Hugging Face's own tools cut them.
pub(super) const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Matrices that are written packed.
pub(super) struct Packed<'a> {
    pub scheme: PackedScheme,
    pub matrices: &'a BTreeMap<TensorKey, Quantized>,
}

/// A tensor of the model with all tensors of the file that stand for it.
struct Entry<'a> {
    key: TensorKey,
    planned: Vec<PlannedTypedTensor>,
    n_bytes: u64,
    from: Numbers<'a>,
}

/// Where a tensor's numbers come from.
enum Numbers<'a> {
    Float(Format),
    Packed(PackedScheme, &'a Quantized),
}

/// Tensors in one file, or in shards with their index.
pub(super) fn write_weights(
    checkpoint: &Checkpoint,
    floats: &[(TensorKey, Format)],
    packed: Option<&Packed<'_>>,
    max_shard_bytes: u64,
    host: &dyn Host,
    files: &mut Files<'_>,
) -> Result<(), WriteError> {
    let entries = entries(checkpoint, floats, packed)?;
    let total_bytes: u64 = entries.iter().map(|entry| entry.n_bytes).sum();
    let shards = cut(&entries, max_shard_bytes);
    let mut progress = Progress::begin(host, "writing safetensors", entries.len());
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => WEIGHTS_FILE.to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", index + 1),
        };
        files.n_bytes += write_shard(checkpoint, shard, &files.folder.join(&file), &mut progress)?;
        let names = shard.iter().flat_map(|entry| &entry.planned).map(|tensor| tensor.name.clone());
        weight_map.extend(names.map(|name| (name, file.clone())));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
        files.put_json(INDEX_FILE, &index)?;
    }
    Ok(())
}

/// Everything that is written, in the order of the model's tensors.
fn entries<'a>(
    checkpoint: &Checkpoint,
    floats: &[(TensorKey, Format)],
    packed: Option<&Packed<'a>>,
) -> Result<Vec<Entry<'a>>, WriteError> {
    let formats: BTreeMap<TensorKey, Format> = floats.iter().copied().collect();
    let mut entries = Vec::with_capacity(checkpoint.weights.keys().len());
    for &key in checkpoint.weights.keys() {
        let matrix = packed.and_then(|packed| Some((packed.scheme, packed.matrices.get(&key)?)));
        let (planned, from) = match matrix {
            Some((scheme, matrix)) => (plan_packed(key, &scheme, matrix)?, Numbers::Packed(scheme, matrix)),
            None => {
                let format = formats.get(&key).copied().unwrap_or(Format::F32);
                let dtype = Dtype::of(format).ok_or(WriteError::NotFloat(format))?;
                let shape = key.shape(checkpoint.spec());
                (vec![PlannedTypedTensor { name: hf_name(key), dtype, shape }], Numbers::Float(format))
            }
        };
        let too_large = |shape: &[usize]| {
            let source = WeightError::TooLarge(shape.to_vec());
            WriteError::Weight { name: hf_name(key), source }
        };
        let mut n_bytes = 0_u64;
        for PlannedTypedTensor { dtype, shape, .. } in &planned {
            let bytes = shape.iter().try_fold(dtype.n_bytes() as u64, |n, &size| n.checked_mul(size as u64));
            n_bytes = bytes.and_then(|n| n.checked_add(n_bytes)).ok_or_else(|| too_large(shape))?;
        }
        entries.push(Entry { key, planned, n_bytes, from });
    }
    Ok(entries)
}

fn plan_packed(
    key: TensorKey,
    scheme: &PackedScheme,
    matrix: &Quantized,
) -> Result<Vec<PlannedTypedTensor>, WriteError> {
    let size = (matrix.parts().rows, matrix.parts().columns);
    let tensors = scheme
        .tensors(size, Dtype::Float(FloatType::F16))
        .map_err(|source| WriteError::Packed { key, source })?;
    let module = module_name(key);
    let planned = tensors.into_iter().map(|tensor| PlannedTypedTensor {
        name: format!("{module}.{}", tensor.suffix),
        dtype: tensor.dtype,
        shape: tensor.shape,
    });
    Ok(planned.collect())
}

/// Runs of tensors that fit a shard, a larger tensor in one of its own.
fn cut<'a, 'b>(entries: &'b [Entry<'a>], max_shard_bytes: u64) -> Vec<&'b [Entry<'a>]> {
    let (mut shards, mut first, mut in_shard) = (Vec::new(), 0, 0_u64);
    for (at, entry) in entries.iter().enumerate() {
        if at > first && in_shard + entry.n_bytes > max_shard_bytes {
            shards.push(&entries[first..at]);
            (first, in_shard) = (at, 0);
        }
        in_shard += entry.n_bytes;
    }
    shards.push(&entries[first..]);
    shards
}

fn write_shard(
    checkpoint: &Checkpoint,
    shard: &[Entry<'_>],
    path: &Path,
    progress: &mut Progress<'_>,
) -> Result<u64, WriteError> {
    let planned: Vec<PlannedTypedTensor> = shard.iter().flat_map(|entry| &entry.planned).cloned().collect();
    // transformers asks for this entry.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = SafetensorsWriter::create_typed(path, &metadata, &planned)?;
    for &Entry { key, ref from, .. } in shard {
        match from {
            Numbers::Float(format) => {
                let weight = read_checked(checkpoint, key)?;
                writer.tensor(ready(key, &weight, *format, &hf_name(key))?.bytes())?;
            }
            Numbers::Packed(scheme, matrix) => {
                let tensors = scheme.pack(matrix).map_err(|source| WriteError::Packed { key, source })?;
                for bytes in tensors {
                    writer.tensor(&bytes)?;
                }
            }
        }
        progress.advance()?;
    }
    Ok(writer.finish()?)
}
