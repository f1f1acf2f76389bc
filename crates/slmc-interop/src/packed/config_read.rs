//! `quantization_config` to scheme. What may change the weights is understood or refused.

use serde_json::{Map, Value};

use super::{PackedLayout, PackedScheme};
use crate::{error::FieldError, hf::fields::Fields};

/// Reads the object `quantization_config`.
///
/// # Errors
/// When the method is not one of ours, a field is missing or impossible, or something is asked for that would change
/// the weights in a way that slmc does not know.
pub(crate) fn read_scheme(config: &Map<String, Value>) -> Result<PackedScheme, FieldError> {
    let fields = Fields::inside("quantization_config", config);
    let known = "gptq, awq and compressed-tensors are read; start from the float model";
    match fields.text("quant_method")? {
        Some("gptq") => read_gptq(fields),
        Some("awq") => read_awq(fields),
        Some("compressed-tensors") => read_compressed(fields),
        None => Err(FieldError::Missing { field: "quantization_config.quant_method".to_owned() }),
        Some(_) => Err(fields.unsupported("quant_method", known)),
    }
}

fn read_gptq(fields: Fields<'_>) -> Result<PackedScheme, FieldError> {
    let layout = match fields.text("checkpoint_format")? {
        None | Some("gptq") => PackedLayout::Gptq,
        Some("gptq_v2") => PackedLayout::GptqV2,
        Some(_) => return Err(fields.unsupported("checkpoint_format", "gptq and gptq_v2 are read")),
    };
    if !matches!(fields.text("pack_dtype")?, None | Some("int32")) {
        return Err(fields.unsupported("pack_dtype", "only int32 is read"));
    }
    if fields.flag("lm_head")? == Some(true) {
        return Err(fields.unsupported("lm_head", "a packed head is not read"));
    }
    if let Some(rules) = fields.object("dynamic")?
        && let Some(rule) = rules.names().find(|rule| !rule.starts_with("-:"))
    {
        return Err(rules.unsupported(rule, "one scheme must hold for all matrices; only `-:` is read"));
    }
    Ok(PackedScheme {
        layout,
        bits: read_bits(fields, "bits")?,
        group_size: read_group_size(fields)?,
        symmetric: fields.flag("sym")?.unwrap_or(true),
        column_order: fields.flag("desc_act")?.unwrap_or(false),
    })
}

fn read_awq(fields: Fields<'_>) -> Result<PackedScheme, FieldError> {
    match fields.text("version")? {
        None => {}
        Some(version) if version.eq_ignore_ascii_case("gemm") => {}
        Some(_) => return Err(fields.unsupported("version", "only gemm is read")),
    }
    if fields.flag("zero_point")? == Some(false) {
        return Err(fields.unsupported("zero_point", "only files with zero points are read"));
    }
    Ok(PackedScheme {
        layout: PackedLayout::Awq,
        bits: read_bits(fields, if fields.get("bits").is_some() { "bits" } else { "w_bit" })?,
        group_size: read_group_size(fields)?,
        symmetric: false,
        column_order: false,
    })
}

fn read_compressed(fields: Fields<'_>) -> Result<PackedScheme, FieldError> {
    if fields.text("format")? != Some("pack-quantized") {
        return Err(fields.unsupported("format", "only pack-quantized is read"));
    }
    if !matches!(fields.text("quantization_status")?, None | Some("compressed")) {
        return Err(fields.unsupported("quantization_status", "only compressed is read"));
    }
    if fields.get("kv_cache_scheme").is_some() {
        return Err(fields.unsupported("kv_cache_scheme", "a quantized cache is not known"));
    }
    if let Some(sparsity) = fields.object("sparsity_config")?
        && !matches!(sparsity.text("format")?, None | Some("dense"))
    {
        return Err(sparsity.unsupported("format", "sparse files are not read"));
    }
    let groups = fields.object("config_groups")?;
    let groups = groups
        .ok_or_else(|| FieldError::Missing { field: "quantization_config.config_groups".to_owned() })?;
    let mut found = None;
    for name in groups.names() {
        let Some(group) = groups.object(name)? else { continue };
        for field in ["input_activations", "output_activations"] {
            if group.get(field).is_some() {
                return Err(group.unsupported(field, "quantized activations are not known"));
            }
        }
        let Some(weights) = group.object("weights")? else { continue };
        let scheme = read_compressed_weights(weights)?;
        if found.is_some_and(|found| found != scheme) {
            return Err(fields.unsupported("config_groups", "one scheme must hold for all matrices"));
        }
        found = Some(scheme);
    }
    found.ok_or_else(|| fields.unsupported("config_groups", "no group has `weights`"))
}

fn read_compressed_weights(weights: Fields<'_>) -> Result<PackedScheme, FieldError> {
    if !matches!(weights.text("type")?, None | Some("int")) {
        return Err(weights.unsupported("type", "only int is read"));
    }
    if weights.flag("dynamic")? == Some(true) {
        return Err(weights.unsupported("dynamic", "weights cannot be quantized while running"));
    }
    if let Some(order) = weights.get("actorder")
        && !matches!(order.as_str(), Some("weight" | "static"))
        && order != &Value::Bool(false)
    {
        return Err(weights.unsupported("actorder", "columns must lie in their groups' order"));
    }
    let group_size = match weights.text("strategy")? {
        Some("group") => read_group_size(weights)?,
        Some("channel") => None,
        _ => return Err(weights.unsupported("strategy", "group and channel are read")),
    };
    Ok(PackedScheme {
        layout: PackedLayout::CompressedTensors,
        bits: read_bits(weights, "num_bits")?,
        group_size,
        symmetric: weights.flag("symmetric")?.unwrap_or(true),
        column_order: false,
    })
}

/// Which of them a layout holds is its own matter.
fn read_bits(fields: Fields<'_>, field: &str) -> Result<u8, FieldError> {
    match fields.required_size(field)? {
        bits @ 2..=8 => Ok(bits as u8),
        _ => Err(fields.unsupported(field, "levels have 2 to 8 bits")),
    }
}

/// `None` for −1, a whole row.
fn read_group_size(fields: Fields<'_>) -> Result<Option<usize>, FieldError> {
    let field = if fields.get("group_size").is_some() { "group_size" } else { "q_group_size" };
    match fields.get(field) {
        Some(value) if value.as_i64() == Some(-1) => Ok(None),
        _ => match fields.required_size(field)? {
            0 => Err(fields.unsupported(field, "a group has columns; -1 is a whole row")),
            n => Ok(Some(n)),
        },
    }
}
