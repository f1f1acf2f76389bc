//! The forward pass, whole and in pieces.

use burn::tensor::{Int, Tensor};

use crate::{composed, decoder::Decoder};

/// What a block's projections were given, without a graph: the columns that calibration observes.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Input of query, key and value, `[batch, seq, d_model]`.
    pub attn_input: Tensor<3>,
    /// Input of attention's output projection, `[batch, seq, n_heads * d_head]`.
    pub attn_mix: Tensor<3>,
    /// Input of gate and up, `[batch, seq, d_model]`.
    pub ffn_input: Tensor<3>,
    /// Input of down, `[batch, seq, d_ff]`.
    pub ffn_product: Tensor<3>,
}

impl Decoder {
    /// The tokens' rows of the embedding: `[batch, seq]` to `[batch, seq, d_model]`.
    pub fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, seq] = tokens.dims();
        let rows = self.embedding.val().select(0, tokens.reshape([batch * seq]));
        rows.reshape([batch, seq, self.spec.d_model])
    }

    /// Block `index`: `[batch, seq, d_model]` to the same.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block(&self, index: usize, hidden: Tensor<3>) -> Tensor<3> {
        let rope = self.rope.table(&self.spec, hidden.dims()[1]);
        #[cfg(feature = "flex")]
        if let Some((out, _)) = crate::fused::block(&hidden, self, index, &rope, false) {
            return out;
        }
        composed::block(hidden, &self.blocks[index], &self.spec, &rope).0
    }

    /// Block `index`, and what its projections were given.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block_captured(&self, index: usize, hidden: Tensor<3>) -> (Tensor<3>, Captured) {
        let rope = self.rope.table(&self.spec, hidden.dims()[1]);
        #[cfg(feature = "flex")]
        if let Some((out, Some(captured))) = crate::fused::block(&hidden, self, index, &rope, true) {
            return (out, captured);
        }
        let (out, captured) = composed::block(hidden, &self.blocks[index], &self.spec, &rope);
        let captured = Captured {
            attn_input: captured.attn_input.without_autodiff(),
            attn_mix: captured.attn_mix.without_autodiff(),
            ffn_input: captured.ffn_input.without_autodiff(),
            ffn_product: captured.ffn_product.without_autodiff(),
        };
        (out, captured)
    }

    /// The norm after the last block.
    pub fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3> {
        #[cfg(feature = "flex")]
        if let Some(out) = crate::fused::rms_norm(&hidden, &self.final_norm.val(), self.spec.norm_eps) {
            return out;
        }
        composed::rms_norm(hidden, self.final_norm.val(), self.spec.norm_eps)
    }

    /// Embedding, blocks and final norm: `[batch, seq]` to `[batch, seq, d_model]`; logits are its product
    /// with the head.
    pub fn hidden(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let embedded = self.embed(tokens);
        let hidden = (0..self.blocks.len()).fold(embedded, |hidden, index| self.block(index, hidden));
        self.final_norm(hidden)
    }
}
