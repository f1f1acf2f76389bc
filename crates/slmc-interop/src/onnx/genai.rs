//! `genai_config.json`: what onnxruntime-genai knows of a model (onnxruntime-genai `src/config.cpp`).

use serde_json::{Map, Value, json};
use slmc_ir::{Checkpoint, Family};

use super::{
    decoder::{IDS, LOGITS, MASK, POSITIONS},
    plan::OnnxOptions,
};

/// The configuration of a model whose graph is in `file`.
pub(super) fn genai_config(checkpoint: &Checkpoint, file: &str, options: &OnnxOptions) -> Map<String, Value> {
    let spec = checkpoint.spec();
    let ends = ends(checkpoint);
    let first_end = ends.as_array().map_or(&ends, |all| all.first().unwrap_or(&Value::Null)).clone();
    let special = checkpoint.tokenizer.as_ref().map(|files| &files.special);
    let begin = special.and_then(|special| special.bos).map_or(first_end.clone(), Value::from);
    let pad = special.and_then(|special| special.pad).map_or(first_end, Value::from);
    let decoder = json!({
        "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
        "filename": file,
        "head_size": spec.d_head,
        "hidden_size": spec.d_model,
        "inputs": {
            "input_ids": IDS,
            "attention_mask": MASK,
            "position_ids": POSITIONS,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": spec.n_heads,
        "num_hidden_layers": spec.n_layers,
        "num_key_value_heads": spec.n_kv_heads,
    });
    let model = json!({
        "type": model_type(spec.family),
        "bos_token_id": begin,
        "eos_token_id": ends,
        "pad_token_id": pad,
        "context_length": spec.context_len,
        "vocab_size": spec.vocab_size,
        "decoder": decoder,
    });
    let defaults = |field: &str, otherwise: Value| {
        let given = checkpoint.generation.as_ref().and_then(|generation| generation.get(field));
        given.filter(|value| !value.is_null()).cloned().unwrap_or(otherwise)
    };
    let search = json!({
        "do_sample": defaults("do_sample", json!(false)),
        "early_stopping": true,
        "length_penalty": 1.0,
        "max_length": spec.context_len,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        // GroupQueryAttention appends in place; concatenation makes a new cache each time.
        "past_present_share_buffer": !options.plain,
        "repetition_penalty": defaults("repetition_penalty", json!(1.0)),
        "temperature": defaults("temperature", json!(1.0)),
        "top_k": defaults("top_k", json!(50)),
        "top_p": defaults("top_p", json!(1.0)),
    });
    Map::from_iter([("model".to_owned(), model), ("search".to_owned(), search)])
}

/// The ids that end a text: all that the model's own defaults name, or else the tokenizer's.
fn ends(checkpoint: &Checkpoint) -> Value {
    let given = checkpoint.generation.as_ref().and_then(|generation| generation.get("eos_token_id"));
    if let Some(value) = given.filter(|value| value.is_u64() || value.is_array()) {
        return value.clone();
    }
    let special = checkpoint.tokenizer.as_ref().and_then(|files| files.special.eos);
    special.map_or(json!(0), Value::from)
}

/// onnxruntime-genai's names of families.
fn model_type(family: Family) -> &'static str {
    match family {
        Family::Llama => "llama",
        Family::Mistral => "mistral",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    }
}
