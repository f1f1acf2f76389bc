//! Causal attention, some queries at a time: those of a chunk meet only the keys up to its end.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData, activation};
use slmc_ir::ModelSpec;

/// Chunks that a sequence's queries are cut into: of all scores, `(1 + 1/n) / 2` are computed instead of every one.
const N_CHUNKS: usize = 4;
/// Shorter chunks are not worth their own products.
const MIN_QUERIES: usize = 64;

/// What a masked score becomes: far below any score, and finite, so that no device makes NaN of it.
const MASKED: f32 = -1e30;

/// The chunks of a sequence, and the mask of each: the same for every block.
pub(super) struct Chunks {
    ranges: Vec<Range<usize>>,
    masks: Vec<Tensor<4>>,
    n_kv_heads: usize,
    /// Query heads for each key head.
    group: usize,
}

/// What the way back needs, each `[batch, heads, seq, d_head]`.
pub(super) struct Kept {
    pub query: Tensor<4>,
    pub key: Tensor<4>,
    pub value: Tensor<4>,
    pub mix: Tensor<4>,
    /// For each chunk, `[batch, n_kv_heads, group * queries, keys]`.
    probabilities: Vec<Tensor<4>>,
}

impl Chunks {
    pub fn new(spec: &ModelSpec, seq: usize, device: &Device) -> Self {
        let group = spec.n_heads / spec.n_kv_heads;
        let n = seq.div_ceil(N_CHUNKS).max(MIN_QUERIES);
        let ranges: Vec<Range<usize>> = (0..seq).step_by(n).map(|start| start..seq.min(start + n)).collect();
        let masks = ranges.iter().map(|range| mask(range, group, device)).collect();
        Self { ranges, masks, n_kv_heads: spec.n_kv_heads, group }
    }

    /// A chunk of queries (or of what belongs to them), the heads that share a key side by side.
    fn queries(&self, all: &Tensor<4>, range: &Range<usize>) -> Tensor<4> {
        let [batch, _, _, width] = all.dims();
        let chunk = all.clone().narrow(2, range.start, range.len());
        chunk.reshape([batch, self.n_kv_heads, self.group * range.len(), width])
    }

    /// The same back, `[batch, n_heads, queries, width]`.
    fn heads(&self, chunk: Tensor<4>, range: &Range<usize>) -> Tensor<4> {
        let [batch, _, _, width] = chunk.dims();
        chunk.reshape([batch, self.n_kv_heads * self.group, range.len(), width])
    }

    /// The mix of values; queries are scaled already.
    pub fn attend(&self, query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Kept {
        let mut probabilities = Vec::with_capacity(self.ranges.len());
        let mut mixes = Vec::with_capacity(self.ranges.len());
        for (range, mask) in self.ranges.iter().zip(&self.masks) {
            let keys = key.clone().narrow(2, 0, range.end);
            let scores = self.queries(&query, range).matmul(keys.transpose()) + mask.clone();
            let chunk = activation::softmax(scores, 3);
            let mix = chunk.clone().matmul(value.clone().narrow(2, 0, range.end));
            mixes.push(self.heads(mix, range));
            probabilities.push(chunk);
        }
        Kept { query, key, value, mix: Tensor::cat(mixes, 2), probabilities }
    }

    /// Gradients of query, key and value from the mix's (FlashAttention, arXiv:2205.14135, appendix B.2).
    pub fn backward(&self, kept: Kept, d_mix: Tensor<4>) -> [Tensor<4>; 3] {
        let Kept { query, key, value, mix, mut probabilities } = kept;
        let delta = (d_mix.clone() * mix).sum_dim(3);
        let mut d_query = Vec::with_capacity(self.ranges.len());
        let (mut d_key, mut d_value) = (None, None);
        // Last to first: the last chunk meets every key, the others a beginning of them.
        for range in self.ranges.iter().rev() {
            let Some(chunk) = probabilities.pop() else { break };
            let d_mix = self.queries(&d_mix, range);
            d_value = Some(add_beginning(d_value, chunk.clone().transpose().matmul(d_mix.clone())));
            let d_chunk = d_mix.matmul(value.clone().narrow(2, 0, range.end).transpose());
            let d_scores = (d_chunk - self.queries(&delta, range)) * chunk;
            let of_query = d_scores.clone().matmul(key.clone().narrow(2, 0, range.end));
            d_query.push(self.heads(of_query, range));
            d_key = Some(add_beginning(d_key, d_scores.transpose().matmul(self.queries(&query, range))));
        }
        d_query.reverse();
        let whole = "a sequence has at least one chunk";
        [Tensor::cat(d_query, 2), d_key.expect(whole), d_value.expect(whole)]
    }
}

/// Zero where a query may look, `[1, 1, group * queries, keys]`.
fn mask(range: &Range<usize>, group: usize, device: &Device) -> Tensor<4> {
    let row = |query: usize| (0..range.end).map(move |key| if key > query { MASKED } else { 0.0 });
    let values: Vec<f32> = (0..group).flat_map(|_| range.clone().flat_map(row)).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, group * range.len(), range.end]), device)
}

/// Adds the part to the total's first positions.
fn add_beginning(total: Option<Tensor<4>>, part: Tensor<4>) -> Tensor<4> {
    let Some(total) = total else { return part };
    let (n, seq) = (part.dims()[2], total.dims()[2]);
    let beginning = total.clone().narrow(2, 0, n) + part;
    Tensor::cat(vec![beginning, total.narrow(2, n, seq - n)], 2)
}
