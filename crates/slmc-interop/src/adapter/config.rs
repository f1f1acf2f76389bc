//! `adapter_config.json` of PEFT (`src/peft/tuners/lora/config.py`), as far as plain LoRA goes. What may change what the
//! adapter computes is understood or refused by name.

use serde_json::{Map, Value, json};
use slmc_ir::{Adapter, Role};

use crate::{
    error::{FieldError, shown},
    names::{hf_module, module_role},
};

/// Fields that other values than these make another function of.
const PLAIN: [(&str, &[Value]); 12] = [
    ("use_dora", &[Value::Null, Value::Bool(false)]),
    ("fan_in_fan_out", &[Value::Null, Value::Bool(false)]),
    ("lora_bias", &[Value::Null, Value::Bool(false)]),
    ("modules_to_save", &[Value::Null]),
    ("trainable_token_indices", &[Value::Null]),
    ("layer_replication", &[Value::Null]),
    ("target_parameters", &[Value::Null]),
    ("alora_invocation_tokens", &[Value::Null]),
    ("use_qalora", &[Value::Null, Value::Bool(false)]),
    ("megatron_config", &[Value::Null]),
    ("use_bdlora", &[Value::Null, Value::Bool(false)]),
    ("arrow_config", &[Value::Null]),
];

/// Rank and alpha of the plain scale `alpha / rank`.
pub(super) fn read(config: &Map<String, Value>) -> Result<(usize, f64), FieldError> {
    let get = |field: &str| config.get(field).unwrap_or(&Value::Null);
    let unsupported =
        |field: &str, why| FieldError::Unsupported { field: field.to_owned(), found: shown(get(field)), why };
    if get("peft_type").as_str() != Some("LORA") {
        return Err(unsupported("peft_type", "only LORA adapters are read"));
    }
    for (field, plain) in PLAIN {
        let value = get(field);
        let is_empty =
            value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
        if !plain.contains(value) && !is_empty {
            return Err(unsupported(field, "only plain low-rank factors are read"));
        }
    }
    for field in ["rank_pattern", "alpha_pattern"] {
        if !get(field).is_null() && get(field).as_object().is_none_or(|pattern| !pattern.is_empty()) {
            return Err(unsupported(field, "every matrix must have the same rank and alpha"));
        }
    }
    if !matches!(get("bias"), Value::Null) && get("bias").as_str() != Some("none") {
        return Err(unsupported("bias", "biases stay the base's: only `none` is read"));
    }
    let wrong =
        |field: &str, wanted| FieldError::Type { field: field.to_owned(), found: shown(get(field)), wanted };
    let rank = get("r").as_u64().filter(|&rank| (1..=4096).contains(&rank));
    let rank = rank.ok_or_else(|| wrong("r", "a whole number from 1 to 4096"))? as usize;
    let alpha = get("lora_alpha").as_f64().filter(|alpha| alpha.is_finite() && *alpha != 0.0);
    let alpha = alpha.ok_or_else(|| wrong("lora_alpha", "a number other than 0"))?;
    // rsLoRA (arXiv:2312.03732) divides by the rank's root: the same function with another alpha.
    let alpha = if get("use_rslora").as_bool() == Some(true) { alpha * (rank as f64).sqrt() } else { alpha };
    Ok((rank, alpha))
}

/// The configuration that PEFT reads.
pub(super) fn write(adapter: &Adapter, base: Option<&str>) -> Value {
    let modules: Vec<&str> = adapter.roles().into_iter().map(hf_module).collect();
    let alpha = if adapter.alpha.fract() == 0.0 { json!(adapter.alpha as i64) } else { json!(adapter.alpha) };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": false,
        "use_rslora": false,
        "revision": null,
    })
}

/// The projections that names on the command line speak of: `all-linear`, or `q,k,v,o,gate,up,down` and PEFT's names.
///
/// # Errors
/// The name that is none.
pub fn roles_of_targets(targets: &str) -> Result<Vec<Role>, String> {
    if targets.trim() == "all-linear" {
        return Ok(Adapter::ROLES.to_vec());
    }
    let role = |name: &str| {
        module_role(name.trim()).ok_or_else(|| {
            format!("target `{name}`: write all-linear, or some of q,k,v,o,gate,up,down with commas between")
        })
    };
    let named = targets.split(',').map(role).collect::<Result<Vec<Role>, String>>()?;
    Ok(Adapter::ROLES.into_iter().filter(|role| named.contains(role)).collect())
}
