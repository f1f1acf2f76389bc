//! Attention by onnxruntime's operators: RotaryEmbedding and GroupQueryAttention.

use slmc_formats::onnx::ElementType;
use slmc_ir::{Role, TensorKey};

use super::{
    decoder::{Builder, COS, MASK, POSITIONS, SIN, past, present},
    graph::Attribute,
    plain_attention::Masks,
};
use crate::error::WriteError;

impl Builder<'_> {
    /// What the operator wants to know of the mask: the last key of each sequence, and the longest one.
    pub fn lengths(&mut self) -> Result<Masks, WriteError> {
        let (one, axis, at) = (self.graph.int(1)?, self.graph.ints(&[1])?, self.graph.int(1)?);
        let graph = &mut self.graph;
        let drop = ("keepdims", Attribute::Int(0));
        let lengths = graph.op("ReduceSum", &[MASK, &axis], &[drop], "lengths");
        let last = graph.op("Sub", &[&lengths, &one], &[], "last keys");
        let last = graph.cast(&last, ElementType::I32, "last keys as i32");
        let shape = graph.op("Shape", &[MASK], &[], "shape of the mask");
        let total = graph.op("Gather", &[&shape, &at], &[("axis", Attribute::Int(0))], "total");
        let total = graph.cast(&total, ElementType::I32, "total as i32");
        Ok(Masks { first: last, second: total, third: String::new() })
    }

    /// One block's attention, projections included.
    pub fn attention(&mut self, block: usize, x: &str) -> Result<String, WriteError> {
        let key = |role| TensorKey::block(block, role);
        let mut query = self.linear(key(Role::Query), x)?;
        let mut keys = self.linear(key(Role::Key), x)?;
        let values = self.linear(key(Role::Value), x)?;
        if self.spec.qk_norm {
            query = self.head_norm(key(Role::QueryNorm), &query, self.spec.n_heads)?;
            keys = self.head_norm(key(Role::KeyNorm), &keys, self.spec.n_kv_heads)?;
        }
        let attended = if self.options.plain {
            self.plain_attention(block, &query, &keys, &values)?
        } else {
            self.group_query_attention(block, &query, &keys, &values)
        };
        self.linear(key(Role::AttnOutput), &attended)
    }

    fn group_query_attention(&mut self, block: usize, query: &str, keys: &str, values: &str) -> String {
        let (n_heads, n_kv_heads) = (self.spec.n_heads as i64, self.spec.n_kv_heads as i64);
        let graph = &mut self.graph;
        let mut rotate = |x: &str, what: &str| {
            let result = format!("block {block} rotated {what}");
            graph.contrib("RotaryEmbedding", &[x, POSITIONS, COS, SIN], &[], &[&result]);
            result
        };
        let (query, keys) = (rotate(query, "query"), rotate(keys, "key"));
        let result = format!("block {block} attended");
        let (past_keys, past_values) = (past(block, "key"), past(block, "value"));
        let Masks { first: last, second: total, .. } = &self.masks;
        let inputs = [query.as_str(), &keys, values, &past_keys, &past_values, last, total];
        let attributes = [
            ("num_heads", Attribute::Int(n_heads)),
            ("kv_num_heads", Attribute::Int(n_kv_heads)),
            ("scale", Attribute::Float((self.spec.d_head as f32).sqrt().recip())),
        ];
        let results = [result.as_str(), &present(block, "key"), &present(block, "value")];
        graph.contrib("GroupQueryAttention", &inputs, &attributes, &results);
        result
    }

    /// The norm of each head by itself.
    fn head_norm(&mut self, gain: TensorKey, x: &str, n_heads: usize) -> Result<String, WriteError> {
        let (n, d_head) = (n_heads as i64, self.spec.d_head as i64);
        let heads = self.graph.reshape(x, &[0, 0, n, d_head], &format!("{gain} heads"))?;
        let vector = self.vector(gain)?;
        let normed = self.rms_norm(&heads, &vector, &format!("{gain} normed heads"))?;
        self.graph.reshape(&normed, &[0, 0, n * d_head], &format!("{gain} result"))
    }
}
