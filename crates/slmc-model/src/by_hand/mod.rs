//! One block forward and backward from Burn's own operations, without its autodiff: for devices that have no fused
//! operations.
//!
//! Autodiff keeps every intermediate result and walks an element-wise operation in up to three passes over memory on
//! the way back. Written out, a block keeps fewer, changes them in place, and skips most scores that the mask hides.

mod attention;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::{Device, Tensor, TensorData, activation};
use slmc_ir::{ModelSpec, Part, Role};

use self::attention::Chunks;
use crate::decoder::{Block, Projection};

/// What every block of a batch shares.
pub(crate) struct Shared {
    chunks: Chunks,
    /// Cosines and sines `[1, 1, seq, d_head / 2]`; the query's include the scores' scale.
    query_turn: [Tensor<4>; 2],
    key_turn: [Tensor<4>; 2],
    batch: usize,
    seq: usize,
}

impl Shared {
    pub fn new(
        spec: &ModelSpec,
        rope: &crate::rope::RopeTable,
        [batch, seq]: [usize; 2],
        device: &Device,
    ) -> Self {
        let half = spec.d_head / 2;
        let table = |values: &[f32], scale: f32| {
            let values: Vec<f32> = values[..seq * half].iter().map(|x| x * scale).collect();
            Tensor::from_data(TensorData::new(values, [1, 1, seq, half]), device)
        };
        let turn = |scale| [table(&rope.cos, scale), table(&rope.sin, scale)];
        Self {
            chunks: Chunks::new(spec, seq, device),
            query_turn: turn((spec.d_head as f32).powf(-0.5)),
            key_turn: turn(1.0),
            batch,
            seq,
        }
    }
}

/// What the way back needs; token rows are `[batch * seq, …]`.
pub(crate) struct Kept {
    attn_norm: Normed<2>,
    query_norm: Option<Normed<4>>,
    key_norm: Option<Normed<4>>,
    attention: attention::Kept,
    ffn_norm: Normed<2>,
    mlp: Mlp,
}

/// The MLP's middle: the gate's sigmoid and SiLU, and up.
struct Mlp {
    sigmoid: Tensor<2>,
    silu: Tensor<2>,
    up: Tensor<2>,
}

/// A norm's input divided by its root mean square, and the divisor's inverse.
struct Normed<const D: usize> {
    rows: Tensor<D>,
    inverse: Tensor<D>,
}

/// A block's gradients, flattened in row order.
pub(crate) type BlockGradients = Vec<(Role, Part, Tensor<1>)>;

/// The block's result, `[batch * seq, d_model]`. The block has no autodiff.
pub(crate) fn forward(x: Tensor<2>, block: &Block, spec: &ModelSpec, shared: &Shared) -> (Tensor<2>, Kept) {
    let attn_norm = norm(x.clone(), spec.norm_eps);
    let attn_input = attn_norm.rows.clone() * block.attn_norm.val().unsqueeze();
    let heads = |projection: &Projection, n_heads: usize| {
        let rows = project(attn_input.clone(), projection);
        rows.reshape([shared.batch, shared.seq, n_heads, spec.d_head]).swap_dims(1, 2)
    };
    let head_norm = |x: Tensor<4>, gain: &Option<burn::module::Param<Tensor<1>>>| match gain {
        None => (x, None),
        Some(gain) => {
            let normed = norm(x, spec.norm_eps);
            (normed.rows.clone() * gain.val().unsqueeze(), Some(normed))
        }
    };
    let (query, query_norm) = head_norm(heads(&block.query, spec.n_heads), &block.query_norm);
    let (key, key_norm) = head_norm(heads(&block.key, spec.n_kv_heads), &block.key_norm);
    let value = heads(&block.value, spec.n_kv_heads);
    let attention = shared.chunks.attend(turn(query, &shared.query_turn), turn(key, &shared.key_turn), value);
    let after_attention = x + project(rows_of(attention.mix.clone()), &block.attn_output);

    let ffn_norm = norm(after_attention.clone(), spec.norm_eps);
    let ffn_input = ffn_norm.rows.clone() * block.ffn_norm.val().unsqueeze();
    let gate = project(ffn_input.clone(), &block.gate);
    let sigmoid = activation::sigmoid(gate.clone());
    let mlp = Mlp { silu: gate * sigmoid.clone(), sigmoid, up: project(ffn_input, &block.up) };
    let out = after_attention + project(mlp.silu.clone() * mlp.up.clone(), &block.down);
    (out, Kept { attn_norm, query_norm, key_norm, attention, ffn_norm, mlp })
}

/// The gradient of the block's input from its result's, and those of all its parameters.
pub(crate) fn backward(
    kept: Kept,
    d_out: Tensor<2>,
    block: &Block,
    spec: &ModelSpec,
    shared: &Shared,
) -> (Tensor<2>, BlockGradients) {
    let mut gradients = Vec::with_capacity(Role::BLOCK.len());
    let Kept { attn_norm, query_norm, key_norm, attention, ffn_norm, mlp } = kept;
    let d_after = mlp_backward(ffn_norm, mlp, d_out, block, &mut gradients);

    let mix = rows_of(attention.mix.clone());
    let d_mix = project_backward(Role::AttnOutput, &block.attn_output, mix, d_after.clone(), &mut gradients);
    let d_mix = d_mix.reshape([shared.batch, shared.seq, spec.n_heads, spec.d_head]).swap_dims(1, 2);
    let [d_query, d_key, d_value] = shared.chunks.backward(attention, d_mix);
    let d_query = turn_back(d_query, &shared.query_turn);
    let d_key = turn_back(d_key, &shared.key_turn);
    let mut head_norm_backward =
        |role, normed: Option<Normed<4>>, gain: &Option<_>, d: Tensor<4>| match (normed, gain) {
            (Some(normed), Some(gain)) => norm_backward(role, normed, gain, d, &mut gradients),
            _ => d,
        };
    let d_query = head_norm_backward(Role::QueryNorm, query_norm, &block.query_norm, d_query);
    let d_key = head_norm_backward(Role::KeyNorm, key_norm, &block.key_norm, d_key);

    let input = attn_norm.rows.clone() * block.attn_norm.val().unsqueeze();
    let mut of = |role, projection, d: Tensor<4>| {
        project_backward(role, projection, input.clone(), rows_of(d), &mut gradients)
    };
    let d_input = of(Role::Query, &block.query, d_query)
        + of(Role::Key, &block.key, d_key)
        + of(Role::Value, &block.value, d_value);
    let d_hidden =
        norm_backward(Role::AttnNorm, attn_norm, &block.attn_norm, d_input, &mut gradients) + d_after;
    (d_hidden, gradients)
}

/// Takes the gradient at the block's end to the one after attention.
fn mlp_backward(
    ffn_norm: Normed<2>,
    Mlp { sigmoid, silu, up }: Mlp,
    d_out: Tensor<2>,
    block: &Block,
    gradients: &mut BlockGradients,
) -> Tensor<2> {
    let product = silu.clone() * up.clone();
    let d_product = project_backward(Role::Down, &block.down, product, d_out.clone(), gradients);
    // silu' = sigmoid + silu - sigmoid · silu
    let slope = silu.clone() - (silu.clone() - 1.0) * sigmoid;
    let d_gate = slope * up * d_product.clone();
    let d_up = silu * d_product;
    let input = ffn_norm.rows.clone() * block.ffn_norm.val().unsqueeze();
    let d_input = project_backward(Role::Gate, &block.gate, input.clone(), d_gate, gradients)
        + project_backward(Role::Up, &block.up, input, d_up, gradients);
    norm_backward(Role::FfnNorm, ffn_norm, &block.ffn_norm, d_input, gradients) + d_out
}

/// `x · Wᵀ + b`.
fn project(x: Tensor<2>, projection: &Projection) -> Tensor<2> {
    let product = x.matmul(projection.weight.val().transpose());
    match &projection.bias {
        Some(bias) => product + bias.val().unsqueeze(),
        None => product,
    }
}

/// `d_y · W`; keeps `d_yᵀ · x` and the bias's sums.
fn project_backward(
    role: Role,
    projection: &Projection,
    x: Tensor<2>,
    d_y: Tensor<2>,
    gradients: &mut BlockGradients,
) -> Tensor<2> {
    gradients.push((role, Part::Weight, flat(d_y.clone().transpose().matmul(x))));
    if projection.bias.is_some() {
        gradients.push((role, Part::Bias, flat(d_y.clone().sum_dim(0))));
    }
    d_y.matmul(projection.weight.val())
}

/// `x / sqrt(mean(x²) + eps)` over the last dimension (arXiv:1910.07467).
fn norm<const D: usize>(x: Tensor<D>, eps: f32) -> Normed<D> {
    let inverse = ((x.clone() * x.clone()).mean_dim(D - 1) + eps).sqrt().recip();
    Normed { rows: x * inverse.clone(), inverse }
}

/// With `n` the normed rows and `g` the gradient times the gain: `(g - n · mean(g · n)) · inverse`; keeps the gain's.
fn norm_backward<const D: usize>(
    role: Role,
    normed: Normed<D>,
    gain: &burn::module::Param<Tensor<1>>,
    d_y: Tensor<D>,
    gradients: &mut BlockGradients,
) -> Tensor<D> {
    let width = gain.dims()[0];
    let n_rows = d_y.shape().num_elements() / width;
    let products = d_y.clone() * normed.rows.clone();
    gradients.push((role, Part::Weight, flat(products.reshape([n_rows, width]).sum_dim(0))));
    let scaled = d_y * gain.val().unsqueeze();
    let mean = (scaled.clone() * normed.rows.clone()).mean_dim(D - 1);
    (scaled - normed.rows * mean) * normed.inverse
}

/// Rotates the halves of each head.
fn turn(x: Tensor<4>, [cos, sin]: &[Tensor<4>; 2]) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let turned_second = second * cos.clone() + first * sin.clone();
    Tensor::cat(vec![turned_first, turned_second], 3)
}

/// The gradient before [`turn`]: turned the other way, scaled the same.
fn turn_back(d: Tensor<4>, [cos, sin]: &[Tensor<4>; 2]) -> Tensor<4> {
    turn(d, &[cos.clone(), sin.clone().neg()])
}

/// `[batch, heads, seq, d_head]` to token rows.
fn rows_of(heads: Tensor<4>) -> Tensor<2> {
    let [batch, n_heads, seq, d_head] = heads.dims();
    heads.swap_dims(1, 2).reshape([batch * seq, n_heads * d_head])
}

fn flat(x: Tensor<2>) -> Tensor<1> {
    let n = x.shape().num_elements();
    x.reshape([n])
}
