//! Attention in standard operations.
//!
//! Query heads that share a key head lie one after the other as more queries of it, so nothing is expanded: a product
//! of `[batch, n_kv_heads, group * tokens, d_head]` with the keys of each key head.

use slmc_formats::onnx::ElementType;

use super::{
    decoder::{Builder, COS, IDS, MASK, POSITIONS, SIN, past, present},
    graph::Attribute,
};
use crate::error::WriteError;

/// Added to the scores of keys that must not be seen; finite, so that a row without any key gives no NaN.
const UNSEEN: f32 = -65504.0;

/// Values that every block's attention takes. For GroupQueryAttention: last keys, total. Here: the mask, cosines, sines.
#[derive(Clone, Debug, Default)]
pub(super) struct Masks {
    pub first: String,
    pub second: String,
    pub third: String,
}

impl Builder<'_> {
    /// The additive mask `[batch, 1, group * tokens, total]`, and cosines and sines `[batch, 1, tokens, d_head / 2]`.
    pub fn plain_masks(&mut self) -> Result<Masks, WriteError> {
        let group = self.spec.n_heads / self.spec.n_kv_heads;
        let format = self.plan.activations;
        let (seen, unseen) = (self.graph.number(0.0, format)?, self.graph.number(UNSEEN, format)?);
        let (zero, one) = (self.graph.int(0)?, self.graph.int(1)?);
        let (axis_1, axes_12) = (self.graph.ints(&[1])?, self.graph.ints(&[1, 2])?);
        let graph = &mut self.graph;
        let first = [("axis", Attribute::Int(0))];
        let shape = graph.op("Shape", &[MASK], &[], "shape of the mask");
        let total = graph.op("Gather", &[&shape, &one], &first, "total");
        let shape = graph.op("Shape", &[IDS], &[], "shape of the ids");
        let tokens = graph.op("Gather", &[&shape, &one], &first, "tokens");
        let before = graph.op("Sub", &[&total, &tokens], &[], "tokens before");
        let keys = graph.op("Range", &[&zero, &total, &one], &[], "places of keys");
        let queries = graph.op("Range", &[&before, &total, &one], &[], "places of queries");
        let queries = graph.op("Unsqueeze", &[&queries, &axis_1], &[], "places of queries apart");
        let causal = graph.op("LessOrEqual", &[&keys, &queries], &[], "keys before queries");
        let there = graph.cast(MASK, ElementType::Bool, "keys that are there");
        let there = graph.op("Unsqueeze", &[&there, &axes_12], &[], "keys that are there apart");
        let visible = graph.op("And", &[&causal, &there], &[], "visible keys");
        let mask = graph.op("Where", &[&visible, &seen, &unseen], &[], "mask of a head");
        let copies = vec![mask.as_str(); group];
        let mask = graph.op("Concat", &copies, &[("axis", Attribute::Int(2))], "mask");
        let mut table = |name: &str| {
            let rows = graph.op("Gather", &[name, POSITIONS], &first, &format!("{name} of tokens"));
            graph.op("Unsqueeze", &[&rows, &axis_1], &[], &format!("{name} of heads"))
        };
        Ok(Masks { first: mask, second: table(COS), third: table(SIN) })
    }

    /// One block's attention without its projections: `[batch, tokens, n_heads * d_head]`.
    pub fn plain_attention(
        &mut self,
        block: usize,
        query: &str,
        keys: &str,
        values: &str,
    ) -> Result<String, WriteError> {
        let (n_heads, n_kv, d_head) =
            (self.spec.n_heads as i64, self.spec.n_kv_heads as i64, self.spec.d_head as i64);
        let name = |what: &str| format!("block {block} {what}");
        let query = self.heads(query, n_heads, &name("query heads"))?;
        let query = self.rotated(&query, &name("rotated query"));
        let keys = self.heads(keys, n_kv, &name("key heads"))?;
        let keys = self.rotated(&keys, &name("rotated key"));
        let values = self.heads(values, n_kv, &name("value heads"))?;
        let scale = self.graph.number((d_head as f32).sqrt().recip(), self.plan.activations)?;
        let mask = self.masks.first.clone();
        let graph = &mut self.graph;
        let along = [("axis", Attribute::Int(2))];
        let keys = graph.op("Concat", &[&past(block, "key"), &keys], &along, &present(block, "key"));
        let values = graph.op("Concat", &[&past(block, "value"), &values], &along, &present(block, "value"));
        let query = graph.op("Mul", &[&query, &scale], &[], &name("scaled query"));
        let query = graph.reshape(&query, &[0, n_kv, -1, d_head], &name("query by key heads"))?;
        let keys = graph.transpose(&keys, &[0, 1, 3, 2], &name("keys by columns"));
        let scores = graph.op("MatMul", &[&query, &keys], &[], &name("scores"));
        let scores = graph.op("Add", &[&scores, &mask], &[], &name("visible scores"));
        let shares = graph.op("Softmax", &[&scores], &[("axis", Attribute::Int(-1))], &name("shares"));
        let mixed = graph.op("MatMul", &[&shares, &values], &[], &name("mixed"));
        let mixed = graph.reshape(&mixed, &[0, n_heads, -1, d_head], &name("mixed heads"))?;
        let mixed = graph.transpose(&mixed, &[0, 2, 1, 3], &name("mixed tokens"));
        graph.reshape(&mixed, &[0, 0, n_heads * d_head], &name("attended"))
    }

    /// `[batch, tokens, n * d_head]` to `[batch, n, tokens, d_head]`.
    fn heads(&mut self, x: &str, n: i64, result: &str) -> Result<String, WriteError> {
        let d_head = self.spec.d_head as i64;
        let apart = self.graph.reshape(x, &[0, 0, n, d_head], &format!("{result} apart"))?;
        Ok(self.graph.transpose(&apart, &[0, 2, 1, 3], result))
    }

    /// Rotary embedding of two halves a head (arXiv:2104.09864).
    fn rotated(&mut self, x: &str, result: &str) -> String {
        let (cos, sin) = (self.masks.second.clone(), self.masks.third.clone());
        let name = |what: &str| format!("{result} {what}");
        let (a, b) = (name("first half"), name("second half"));
        let graph = &mut self.graph;
        graph.split(x, &[&a, &b]);
        let mut times = |x: &str, y: &str, what: &str| graph.op("Mul", &[x, y], &[], &name(what));
        let (a_cos, b_sin) = (times(&a, &cos, "a cos"), times(&b, &sin, "b sin"));
        let (b_cos, a_sin) = (times(&b, &cos, "b cos"), times(&a, &sin, "a sin"));
        let left = graph.op("Sub", &[&a_cos, &b_sin], &[], &name("turned first half"));
        let right = graph.op("Add", &[&b_cos, &a_sin], &[], &name("turned second half"));
        graph.op("Concat", &[&left, &right], &[("axis", Attribute::Int(-1))], result)
    }
}
