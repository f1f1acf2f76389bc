//! What a block computes with: its sizes, its tensors in their slots, and what comes back for each.

use slmc_ir::ModelSpec;
use slmc_kernels::{AttentionShape, Products};

use super::projection::{AdapterGradient, FactorsRef, Numbers};

/// What goes into a block: the hidden states, four norms, and weight and bias of seven projections.
pub(crate) const N_INPUTS: usize = 19;
pub(crate) const HIDDEN: usize = 0;
pub(crate) const ATTN_NORM: usize = 1;
pub(crate) const QUERY_NORM: usize = 2;
pub(crate) const KEY_NORM: usize = 3;
pub(crate) const FFN_NORM: usize = 4;
/// The projections' weights; each one's bias comes next.
pub(crate) const QUERY: usize = 5;
pub(crate) const KEY: usize = 7;
pub(crate) const VALUE: usize = 9;
pub(crate) const ATTN_OUTPUT: usize = 11;
pub(crate) const GATE: usize = 13;
pub(crate) const UP: usize = 15;
pub(crate) const DOWN: usize = 17;

/// Projections of a block.
pub(crate) const N_PROJECTIONS: usize = 7;

/// What a block computes with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    /// The inputs' numbers; `None` where the model has no such tensor.
    pub numbers: [Option<Numbers<'a>>; N_INPUTS],
    /// The low-rank factors beside the projections, where there are any.
    pub adapters: [Option<FactorsRef<'a>>; N_PROJECTIONS],
    /// For each position of each sequence, where its document begins; `None` where sequences are one document.
    pub starts: Option<&'a [u32]>,
}

/// The inputs' gradients; `None` where none was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gradients {
    pub inputs: [Option<Vec<f32>>; N_INPUTS],
    /// Of the factors that there are.
    pub adapters: [Option<AdapterGradient>; N_PROJECTIONS],
}

/// Sizes of a block's pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub attention: AttentionShape,
    pub d_model: usize,
    pub d_ff: usize,
    pub eps: f32,
    pub products: Products,
}

impl Sizes {
    pub fn new(spec: &ModelSpec, batch: usize, seq: usize, products: Products) -> Self {
        let ModelSpec { n_heads, n_kv_heads, d_head, d_model, d_ff, norm_eps, .. } = *spec;
        Self {
            attention: AttentionShape { batch, n_heads, n_kv_heads, seq, d_head },
            d_model,
            d_ff,
            eps: norm_eps,
            products,
        }
    }

    pub fn n_tokens(&self) -> usize {
        self.attention.batch * self.attention.seq
    }

    pub fn heads(&self, n_heads: usize) -> [usize; 3] {
        [n_heads, self.attention.seq, self.attention.d_head]
    }

    pub fn d_query(&self) -> usize {
        self.attention.n_heads * self.attention.d_head
    }
}
