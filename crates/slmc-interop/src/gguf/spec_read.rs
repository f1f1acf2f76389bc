//! GGUF metadata to spec. A key of the architecture that may change what the model computes is understood or
//! refused.

use slmc_formats::gguf::{Array, GgufHeader, Value};
use slmc_ir::{Activation, Biases, ModelSpec, Part, Role, RopeScaling, TensorKey};

use super::{ARCHITECTURE_KEY, FAMILY_KEY};
use crate::{
    error::{FieldError, shorten},
    family::{FAMILIES, FamilyRow, supported},
    names::gguf_name,
    numbers::plain,
};

/// Base of the rotary frequencies when the file does not say (llama.cpp's default).
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// Keys of the architecture that the spec is read from, or that change nothing at the values allowed below.
const KNOWN: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// The family that a GGUF belongs to.
pub(crate) fn read_family(header: &GgufHeader) -> Result<&'static FamilyRow, FieldError> {
    let missing = || FieldError::Missing { field: ARCHITECTURE_KEY.to_owned() };
    let found = header.get(ARCHITECTURE_KEY).and_then(Value::as_str).ok_or_else(missing)?;
    let named = header.get(FAMILY_KEY).and_then(Value::as_str);
    let mut rows = FAMILIES.iter().filter(|row| row.gguf == found).peekable();
    let first = rows.peek().copied();
    let named = rows.find(|row| Some(row.model_type) == named);
    named.or(first).ok_or_else(|| FieldError::Architecture {
        found: shorten(found),
        supported: supported(|row| row.gguf),
    })
}

/// Reads the spec. `rope_scaling` is what the tensor of rotary factors says, if there is one.
///
/// # Errors
/// When a key is missing, has the wrong type or an impossible value, or may change what the model computes in a
/// way that slmc does not know.
pub(crate) fn read_spec(
    header: &GgufHeader,
    row: &FamilyRow,
    rope_scaling: Option<RopeScaling>,
) -> Result<ModelSpec, FieldError> {
    let keys = Keys { header, architecture: row.gguf };
    keys.refuse_what_is_not_understood()?;
    let n_heads = keys.required_size("attention.head_count")?;
    let d_model = keys.required_size("embedding_length")?;
    let d_head = keys.read_head_size(d_model, n_heads)?;
    let has = |key: TensorKey| header.tensor(&gguf_name(key)).is_some();
    let has_bias = |role| has(TensorKey::block(0, role).bias());
    let spec = ModelSpec {
        family: row.family,
        vocab_size: keys.read_vocab_size()?,
        context_len: keys.required_size("context_length")?,
        d_model,
        n_layers: keys.required_size("block_count")?,
        n_heads,
        n_kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(n_heads),
        d_head,
        d_ff: keys.required_size("feed_forward_length")?,
        norm_eps: keys
            .number("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| FieldError::Missing { field: keys.path("attention.layer_norm_rms_epsilon") })?
            as f32,
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA),
        rope_scaling: keys.read_rope_scaling(rope_scaling)?,
        activation: Activation::Silu,
        biases: Biases {
            qkv: has_bias(Role::Query),
            attn_output: has_bias(Role::AttnOutput),
            mlp: has_bias(Role::Gate),
        },
        qk_norm: row.qk_norm,
        tied_head: !has(TensorKey { block: None, role: Role::Head, part: Part::Weight }),
    };
    spec.validate()?;
    Ok(spec)
}

/// The metadata of one architecture.
#[derive(Clone, Copy)]
struct Keys<'a> {
    header: &'a GgufHeader,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn path(self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(self, key: &str) -> Option<&'a Value> {
        self.header.get(&self.path(key))
    }

    fn wrong_type(self, key: &str, found: &Value, wanted: &'static str) -> FieldError {
        FieldError::Type { field: self.path(key), found: shorten(&format!("{found:?}")), wanted }
    }

    fn unsupported(self, key: &str, why: &'static str) -> FieldError {
        let found = self.get(key).map_or_else(|| "absent".to_owned(), |value| shorten(&format!("{value:?}")));
        FieldError::Unsupported { field: self.path(key), found, why }
    }

    /// A whole number; a list of one number a layer when all are the same.
    fn size(self, key: &str) -> Result<Option<usize>, FieldError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::Array(list) => {
                let numbers =
                    whole_numbers(list).ok_or_else(|| self.wrong_type(key, value, "whole numbers"))?;
                match numbers.split_first() {
                    Some((first, rest)) if rest.iter().all(|n| n == first) => Some(*first),
                    _ => return Err(self.unsupported(key, "layers that differ in shape are not known")),
                }
            }
            one => one.as_u64(),
        };
        let size = number.and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong_type(key, value, "a whole number, 0 or more"))
    }

    fn required_size(self, key: &str) -> Result<usize, FieldError> {
        self.size(key)?.ok_or_else(|| FieldError::Missing { field: self.path(key) })
    }

    fn number(self, key: &str) -> Result<Option<f64>, FieldError> {
        let read = |value: &Value| match *value {
            Value::F32(x) => Ok(plain(x)),
            Value::F64(x) => Ok(x),
            ref other => Err(self.wrong_type(key, other, "a float")),
        };
        self.get(key).map(read).transpose()
    }

    fn refuse_what_is_not_understood(self) -> Result<(), FieldError> {
        let prefix = format!("{}.", self.architecture);
        for (path, value) in &self.header.metadata {
            let Some(key) = path.strip_prefix(&prefix) else { continue };
            if !KNOWN.contains(&key) {
                let found = shorten(&format!("{value:?}"));
                return Err(FieldError::Unknown { field: path.clone(), found });
            }
        }
        if self.size("expert_count")?.unwrap_or(0) > 0 {
            return Err(self.unsupported("expert_count", "mixtures of experts are not known"));
        }
        if self.get("attention.causal").is_some_and(|value| *value != Value::Bool(true)) {
            return Err(self.unsupported("attention.causal", "only causal models are known"));
        }
        let window = self.size("attention.sliding_window")?.unwrap_or(0);
        if window > 0 && window < self.required_size("context_length")? {
            let why = "sliding windows shorter than the context are not known";
            return Err(self.unsupported("attention.sliding_window", why));
        }
        Ok(())
    }

    fn read_head_size(self, d_model: usize, n_heads: usize) -> Result<usize, FieldError> {
        let whole = d_model.checked_rem(n_heads) == Some(0);
        let d_head = match self.size("attention.key_length")? {
            Some(stated) => stated,
            None if whole => d_model / n_heads,
            None => {
                let why = "it must divide `embedding_length` where `attention.key_length` is absent";
                return Err(self.unsupported("attention.head_count", why));
            }
        };
        for (key, why) in [
            ("attention.value_length", "keys and values of different size are not known"),
            ("rope.dimension_count", "only full rotation, of all dimensions of a head, is known"),
        ] {
            if self.size(key)?.is_some_and(|size| size != d_head) {
                return Err(self.unsupported(key, why));
            }
        }
        Ok(d_head)
    }

    /// Rows of the embedding: the tensor says it best.
    fn read_vocab_size(self) -> Result<usize, FieldError> {
        let embedding = self.header.tensor(&gguf_name(TensorKey::model(Role::Embedding)));
        let rows = embedding.and_then(|tensor| tensor.dims.get(1)).copied();
        let stated = self.size("vocab_size")?;
        match rows.and_then(|rows| usize::try_from(rows).ok()) {
            Some(rows) => Ok(rows),
            None => stated.ok_or_else(|| FieldError::Missing { field: self.path("vocab_size") }),
        }
    }

    fn read_rope_scaling(self, of_tensor: Option<RopeScaling>) -> Result<RopeScaling, FieldError> {
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?.filter(|factor| *factor != 1.0),
        };
        let kind = match self.get("rope.scaling.type") {
            None => None,
            Some(Value::String(kind)) => Some(kind.as_str()),
            Some(other) => return Err(self.wrong_type("rope.scaling.type", other, "a text")),
        };
        let of_keys = match (kind, factor) {
            (Some("none"), _) => RopeScaling::None,
            (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
            (Some("linear") | None, None) => RopeScaling::None,
            _ => return Err(self.unsupported("rope.scaling.type", "`none` and `linear` are known")),
        };
        match (of_keys, of_tensor) {
            (keys, None) => Ok(keys),
            (RopeScaling::None, Some(tensor)) => Ok(tensor),
            _ => {
                let why = "together with the tensor `rope_freqs.weight` it would scale twice";
                Err(self.unsupported("rope.scaling.type", why))
            }
        }
    }
}

fn whole_numbers(list: &Array) -> Option<Vec<u64>> {
    match list {
        Array::U32(numbers) => Some(numbers.iter().map(|&n| n.into()).collect()),
        Array::U64(numbers) => Some(numbers.clone()),
        Array::I32(numbers) => numbers.iter().map(|&n| n.try_into().ok()).collect(),
        Array::I64(numbers) => numbers.iter().map(|&n| n.try_into().ok()).collect(),
        _ => None,
    }
}
