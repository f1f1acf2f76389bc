//! The families of models that are read and written: one row each. A new family is a new row.

use slmc_ir::{Family, ModelSpec};

/// What the files of one family look like.
#[derive(Debug)]
pub(crate) struct FamilyRow {
    pub(crate) family: Family,
    /// `model_type` in `config.json`.
    pub(crate) model_type: &'static str,
    /// `architectures[0]` in `config.json`.
    pub(crate) class: &'static str,
    /// `general.architecture` in GGUF.
    pub(crate) gguf: &'static str,
    /// Whether GGUF holds the rows of query and key in pairs (`x0 y0 x1 y1 …`) and not in halves.
    pub(crate) gguf_rotary_pairs: bool,
    /// Whether llama.cpp takes factors of rotary frequencies (`rope_freqs.weight`) for the architecture.
    pub(crate) gguf_rope_factors: bool,
    /// Whether each query and key head is normed.
    pub(crate) qk_norm: bool,
    /// Who decides about biases in attention.
    pub(crate) attention_bias: AttentionBias,
    /// Whether `config.json` may ask for biases in the MLP (`mlp_bias`).
    pub(crate) mlp_bias: bool,
    /// Head size when `config.json` does not say; `None` is `hidden_size / num_attention_heads`.
    pub(crate) default_head_dim: Option<usize>,
    /// Whether `num_key_value_heads` may be absent and is `num_attention_heads` then.
    pub(crate) kv_heads_optional: bool,
    /// What `sliding_window` in `config.json` means.
    pub(crate) window: Window,
}

/// Who decides about biases in attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttentionBias {
    /// `attention_bias` in `config.json`, for query, key, value and output alike.
    Asked,
    /// Query, key and value have one, the output has none.
    QkvOnly,
    /// There are none.
    Never,
}

/// What `sliding_window` means to a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// The family has no such field.
    Unknown,
    /// In use unless null; this many tokens when the field is absent.
    OnByDefault(usize),
    /// In use only when `use_sliding_window` is true.
    WhenAsked,
}

/// Every family. The first row of a GGUF architecture is the one that a GGUF is taken for, unless it names
/// another ([`crate::gguf::FAMILY_KEY`]).
pub(crate) const FAMILIES: &[FamilyRow] = &[
    FamilyRow {
        family: Family::Llama,
        model_type: "llama",
        class: "LlamaForCausalLM",
        gguf: "llama",
        gguf_rotary_pairs: true,
        gguf_rope_factors: true,
        qk_norm: false,
        attention_bias: AttentionBias::Asked,
        mlp_bias: true,
        default_head_dim: None,
        kv_heads_optional: true,
        window: Window::Unknown,
    },
    FamilyRow {
        family: Family::Mistral,
        model_type: "mistral",
        class: "MistralForCausalLM",
        gguf: "llama",
        gguf_rotary_pairs: true,
        gguf_rope_factors: true,
        qk_norm: false,
        attention_bias: AttentionBias::Never,
        mlp_bias: false,
        default_head_dim: None,
        kv_heads_optional: false,
        window: Window::OnByDefault(4096),
    },
    FamilyRow {
        family: Family::Qwen2,
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        gguf: "qwen2",
        gguf_rotary_pairs: false,
        gguf_rope_factors: false,
        qk_norm: false,
        attention_bias: AttentionBias::QkvOnly,
        mlp_bias: false,
        default_head_dim: None,
        kv_heads_optional: false,
        window: Window::WhenAsked,
    },
    FamilyRow {
        family: Family::Qwen3,
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        gguf: "qwen3",
        gguf_rotary_pairs: false,
        gguf_rope_factors: false,
        qk_norm: true,
        attention_bias: AttentionBias::Asked,
        mlp_bias: false,
        default_head_dim: Some(128),
        kv_heads_optional: false,
        window: Window::WhenAsked,
    },
];

impl FamilyRow {
    /// The row of a family.
    pub(crate) fn of(family: Family) -> &'static Self {
        let row = FAMILIES.iter().find(|row| row.family == family);
        row.expect("every family has a row: the test below goes through all of them")
    }

    /// Whether the family's files can say what the spec says; if not, which field they cannot.
    pub(crate) fn cannot_say(&self, spec: &ModelSpec) -> Option<&'static str> {
        let biases = spec.biases;
        let attention = match self.attention_bias {
            AttentionBias::Asked => biases.qkv == biases.attn_output,
            AttentionBias::QkvOnly => biases.qkv && !biases.attn_output,
            AttentionBias::Never => !biases.qkv && !biases.attn_output,
        };
        if !attention {
            return Some("biases of attention");
        }
        if biases.mlp && !self.mlp_bias {
            return Some("biases of the MLP");
        }
        (spec.qk_norm != self.qk_norm).then_some("norms of query and key heads")
    }
}

/// The names of a column of the table, for messages: `llama, mistral`.
pub(crate) fn supported(name: impl Fn(&FamilyRow) -> &'static str) -> String {
    let mut names: Vec<&str> = FAMILIES.iter().map(name).collect();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_a_row() {
        for family in [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3] {
            assert_eq!(FamilyRow::of(family).family, family);
        }
        assert_eq!(supported(|row| row.gguf), "llama, qwen2, qwen3");
    }
}
