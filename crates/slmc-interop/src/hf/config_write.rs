//! Spec to `config.json`: the fields that were there stay, those that the spec decides are set.

use serde_json::{Map, Value, json};
use slmc_ir::{Format, ModelSpec, RopeScaling, SpecialTokens};

use crate::{
    error::WriteError,
    family::{AttentionBias, FamilyRow, Window},
    numbers::plain,
};

/// The object of `config.json` for a model whose matrices are in `matrices`. `kept` is the one that the model
/// came with.
///
/// # Errors
/// When the family's `config.json` has no way to say what the spec says.
pub(crate) fn write_config(
    spec: &ModelSpec,
    matrices: Format,
    special: Option<&SpecialTokens>,
    kept: Option<&Map<String, Value>>,
) -> Result<Map<String, Value>, WriteError> {
    let row = FamilyRow::of(spec.family);
    if let Some(what) = row.cannot_say(spec) {
        return Err(WriteError::Inexpressible { what, container: "config.json", family: row.model_type });
    }
    let same_type = |kept: &&Map<String, Value>| kept.get("model_type") == Some(&json!(row.model_type));
    let mut config = kept.filter(same_type).cloned().unwrap_or_else(fresh);
    let mut set = |field: &str, value: Value| {
        config.insert(field.to_owned(), value);
    };
    set("architectures", json!([row.class]));
    set("model_type", json!(row.model_type));
    set("vocab_size", json!(spec.vocab_size));
    set("max_position_embeddings", json!(spec.context_len));
    set("hidden_size", json!(spec.d_model));
    set("num_hidden_layers", json!(spec.n_layers));
    set("num_attention_heads", json!(spec.n_heads));
    set("num_key_value_heads", json!(spec.n_kv_heads));
    set("head_dim", json!(spec.d_head));
    set("intermediate_size", json!(spec.d_ff));
    set("hidden_act", json!("silu"));
    set("rms_norm_eps", json!(plain(spec.norm_eps)));
    set("tie_word_embeddings", json!(spec.tied_head));
    set("rope_theta", json!(spec.rope_theta));
    set("rope_scaling", rope_scaling(spec.rope_scaling));
    if row.attention_bias == AttentionBias::Asked {
        set("attention_bias", json!(spec.biases.qkv));
    }
    if row.mlp_bias {
        set("mlp_bias", json!(spec.biases.mlp));
    }
    match row.window {
        Window::Unknown => {}
        Window::OnByDefault(_) => set("sliding_window", Value::Null),
        Window::WhenAsked => set("use_sliding_window", json!(false)),
    }
    config.remove("rope_parameters");
    if config.contains_key("layer_types") {
        config.insert("layer_types".to_owned(), json!(vec!["full_attention"; spec.n_layers]));
    }
    let dtype = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(dtype.to_owned(), json!(torch_dtype(matrices)));
    if let Some(special) = special {
        let ids =
            [("bos_token_id", special.bos), ("eos_token_id", special.eos), ("pad_token_id", special.pad)];
        for (field, id) in ids {
            config.entry(field).or_insert_with(|| json!(id));
        }
    }
    Ok(config)
}

fn fresh() -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("attention_dropout".to_owned(), json!(0.0));
    config.insert("use_cache".to_owned(), json!(true));
    config
}

fn rope_scaling(scaling: RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context_len,
        }),
    }
}

/// torch's name of a float format.
fn torch_dtype(format: Format) -> &'static str {
    match format {
        Format::Bf16 => "bfloat16",
        Format::F16 => "float16",
        _ => "float32",
    }
}
