//! The decoder's operations from Burn's own: what runs on devices without fused ones, and what the fused ones
//! are tested against.

use burn::tensor::{Device, Tensor, TensorData, activation};
use slmc_ir::ModelSpec;

use crate::{
    decoder::{Block, Projection},
    forward::Captured,
    rope::RopeTable,
};

/// What a masked score becomes: far below any score, and finite, so that no device makes NaN of it.
const MASKED: f32 = -1e30;

/// `x / sqrt(mean(x²) + eps) * gain` over the last dimension (arXiv:1910.07467).
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f32) -> Tensor<D> {
    let mean_square = x.clone().powi_scalar(2).mean_dim(D - 1);
    x / (mean_square + eps).sqrt() * gain.unsqueeze()
}

/// `x · Wᵀ + b`, `[batch, seq, in]` to `[batch, seq, out]`.
pub(crate) fn linear(x: Tensor<3>, projection: &Projection) -> Tensor<3> {
    let [batch, seq, d_in] = x.dims();
    let [d_out, _] = projection.weight.dims();
    let product = x.reshape([batch * seq, d_in]).matmul(projection.weight.val().transpose());
    let product = match &projection.bias {
        Some(bias) => product + bias.val().unsqueeze(),
        None => product,
    };
    product.reshape([batch, seq, d_out])
}

/// Rotates the halves of each head: `[batch, n_heads, seq, d_head]`, cosines and sines `[seq, d_head / 2]`.
fn rotate(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let (cos, sin) = (cos.unsqueeze::<4>(), sin.unsqueeze::<4>());
    let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let turned_second = second * cos + first * sin;
    Tensor::cat(vec![turned_first, turned_second], 3)
}

/// `[batch, n_kv_heads, seq, d_head]` with each head `n_times` in a row.
fn repeat_heads(x: Tensor<4>, n_times: usize) -> Tensor<4> {
    let [batch, n_heads, seq, d_head] = x.dims();
    if n_times == 1 {
        return x;
    }
    let wide = x.unsqueeze_dim::<5>(2).expand([batch, n_heads, n_times, seq, d_head]);
    wide.reshape([batch, n_heads * n_times, seq, d_head])
}

fn causal_mask(seq: usize, device: &Device) -> Tensor<4> {
    let above = |i: usize| if i % seq > i / seq { MASKED } else { 0.0 };
    let values: Vec<f32> = (0..seq * seq).map(above).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, seq, seq]), device)
}

fn heads(x: Tensor<3>, n_heads: usize, d_head: usize) -> Tensor<4> {
    let [batch, seq, _] = x.dims();
    x.reshape([batch, seq, n_heads, d_head]).swap_dims(1, 2)
}

/// Causal attention's mix of values, `[batch, seq, n_heads * d_head]`, before the output projection.
fn attention(input: Tensor<3>, block: &Block, spec: &ModelSpec, rope: &RopeTable) -> Tensor<3> {
    let [batch, seq, _] = input.dims();
    let device = input.device();
    let table = |values: &[f32]| {
        let n = seq * spec.d_head / 2;
        Tensor::<2>::from_data(TensorData::new(values[..n].to_vec(), [seq, spec.d_head / 2]), &device)
    };
    let (cos, sin) = (table(&rope.cos), table(&rope.sin));
    let mut query = heads(linear(input.clone(), &block.query), spec.n_heads, spec.d_head);
    let mut key = heads(linear(input.clone(), &block.key), spec.n_kv_heads, spec.d_head);
    let value = heads(linear(input, &block.value), spec.n_kv_heads, spec.d_head);
    if let Some(gain) = &block.query_norm {
        query = rms_norm(query, gain.val(), spec.norm_eps);
    }
    if let Some(gain) = &block.key_norm {
        key = rms_norm(key, gain.val(), spec.norm_eps);
    }
    let group = spec.n_heads / spec.n_kv_heads;
    let query = rotate(query, cos.clone(), sin.clone());
    let key = repeat_heads(rotate(key, cos, sin), group);
    let value = repeat_heads(value, group);
    let scores = query.matmul(key.transpose()) * (spec.d_head as f32).powf(-0.5);
    let weights = activation::softmax(scores + causal_mask(seq, &device), 3);
    weights.matmul(value).swap_dims(1, 2).reshape([batch, seq, spec.n_heads * spec.d_head])
}

/// One block, and what its projections were given.
pub(crate) fn block(
    x: Tensor<3>,
    block: &Block,
    spec: &ModelSpec,
    rope: &RopeTable,
) -> (Tensor<3>, Captured) {
    let attn_input = rms_norm(x.clone(), block.attn_norm.val(), spec.norm_eps);
    let attn_mix = attention(attn_input.clone(), block, spec, rope);
    let x = x + linear(attn_mix.clone(), &block.attn_output);
    let ffn_input = rms_norm(x.clone(), block.ffn_norm.val(), spec.norm_eps);
    let gate = activation::silu(linear(ffn_input.clone(), &block.gate));
    let ffn_product = gate * linear(ffn_input.clone(), &block.up);
    let x = x + linear(ffn_product.clone(), &block.down);
    (x, Captured { attn_input, attn_mix, ffn_input, ffn_product })
}
