//! A scheme as `quantization_config` in `config.json`.

use serde_json::{Map, Value, json};

use super::{PackedLayout, PackedScheme};

/// The object that says how a file is packed. `floats` are the names of the projections that are not, and
/// `has_head` is whether there is a head that could have been.
pub(crate) fn quantization_config(scheme: &PackedScheme, floats: &[String], has_head: bool) -> Value {
    match scheme.layout {
        PackedLayout::Gptq | PackedLayout::GptqV2 => gptq(scheme, floats),
        PackedLayout::Awq => awq(scheme, floats, has_head),
        PackedLayout::CompressedTensors => compressed_tensors(scheme, floats),
    }
}

/// GPTQModel's `quantization/config.py`: −1 is one group a row.
fn gptq(scheme: &PackedScheme, floats: &[String]) -> Value {
    let mut config = json!({
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size.map_or(json!(-1), |n| json!(n)),
        "sym": scheme.symmetric,
        "desc_act": scheme.column_order,
        "lm_head": false,
        "checkpoint_format": scheme.layout.name(),
        "pack_dtype": "int32",
        "true_sequential": true,
        "meta": { "quantizer": ["slmc:0"] },
    });
    if !floats.is_empty() {
        // "-:" leaves out what the pattern matches.
        let rules: Map<String, Value> = floats.iter().map(|name| (exclusion(name), json!({}))).collect();
        config["dynamic"] = Value::Object(rules);
    }
    config
}

/// GPTQModel's rule for one module.
fn exclusion(name: &str) -> String {
    format!("-:^{}$", name.replace('.', "\\."))
}

/// AutoAWQ's `models/_config.py`.
fn awq(scheme: &PackedScheme, floats: &[String], has_head: bool) -> Value {
    let mut left_out: Vec<&str> = floats.iter().map(String::as_str).collect();
    if has_head {
        left_out.push("lm_head");
    }
    json!({
        "quant_method": "awq",
        "version": "gemm",
        "bits": scheme.bits,
        "group_size": scheme.group_size.map_or(json!(-1), |n| json!(n)),
        // Its kernels always subtract a zero point.
        "zero_point": true,
        "modules_to_not_convert": if left_out.is_empty() { Value::Null } else { json!(left_out) },
    })
}

/// compressed-tensors' `quantization/quant_config.py`.
fn compressed_tensors(scheme: &PackedScheme, floats: &[String]) -> Value {
    let mut ignore: Vec<&str> = floats.iter().map(String::as_str).collect();
    ignore.push("lm_head");
    let weights = json!({
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": if scheme.group_size.is_some() { "group" } else { "channel" },
        "group_size": scheme.group_size,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "minmax",
        "observer_kwargs": {},
    });
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": null,
                "output_activations": null,
            },
        },
        "ignore": ignore,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    })
}
