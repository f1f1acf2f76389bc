//! The metadata that a model derives by itself: from spec, formats, tokenizer and lineage.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use slmc_formats::gguf::{Value, file_type_of};
use slmc_ir::{Checkpoint, Family, Format, ModelSpec, RopeScaling, TensorKey};

use super::{ARCHITECTURE_KEY, FAMILY_KEY, FILE_TYPE_KEY, LINEAGE_KEY, NAME_KEY};
use crate::{
    error::{OpenFault, TokenizerError, WriteError},
    family::{FAMILIES, FamilyRow},
    hex::hex,
    tokenizer::to_gguf::tokenizer_metadata,
};

/// ggml's `GGML_QNT_VERSION`: the layouts are those of today.
const QUANTIZATION_VERSION: u32 = 2;

/// Metadata that follow from the model.
pub(crate) struct Derived {
    pub(crate) metadata: Vec<(String, Value)>,
    /// Tells one choice of formats from another.
    pub(crate) formats_digest: String,
}

/// Metadata that cannot be derived.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeriveError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Lineage(#[from] serde_json::Error),
}

impl From<DeriveError> for WriteError {
    fn from(error: DeriveError) -> Self {
        match error {
            DeriveError::Tokenizer(error) => error.into(),
            DeriveError::Lineage(error) => error.into(),
        }
    }
}

impl From<DeriveError> for OpenFault {
    fn from(error: DeriveError) -> Self {
        match error {
            DeriveError::Tokenizer(error) => error.into(),
            DeriveError::Lineage(error) => error.into(),
        }
    }
}

/// [`Derived::metadata`] by key.
pub(crate) struct DerivedKeys<'a>(BTreeMap<&'a str, &'a Value>);

impl<'a> DerivedKeys<'a> {
    pub(crate) fn of(derived: &'a Derived) -> Self {
        Self(derived.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).copied()
    }
}

/// The metadata of a checkpoint whose tensors are written in `formats`; in llama.cpp's order.
///
/// # Errors
/// When GGUF has no way to say what the tokenizer does, or the lineage cannot be written.
pub(crate) fn derive(
    checkpoint: &Checkpoint,
    formats: &[(TensorKey, Format)],
    name: Option<&str>,
) -> Result<Derived, DeriveError> {
    let spec = checkpoint.spec();
    let row = FamilyRow::of(spec.family);
    let mut metadata: Vec<(String, Value)> = Vec::new();
    let mut push = |key: &str, value: Value| metadata.push((key.to_owned(), value));
    push(ARCHITECTURE_KEY, text(row.gguf));
    push("general.type", text("model"));
    if let Some(name) = name {
        push(NAME_KEY, text(name));
    }
    push("general.size_label", text(&size_label(spec.n_parameters())));
    for (key, value) in architecture(spec, row) {
        push(&format!("{}.{key}", row.gguf), value);
    }
    // A format without a number is refused when its tensors are planned.
    if let Some(file_type) = file_type_of(main_format(spec, formats)) {
        push(FILE_TYPE_KEY, Value::U32(file_type));
    }
    if formats.iter().any(|(_, format)| !format.is_float()) {
        push("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    }
    for (key, value) in tokenizer_metadata(checkpoint.tokenizer.as_ref(), spec.vocab_size)? {
        push(key, value);
    }
    if default_family(row) != spec.family {
        push(FAMILY_KEY, text(row.model_type));
    }
    if !checkpoint.lineage.steps.is_empty() {
        push(LINEAGE_KEY, text(&serde_json::to_string(&checkpoint.lineage)?));
    }
    Ok(Derived { metadata, formats_digest: digest(formats) })
}

fn architecture(spec: &ModelSpec, row: &FamilyRow) -> Vec<(&'static str, Value)> {
    let size = |n: usize| Value::U32(n.try_into().unwrap_or(u32::MAX));
    let mut metadata = vec![
        ("block_count", size(spec.n_layers)),
        ("context_length", size(spec.context_len)),
        ("embedding_length", size(spec.d_model)),
        ("feed_forward_length", size(spec.d_ff)),
        ("attention.head_count", size(spec.n_heads)),
        ("attention.head_count_kv", size(spec.n_kv_heads)),
        ("rope.freq_base", Value::F32(spec.rope_theta as f32)),
        ("attention.layer_norm_rms_epsilon", Value::F32(spec.norm_eps)),
    ];
    if let RopeScaling::Linear { factor } = spec.rope_scaling {
        metadata.push(("rope.scaling.type", text("linear")));
        metadata.push(("rope.scaling.factor", Value::F32(factor as f32)));
    }
    // Said where a reader would infer another size, and by families whose heads have a size of their own.
    if spec.d_head * spec.n_heads != spec.d_model || row.default_head_dim.is_some() {
        metadata.push(("attention.key_length", size(spec.d_head)));
        metadata.push(("attention.value_length", size(spec.d_head)));
    }
    metadata.push(("vocab_size", size(spec.vocab_size)));
    metadata.push(("rope.dimension_count", size(spec.d_head)));
    metadata
}

/// The format of most weights in the blocks' matrices.
fn main_format(spec: &ModelSpec, formats: &[(TensorKey, Format)]) -> Format {
    let mut weights: BTreeMap<Format, u64> = BTreeMap::new();
    for (key, format) in formats {
        let shape = key.shape(spec);
        if let ([rows, columns], true) = (&shape[..], key.role.in_block()) {
            *weights.entry(*format).or_default() += *rows as u64 * *columns as u64;
        }
    }
    weights.into_iter().max_by_key(|(_, n)| *n).map_or(Format::F32, |(format, _)| format)
}

fn digest(formats: &[(TensorKey, Format)]) -> String {
    let mut hasher = Sha256::new();
    for (key, format) in formats {
        hasher.update(format!("{key}:{format}\n"));
    }
    hex(&hasher.finalize())[..16].to_owned()
}

/// The family that a GGUF of the row's architecture is taken for when it does not say.
fn default_family(row: &FamilyRow) -> Family {
    FAMILIES.iter().find(|other| other.gguf == row.gguf).map_or(row.family, |first| first.family)
}

/// `135M`, `1.2B`: as llama.cpp's converter rounds (gguf-py `size_label`).
fn size_label(n_parameters: u64) -> String {
    let (scaled, unit) = match n_parameters as f64 {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    // At least two significant digits.
    let whole_digits = format!("{scaled:.0}").trim_start_matches('0').len();
    let decimals = 2_usize.saturating_sub(whole_digits);
    format!("{scaled:.decimals$}{unit}")
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::size_label;

    #[test]
    fn size_labels_have_two_digits() {
        assert_eq!(size_label(134_515_008), "135M");
        assert_eq!(size_label(1_235_814_400), "1.2B");
        assert_eq!(size_label(7_241_732_096), "7.2B");
        assert_eq!(size_label(260_032), "260K");
        assert_eq!(size_label(999), "1.0K");
    }
}
