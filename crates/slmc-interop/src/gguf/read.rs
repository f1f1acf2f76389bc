//! Opens a GGUF file.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use serde_json::{Map, Value as Json, json};
use slmc_formats::{
    GgufHeader,
    gguf::{TensorInfo, Value},
    map_file,
};
use slmc_ir::{Checkpoint, Extras, Format, Lineage, RopeScaling, TensorKey, Weight};

use super::{
    EXTRA, LINEAGE_KEY, ROPE_FREQS,
    kept::remember,
    metadata::derive,
    rope::{factors, recognise},
    spec_read::{read_family, read_spec},
};
use crate::{
    error::{At as _, FieldError, OpenError, OpenFault, TensorError, shorten},
    names::{gguf_key, gguf_name},
    open::Purpose,
    source::MappedSource,
    tokenizer::from_gguf::read_tokenizer,
};

/// Opens the file. Weights are mapped, not read.
pub(crate) fn open_gguf(path: &Path, purpose: Purpose) -> Result<Checkpoint, OpenError> {
    let file = map_file(path).at(path)?;
    let header = GgufHeader::parse(&file).at(path)?;
    open_parsed(&file, &header, purpose).map_err(|fault| fault.at(path))
}

fn open_parsed(file: &Bytes, header: &GgufHeader, purpose: Purpose) -> Result<Checkpoint, OpenFault> {
    let row = read_family(header)?;
    let unscaled = read_spec(header, row, None)?;
    let freqs = if row.gguf_rope_factors { read_rope_freqs(file, header)? } else { None };
    let of_tensor =
        freqs.as_deref().map(|f| recognise(f, unscaled.rope_theta, unscaled.d_head)).transpose()?;
    let spec = match of_tensor {
        Some(scaling) => read_spec(header, row, Some(scaling))?,
        None => unscaled,
    };
    let (vocab_size, theta, d_head) = (spec.vocab_size, spec.rope_theta, spec.d_head);
    let tensors = slice_tensors(file, header, freqs.is_some())?;
    let source = MappedSource::new(spec, tensors, row.gguf_rotary_pairs, gguf_name)?;
    let formats = source.formats();
    let mut checkpoint = Checkpoint {
        weights: Arc::new(source),
        tokenizer: read_tokenizer(header, vocab_size)?,
        generation: None,
        extras: Extras::new(),
        lineage: read_lineage(header)?,
    };
    if purpose == Purpose::Run {
        return Ok(checkpoint);
    }
    let derived = derive(&checkpoint, &formats, None)?;
    let mut extra = Map::new();
    extra.insert("metadata".to_owned(), remember(&header.metadata, &derived));
    if let Some(kept) =
        freqs.filter(|f| of_tensor.and_then(|s| factors(s, theta, d_head)).as_ref() != Some(f))
    {
        let bits: Vec<u32> = kept.iter().map(|factor| factor.to_bits()).collect();
        extra.insert("rope_freqs".to_owned(), json!({ "bits": bits, "scaling": of_tensor }));
    }
    checkpoint.extras.insert(EXTRA.to_owned(), Json::Object(extra));
    Ok(checkpoint)
}

/// Every weight; the tensor of rotary factors, read already, is none.
fn slice_tensors(
    file: &Bytes,
    header: &GgufHeader,
    rope_freqs: bool,
) -> Result<BTreeMap<TensorKey, Weight>, TensorError> {
    let mut tensors = BTreeMap::new();
    for tensor in header.tensors.iter().filter(|tensor| !rope_freqs || tensor.name != ROPE_FREQS) {
        let key = gguf_key(&tensor.name).ok_or_else(|| TensorError::Unknown(shorten(&tensor.name)))?;
        tensors.insert(key, slice_tensor(file, header, tensor)?);
    }
    Ok(tensors)
}

fn slice_tensor(file: &Bytes, header: &GgufHeader, tensor: &TensorInfo) -> Result<Weight, TensorError> {
    // Offsets are inside the file, as the codec has proven; so the sizes fit too.
    let shape = tensor.dims.iter().rev().map(|&n| n as usize).collect();
    Weight::new(shape, tensor.format, file.slice(header.tensor_range(tensor)))
        .map_err(|source| TensorError::Weight { name: shorten(&tensor.name), source })
}

fn read_rope_freqs(file: &Bytes, header: &GgufHeader) -> Result<Option<Vec<f32>>, TensorError> {
    let Some(tensor) = header.tensor(ROPE_FREQS) else { return Ok(None) };
    if tensor.format != Format::F32 {
        return Err(TensorError::RopeFreqs("must be f32"));
    }
    let weight = slice_tensor(file, header, tensor)?;
    let (numbers, _) = weight.bytes().as_chunks::<4>();
    Ok(Some(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
}

fn read_lineage(header: &GgufHeader) -> Result<Lineage, FieldError> {
    let wrong = |found: &str, wanted| FieldError::Type {
        field: LINEAGE_KEY.to_owned(),
        found: shorten(found),
        wanted,
    };
    match header.get(LINEAGE_KEY) {
        None => Ok(Lineage::default()),
        Some(Value::String(json)) => {
            serde_json::from_str(json).map_err(|_| wrong(json, "a lineage in slmc's JSON"))
        }
        Some(other) => Err(wrong(&format!("{other:?}"), "a text")),
    }
}

/// The tensor of rotary factors to write: as it was in the file where the scaling is still the same.
pub(super) fn rope_freqs_to_write(checkpoint: &Checkpoint) -> Option<Vec<f32>> {
    let spec = checkpoint.spec();
    let derived = factors(spec.rope_scaling, spec.rope_theta, spec.d_head);
    let kept = checkpoint.extras.get(EXTRA).and_then(|extra| extra.get("rope_freqs"));
    let kept_scaling = |kept: &Json| serde_json::from_value::<RopeScaling>(kept["scaling"].clone()).ok();
    let Some(kept) = kept.filter(|kept| kept_scaling(kept) == Some(spec.rope_scaling)) else {
        return derived;
    };
    let bit = |bits: &Json| bits.as_u64().and_then(|n| u32::try_from(n).ok()).map(f32::from_bits);
    let factors: Option<Vec<f32>> = kept["bits"].as_array().and_then(|bits| bits.iter().map(bit).collect());
    factors.filter(|factors| factors.len() == spec.d_head / 2).or(derived)
}
