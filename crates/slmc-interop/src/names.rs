//! The names that tensors have in Hugging Face folders and in GGUF files.

use slmc_ir::{Part, Role, TensorKey};

/// Role, name in a Hugging Face folder, name in GGUF. Inside a block without the block's prefix, and
/// everywhere without `.weight` or `.bias`.
const NAMES: [(Role, &str, &str); 14] = [
    (Role::Embedding, "model.embed_tokens", "token_embd"),
    (Role::FinalNorm, "model.norm", "output_norm"),
    (Role::Head, "lm_head", "output"),
    (Role::AttnNorm, "input_layernorm", "attn_norm"),
    (Role::Query, "self_attn.q_proj", "attn_q"),
    (Role::Key, "self_attn.k_proj", "attn_k"),
    (Role::Value, "self_attn.v_proj", "attn_v"),
    (Role::QueryNorm, "self_attn.q_norm", "attn_q_norm"),
    (Role::KeyNorm, "self_attn.k_norm", "attn_k_norm"),
    (Role::AttnOutput, "self_attn.o_proj", "attn_output"),
    (Role::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    (Role::Gate, "mlp.gate_proj", "ffn_gate"),
    (Role::Up, "mlp.up_proj", "ffn_up"),
    (Role::Down, "mlp.down_proj", "ffn_down"),
];

/// What every name but the head's begins with in a Hugging Face folder of a model with a head.
const HF_PREFIX: &str = "model.";
/// Buffers that old checkpoints carry and that follow from the configuration.
const HF_BUFFERS: [&str; 2] = ["rotary_emb.inv_freq", "rotary_emb.cos_cached"];

fn suffix(part: Part) -> &'static str {
    match part {
        Part::Weight => "weight",
        Part::Bias => "bias",
    }
}

/// The tensor's name in a Hugging Face folder.
pub(crate) fn hf_name(key: TensorKey) -> String {
    let (_, name, _) = row(key.role);
    let suffix = suffix(key.part);
    match key.block {
        Some(index) => format!("{HF_PREFIX}layers.{index}.{name}.{suffix}"),
        None => format!("{name}.{suffix}"),
    }
}

/// The tensor's name in a GGUF.
pub(crate) fn gguf_name(key: TensorKey) -> String {
    let (_, _, name) = row(key.role);
    let suffix = suffix(key.part);
    match key.block {
        Some(index) => format!("blk.{index}.{name}.{suffix}"),
        None => format!("{name}.{suffix}"),
    }
}

/// The tensor of a name in a Hugging Face folder; the prefix `model.` may be missing, as in checkpoints saved
/// without the head.
pub(crate) fn hf_key(name: &str) -> Option<TensorKey> {
    let bare = name.strip_prefix(HF_PREFIX).unwrap_or(name);
    let key = match bare.strip_prefix("layers.") {
        Some(rest) => in_block(rest, |row| row.1)?,
        None => outside_blocks(bare, |row| row.1.strip_prefix(HF_PREFIX).unwrap_or(row.1))?,
    };
    // One spelling only: `layers.01` and `model.lm_head` name nothing.
    let canonical = hf_name(key);
    (canonical == name || canonical.strip_prefix(HF_PREFIX) == Some(name)).then_some(key)
}

/// The tensor of a name in a GGUF.
pub(crate) fn gguf_key(name: &str) -> Option<TensorKey> {
    let key = match name.strip_prefix("blk.") {
        Some(rest) => in_block(rest, |row| row.2)?,
        None => outside_blocks(name, |row| row.2)?,
    };
    (gguf_name(key) == name).then_some(key)
}

/// The last part of a projection's name in a Hugging Face folder, as PEFT's targets name it.
pub(crate) fn hf_module(role: Role) -> &'static str {
    let (_, name, _) = row(role);
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// The projection of such a name; `q` for what ends in `_proj`.
pub(crate) fn module_role(name: &str) -> Option<Role> {
    let is_named = |role: &Role| {
        let module = hf_module(*role);
        module == name || module.strip_suffix("_proj") == Some(name)
    };
    slmc_ir::Adapter::ROLES.into_iter().find(is_named)
}

/// Whether the tensor is a buffer without information of its own.
pub(crate) fn is_hf_buffer(name: &str) -> bool {
    HF_BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

type Row = (Role, &'static str, &'static str);

fn row(role: Role) -> Row {
    let row = NAMES.into_iter().find(|row| row.0 == role);
    row.expect("every role has a row: the test below goes through all of them")
}

fn in_block(rest: &str, column: impl Fn(&Row) -> &'static str) -> Option<TensorKey> {
    let (index, rest) = rest.split_once('.')?;
    let key = find(rest, column, true)?;
    Some(TensorKey { block: Some(index.parse().ok()?), ..key })
}

fn outside_blocks(name: &str, column: impl Fn(&Row) -> &'static str) -> Option<TensorKey> {
    find(name, column, false)
}

fn find(name: &str, column: impl Fn(&Row) -> &'static str, in_block: bool) -> Option<TensorKey> {
    let (name, suffix) = name.rsplit_once('.')?;
    let part = match suffix {
        "weight" => Part::Weight,
        "bias" => Part::Bias,
        _ => return None,
    };
    let row = NAMES.iter().find(|row| row.0.in_block() == in_block && column(row) == name)?;
    Some(TensorKey { block: None, role: row.0, part })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_key() -> Vec<TensorKey> {
        let outside = [Role::Embedding, Role::FinalNorm, Role::Head].map(TensorKey::model);
        let inside = Role::BLOCK.into_iter().map(|role| TensorKey::block(12, role));
        outside.into_iter().chain(inside).flat_map(|key| [key, key.bias()]).collect()
    }

    #[test]
    fn names_and_keys_are_one_to_one() {
        for key in every_key() {
            assert_eq!(hf_key(&hf_name(key)), Some(key), "{key}");
            assert_eq!(gguf_key(&gguf_name(key)), Some(key), "{key}");
        }
        let down = TensorKey::block(3, Role::Down);
        assert_eq!(hf_name(down), "model.layers.3.mlp.down_proj.weight");
        assert_eq!(gguf_name(down), "blk.3.ffn_down.weight");
    }

    #[test]
    fn the_prefix_may_be_missing() {
        let query = TensorKey::block(0, Role::Query);
        assert_eq!(hf_key("layers.0.self_attn.q_proj.bias"), Some(query.bias()));
        assert_eq!(hf_key("embed_tokens.weight"), Some(TensorKey::model(Role::Embedding)));
        assert_eq!(hf_key("norm.weight"), Some(TensorKey::model(Role::FinalNorm)));
    }

    #[test]
    fn other_spellings_name_nothing() {
        for name in [
            "model.layers.01.mlp.down_proj.weight",
            "model.layers.+1.mlp.down_proj.weight",
            "model.model.norm.weight",
            "model.lm_head.weight",
            "model.layers.1.mlp.down_proj.scale",
            "model.layers.1.norm.weight",
            "model.layers.99999999999999999999.mlp.down_proj.weight",
            "",
        ] {
            assert_eq!(hf_key(name), None, "{name}");
        }
        assert_eq!(gguf_key("blk.00.attn_q.weight"), None);
        assert_eq!(gguf_key("rope_freqs.weight"), None);
    }
}
