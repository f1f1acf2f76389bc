//! What a tensor does, and where: the only names that tensors have inside slmc.

use serde::{Deserialize, Serialize};

use crate::ModelSpec;

/// What a tensor does in the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Token embedding, `[vocab_size, d_model]`; also the head when it is tied.
    Embedding,
    /// Norm before attention, `[d_model]`.
    AttnNorm,
    /// Query projection, `[n_heads * d_head, d_model]`.
    Query,
    /// Key projection, `[n_kv_heads * d_head, d_model]`.
    Key,
    /// Value projection, `[n_kv_heads * d_head, d_model]`.
    Value,
    /// Output projection of attention, `[d_model, n_heads * d_head]`.
    AttnOutput,
    /// Norm of each query head, `[d_head]`.
    QueryNorm,
    /// Norm of each key head, `[d_head]`.
    KeyNorm,
    /// Norm before the MLP, `[d_model]`.
    FfnNorm,
    /// Gate projection of the MLP, `[d_ff, d_model]`.
    Gate,
    /// Up projection of the MLP, `[d_ff, d_model]`.
    Up,
    /// Down projection of the MLP, `[d_model, d_ff]`.
    Down,
    /// Norm after the last block, `[d_model]`.
    FinalNorm,
    /// Output head, `[vocab_size, d_model]`; absent when it is tied to the embedding.
    Head,
}

impl Role {
    /// Whether the tensor belongs to a block (and so its key names one).
    pub const fn in_block(self) -> bool {
        !matches!(self, Self::Embedding | Self::FinalNorm | Self::Head)
    }

    /// Whether the weight is a matrix (norms are vectors).
    pub const fn is_matrix(self) -> bool {
        !matches!(self, Self::AttnNorm | Self::QueryNorm | Self::KeyNorm | Self::FfnNorm | Self::FinalNorm)
    }

    /// Name in reports and messages: `query`, `down`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttnNorm => "attn_norm",
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::AttnOutput => "attn_output",
            Self::QueryNorm => "query_norm",
            Self::KeyNorm => "key_norm",
            Self::FfnNorm => "ffn_norm",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
            Self::FinalNorm => "final_norm",
            Self::Head => "head",
        }
    }

    /// The roles of one block, in the order in which they are computed.
    pub const BLOCK: [Self; 11] = [
        Self::AttnNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::AttnOutput,
        Self::FfnNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
}

/// Weight or bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The matrix, or a norm's gain.
    Weight,
    /// The vector added to a projection's result.
    Bias,
}

/// Names one tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorKey {
    /// The block's index from 0, or `None` outside the blocks.
    pub block: Option<usize>,
    /// What the tensor does.
    pub role: Role,
    /// Weight or bias.
    pub part: Part,
}

impl TensorKey {
    /// The weight of a role outside the blocks.
    pub const fn model(role: Role) -> Self {
        Self { block: None, role, part: Part::Weight }
    }

    /// The weight of a role in block `index`.
    pub const fn block(index: usize, role: Role) -> Self {
        Self { block: Some(index), role, part: Part::Weight }
    }

    /// The bias beside this weight.
    pub const fn bias(self) -> Self {
        Self { part: Part::Bias, ..self }
    }

    /// Every tensor that a model of this spec has, in the order of computation: the order of files too.
    pub fn all(spec: &ModelSpec) -> Vec<Self> {
        let mut keys = vec![Self::model(Role::Embedding)];
        for index in 0..spec.n_layers {
            for role in Role::BLOCK {
                if matches!(role, Role::QueryNorm | Role::KeyNorm) && !spec.qk_norm {
                    continue;
                }
                let key = Self::block(index, role);
                keys.push(key);
                if spec.biases.has(role) {
                    keys.push(key.bias());
                }
            }
        }
        keys.push(Self::model(Role::FinalNorm));
        if !spec.tied_head {
            keys.push(Self::model(Role::Head));
        }
        keys
    }

    /// The tensor's shape under a spec: `[rows, columns]` for matrices, `[n]` for norms and biases.
    pub fn shape(self, spec: &ModelSpec) -> Vec<usize> {
        let (d_q, d_kv) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
        let shape = match self.role {
            Role::Embedding | Role::Head => vec![spec.vocab_size, spec.d_model],
            Role::AttnNorm | Role::FfnNorm | Role::FinalNorm => vec![spec.d_model],
            Role::QueryNorm | Role::KeyNorm => vec![spec.d_head],
            Role::Query => vec![d_q, spec.d_model],
            Role::Key | Role::Value => vec![d_kv, spec.d_model],
            Role::AttnOutput => vec![spec.d_model, d_q],
            Role::Gate | Role::Up => vec![spec.d_ff, spec.d_model],
            Role::Down => vec![spec.d_model, spec.d_ff],
        };
        match self.part {
            Part::Weight => shape,
            Part::Bias => vec![shape[0]],
        }
    }
}

impl std::fmt::Display for TensorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(index) = self.block {
            write!(f, "block {index} ")?;
        }
        f.write_str(self.role.name())?;
        if self.part == Part::Bias {
            f.write_str(" bias")?;
        }
        Ok(())
    }
}
