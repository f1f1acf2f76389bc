//! `config.json` to spec. A field that may change what the model computes is understood or refused.

use serde_json::{Map, Value};
use slmc_ir::{Activation, Biases, ModelSpec, RopeScaling};

use super::fields::Fields;
use crate::{
    error::{FieldError, shorten},
    family::{AttentionBias, FAMILIES, FamilyRow, Window, supported},
};

/// Base of the rotary frequencies when the file does not say (transformers' default for all families here).
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// Added in RMSNorm when the file does not say (transformers' default for all families here).
const DEFAULT_NORM_EPS: f64 = 1e-6;

/// Fields that say what the spec says.
const UNDERSTOOD: &[&str] = &[
    "architectures",
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Fields that do not change what the model computes: notes, training settings, defaults for generation.
const WITHOUT_EFFECT: &[&str] = &[
    "attention_dropout",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Reads the object of `config.json`.
///
/// # Errors
/// When a field is missing, has the wrong type or an impossible value, or may change what the model computes
/// in a way that slmc does not know.
pub(crate) fn read_config(config: &Map<String, Value>) -> Result<ModelSpec, FieldError> {
    let fields = Fields::new(config);
    let row = family_row(fields)?;
    refuse_what_is_not_understood(fields, row)?;
    let n_heads = fields.required_size("num_attention_heads")?;
    let d_model = fields.required_size("hidden_size")?;
    let context_len = fields.required_size("max_position_embeddings")?;
    check_window(fields, row, context_len)?;
    let (rope_theta, rope_scaling) = read_rope(fields)?;
    let spec = ModelSpec {
        family: row.family,
        vocab_size: fields.required_size("vocab_size")?,
        context_len,
        d_model,
        n_layers: fields.required_size("num_hidden_layers")?,
        n_heads,
        n_kv_heads: read_kv_heads(fields, row, n_heads)?,
        d_head: read_head_dim(fields, row, d_model, n_heads)?,
        d_ff: fields.required_size("intermediate_size")?,
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(DEFAULT_NORM_EPS) as f32,
        rope_theta,
        rope_scaling,
        activation: Activation::Silu,
        biases: read_biases(fields, row)?,
        qk_norm: row.qk_norm,
        tied_head: fields.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    spec.validate()?;
    Ok(spec)
}

fn family_row(fields: Fields<'_>) -> Result<&'static FamilyRow, FieldError> {
    let model_type = fields.text("model_type")?;
    let model_type = model_type.ok_or_else(|| FieldError::Missing { field: "model_type".to_owned() })?;
    FAMILIES.iter().find(|row| row.model_type == model_type).ok_or_else(|| FieldError::Architecture {
        found: shorten(model_type),
        supported: supported(|row| row.model_type),
    })
}

fn refuse_what_is_not_understood(fields: Fields<'_>, row: &FamilyRow) -> Result<(), FieldError> {
    if fields.get("quantization_config").is_some() {
        let why = "a model that is yet to be made has floats; take the float model's configuration";
        return Err(fields.unsupported("quantization_config", why));
    }
    for field in fields.names() {
        let known = UNDERSTOOD.contains(&field) || WITHOUT_EFFECT.contains(&field) || field.starts_with('_');
        if !known && fields.get(field).is_some() {
            return Err(fields.unknown(field));
        }
    }
    if let Some(classes) = fields.get("architectures") {
        let first = classes.as_array().and_then(|list| list.first()).and_then(Value::as_str);
        if first != Some(row.class) {
            return Err(fields.unsupported("architectures", "only causal language models are read"));
        }
    }
    if !matches!(fields.text("hidden_act")?, None | Some("silu" | "swish")) {
        return Err(fields.unsupported("hidden_act", "only `silu` is known"));
    }
    if !matches!(fields.number("partial_rotary_factor")?, None | Some(1.0)) {
        return Err(fields.unsupported("partial_rotary_factor", "only full rotation (1) is known"));
    }
    if fields.flag("rope_interleaved")? == Some(true) {
        return Err(fields.unsupported("rope_interleaved", "only rotation in halves is known"));
    }
    if let Some(types) = fields.get("layer_types") {
        let full = |list: &Vec<Value>| list.iter().all(|layer| layer == "full_attention");
        if !types.as_array().is_some_and(full) {
            return Err(fields.unsupported("layer_types", "only `full_attention` is known"));
        }
    }
    Ok(())
}

fn check_window(fields: Fields<'_>, row: &FamilyRow, context_len: usize) -> Result<(), FieldError> {
    let stated = fields.size("sliding_window")?;
    let absent = !fields.names().any(|name| name == "sliding_window");
    let window = match row.window {
        Window::Unknown => stated,
        Window::OnByDefault(tokens) if absent => Some(tokens),
        Window::OnByDefault(_) => stated,
        Window::WhenAsked => stated
            .filter(|_| fields.flag("use_sliding_window") != Ok(Some(false)))
            .filter(|_| fields.get("use_sliding_window").is_some()),
    };
    if window.is_some_and(|tokens| tokens < context_len) {
        let why = "sliding windows shorter than `max_position_embeddings` are not known; null turns them off";
        return Err(fields.unsupported("sliding_window", why));
    }
    Ok(())
}

fn read_kv_heads(fields: Fields<'_>, row: &FamilyRow, n_heads: usize) -> Result<usize, FieldError> {
    match fields.size("num_key_value_heads")? {
        None if row.kv_heads_optional => Ok(n_heads),
        None => fields.required_size("num_key_value_heads"),
        Some(n) => Ok(n),
    }
}

fn read_head_dim(
    fields: Fields<'_>,
    row: &FamilyRow,
    d_model: usize,
    n_heads: usize,
) -> Result<usize, FieldError> {
    if let Some(stated) = fields.size("head_dim")?.or(row.default_head_dim) {
        return Ok(stated);
    }
    match d_model.checked_rem(n_heads) {
        Some(0) => Ok(d_model / n_heads),
        _ => Err(fields
            .unsupported("num_attention_heads", "it must divide `hidden_size` where `head_dim` is absent")),
    }
}

fn read_biases(fields: Fields<'_>, row: &FamilyRow) -> Result<Biases, FieldError> {
    let asked = fields.flag("attention_bias")?.unwrap_or(false);
    let mlp = fields.flag("mlp_bias")?.unwrap_or(false);
    if mlp && !row.mlp_bias {
        return Err(fields.unsupported("mlp_bias", "this family has none"));
    }
    match row.attention_bias {
        AttentionBias::Asked => Ok(Biases { qkv: asked, attn_output: asked, mlp }),
        AttentionBias::QkvOnly => Ok(Biases { qkv: true, attn_output: false, mlp }),
        AttentionBias::Never if asked => Err(fields.unsupported("attention_bias", "this family has none")),
        AttentionBias::Never => Ok(Biases { mlp, ..Biases::default() }),
    }
}

/// Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
fn read_rope(fields: Fields<'_>) -> Result<(f64, RopeScaling), FieldError> {
    let scaling = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let outer = fields.number("rope_theta")?;
    let Some(scaling) = scaling else {
        return Ok((outer.unwrap_or(DEFAULT_ROPE_THETA), RopeScaling::None));
    };
    let theta = scaling.number("rope_theta")?.or(outer).unwrap_or(DEFAULT_ROPE_THETA);
    let kind = match scaling.text("rope_type")? {
        Some(kind) => ("rope_type", kind),
        None => ("type", scaling.text("type")?.unwrap_or("default")),
    };
    let (known, rope_scaling): (&[&str], _) = match kind.1 {
        "default" => (&[], RopeScaling::None),
        "linear" => (&["factor"], RopeScaling::Linear { factor: scaling.required_number("factor")? }),
        "llama3" => (
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            RopeScaling::Llama3 {
                factor: scaling.required_number("factor")?,
                low_freq_factor: scaling.required_number("low_freq_factor")?,
                high_freq_factor: scaling.required_number("high_freq_factor")?,
                original_context_len: scaling.required_size("original_max_position_embeddings")?,
            },
        ),
        _ => return Err(scaling.unsupported(kind.0, "`default`, `linear` and `llama3` are known")),
    };
    for field in scaling.names() {
        if !known.contains(&field) && !["rope_type", "type", "rope_theta"].contains(&field) {
            return Err(scaling.unknown(field));
        }
    }
    Ok((theta, rope_scaling))
}
