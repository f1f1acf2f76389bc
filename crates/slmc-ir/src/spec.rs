//! One decoder, described by data: a model family is a set of these facts, never a copy of the model.

use serde::{Deserialize, Serialize};

use crate::{Role, TensorKey};

/// Limits on what a header may claim; far above any small language model.
const MAX_DIMENSION: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 12;

/// Whose conventions the files follow. Decides names and defaults at the edge, nothing inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2 and 3, SmolLM2, and whatever calls itself so.
    Llama,
    /// Mistral and Mistral NeMo: Llama with a head size of its own.
    Mistral,
    /// Qwen 2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen 3: a norm on each query and key head.
    Qwen3,
}

/// The MLP's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`: SwiGLU with a gate (Shazeer 2020, arXiv:2002.05202).
    Silu,
}

/// How rotary frequencies are stretched for contexts longer than the model was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RopeScaling {
    /// Frequencies as in RoFormer (arXiv:2104.09864, section 3.4.3).
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// How many times longer the context gets.
        factor: f64,
    },
    /// Llama 3.1's smoothed bands.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Below this many turns over the original context a frequency is low.
        low_freq_factor: f64,
        /// Above this many turns a frequency is kept.
        high_freq_factor: f64,
        /// Context the frequencies were made for.
        original_context_len: usize,
    },
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// Attention's output.
    pub attn_output: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

impl Biases {
    /// Whether the role's projection adds a bias.
    pub const fn has(self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value => self.qkv,
            Role::AttnOutput => self.attn_output,
            Role::Gate | Role::Up | Role::Down => self.mlp,
            _ => false,
        }
    }
}

/// The shape and the choices of a Llama-type decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Whose conventions the files follow.
    pub family: Family,
    /// Rows of the embedding (padding rows included).
    pub vocab_size: usize,
    /// Longest context the model was made for, in tokens.
    pub context_len: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads` (GQA, arXiv:2305.13245).
    pub n_kv_heads: usize,
    /// Size of a head; not always `d_model / n_heads`.
    pub d_head: usize,
    /// Channels between gate/up and down.
    pub d_ff: usize,
    /// Added to the mean square in RMSNorm (arXiv:1910.07467).
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Which projections add a bias.
    pub biases: Biases,
    /// Whether each query and key head is normed before the rotation.
    pub qk_norm: bool,
    /// Whether the head reuses the embedding.
    pub tied_head: bool,
}

/// A spec that describes no possible model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {why}")]
pub struct SpecError {
    /// The field at fault.
    pub field: &'static str,
    /// What it says.
    pub value: String,
    /// What it should be.
    pub why: &'static str,
}

impl ModelSpec {
    /// Of each channel that attention gives, the channel of the values that it is a mixture of: query heads share value heads.
    pub fn value_channels(&self) -> Vec<usize> {
        let group = (self.n_heads / self.n_kv_heads.max(1)).max(1);
        let value = |c: usize| c / self.d_head / group * self.d_head + c % self.d_head;
        (0..self.n_heads * self.d_head).map(value).collect()
    }

    /// Proves that the fields fit together and stay inside the limits; call it on whatever came from a file.
    pub fn validate(&self) -> Result<(), SpecError> {
        let bad = |field, value: String, why| Err(SpecError { field, value, why });
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("context_len", self.context_len),
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("d_head", self.d_head),
            ("d_ff", self.d_ff),
        ];
        for (field, value) in sizes {
            if value == 0 || value > MAX_DIMENSION {
                return bad(field, value.to_string(), "must be between 1 and 2^24");
            }
        }
        if self.n_layers == 0 || self.n_layers > MAX_LAYERS {
            return bad("n_layers", self.n_layers.to_string(), "must be between 1 and 4096");
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return bad("n_kv_heads", self.n_kv_heads.to_string(), "must divide n_heads");
        }
        if !self.d_head.is_multiple_of(2) {
            return bad("d_head", self.d_head.to_string(), "must be even: rotary pairs need it");
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return bad("norm_eps", self.norm_eps.to_string(), "must be a finite number, 0 or more");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return bad("rope_theta", self.rope_theta.to_string(), "must be a finite number above 0");
        }
        self.validate_rope_scaling()
    }

    fn validate_rope_scaling(&self) -> Result<(), SpecError> {
        let positive = |field, value: f64| {
            let why = "must be a finite number above 0";
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(SpecError { field, value: value.to_string(), why })
            }
        };
        match self.rope_scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("rope_scaling.factor", factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.low_freq_factor", low_freq_factor)?;
                positive("rope_scaling.high_freq_factor", high_freq_factor - low_freq_factor)?;
                positive("rope_scaling.original_context_len", original_context_len as f64)
            }
        }
    }

    /// Number of weights, biases and gains of the whole model (a tied head counts once).
    pub fn n_parameters(&self) -> u64 {
        let count = |key: TensorKey| key.shape(self).iter().map(|&d| d as u64).product::<u64>();
        TensorKey::all(self).into_iter().map(count).sum()
    }

    /// Rotary angular frequencies, `[d_head / 2]`, in radians a position, scaling included.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let n_pairs = self.d_head / 2;
        let base = |i: usize| self.rope_theta.powf(-(2.0 * i as f64) / self.d_head as f64);
        (0..n_pairs).map(|i| base(i) / self.rope_divisor(base(i))).collect()
    }

    /// What Llama-3-type scaling divides a frequency by (transformers `_compute_llama3_parameters`).
    fn rope_divisor(&self, frequency: f64) -> f64 {
        match self.rope_scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor } => factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
                let turns = original_context_len as f64 * frequency / std::f64::consts::TAU;
                if turns > high_freq_factor {
                    1.0
                } else if turns < low_freq_factor {
                    factor
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            }
        }
    }
}
