//! One block on slices: attention and MLP, forward and backward.
//!
//! Kept for the way back, for each token: the two residual streams, query, key, value and mix, and (where asked for) gate
//! and up. Norms, SwiGLU's product and attention's probabilities are computed again.

use std::borrow::Cow;

use slmc_kernels::{
    AttentionShape, Matrix, MatrixMut, Update, add_row, attention, attention_backward, column_sums,
    from_heads, multiply_in, rms_norm, rms_norm_again, rms_norm_backward, rotate, rotate_back, swiglu,
    swiglu_backward, to_heads,
};

use super::{
    inputs::{
        ATTN_NORM, ATTN_OUTPUT, DOWN, FFN_NORM, GATE, Gradients, HIDDEN, Inputs, KEY, KEY_NORM, N_INPUTS,
        N_PROJECTIONS, QUERY, QUERY_NORM, Sizes, UP, VALUE,
    },
    projection::{FactorsRef, Numbers, adapter_slot},
};
use crate::rope::RopeTable;

/// What the way back needs.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    attn_inverse: Vec<f32>,
    query: Heads,
    key: Heads,
    value: Vec<f32>,
    /// In head order.
    mix: Vec<f32>,
    log_sums: Vec<f32>,
    after_attention: Vec<f32>,
    ffn_inverse: Vec<f32>,
    /// `None` where they are computed again.
    gate_up: Option<Vec<f32>>,
    /// The projections' inputs times their factors `A`, `[n_tokens, rank]`, scaled.
    low: [Option<Vec<f32>>; N_PROJECTIONS],
}

impl Kept {
    /// Without gate and up, which take half of the memory: they are computed again on the way back.
    pub(crate) fn without_gate_up(mut self) -> Self {
        self.gate_up = None;
        self.low[adapter_slot(GATE)] = None;
        self.low[adapter_slot(UP)] = None;
        self
    }
}

/// Rotated queries or keys in head order.
#[derive(Clone, Debug)]
struct Heads {
    turned: Vec<f32>,
    /// Before the norm of each head, and the norm's inverses.
    before_norm: Option<(Vec<f32>, Vec<f32>)>,
}

/// What the projections were given, in token order.
pub(crate) struct CapturedNumbers {
    pub attn_input: Vec<f32>,
    pub attn_mix: Vec<f32>,
    pub ffn_input: Vec<f32>,
    pub ffn_product: Vec<f32>,
}

pub(crate) struct Forward {
    pub out: Vec<f32>,
    pub kept: Kept,
    pub captured: CapturedNumbers,
}

fn required<'a>(inputs: &Inputs<'a>, slot: usize) -> &'a [f32] {
    match inputs.numbers[slot] {
        Some(Numbers::Plain(numbers)) => numbers,
        // Only the projections' matrices are ever packed.
        _ => panic!("a block has all its norms, as numbers"),
    }
}

/// A projection's matrix, decoded where it is packed.
fn matrix<'a>(inputs: &Inputs<'a>, slot: usize) -> Cow<'a, [f32]> {
    inputs.numbers[slot].expect("a block has all its matrices").decoded()
}

/// `out (+)= x · Wᵀ + b`, and the part of the factors beside W; rows of `out` lie `stride` apart. Hands out `x · Aᵀ`,
/// scaled, where there are factors.
#[allow(clippy::too_many_arguments)] // one line of algebra, with all that it is about
fn project(
    sizes: Sizes,
    x: &[f32],
    inputs: &Inputs<'_>,
    slot: usize,
    [n, d_in, d_out]: [usize; 3],
    out: &mut [f32],
    stride: usize,
    update: Update,
) -> Option<Vec<f32>> {
    let weight = matrix(inputs, slot);
    let weight = Matrix::new(&weight, d_out, d_in).transposed();
    let out_rows = MatrixMut::strided(out, n, d_out, stride);
    multiply_in(sizes.products, Matrix::new(x, n, d_in), weight, out_rows, update);
    if let Some(bias) = inputs.numbers[slot + 1] {
        add_row(out, stride, &bias.decoded());
    }
    let factors = inputs.adapters[adapter_slot(slot)]?;
    Some(factors.forward(x, [n, d_in, d_out], out, stride))
}

/// Attention and what it adds to the hidden states.
pub(crate) struct Attended {
    attn_input: Vec<f32>,
    attn_inverse: Vec<f32>,
    query: Heads,
    key: Heads,
    value: Vec<f32>,
    mix: Vec<f32>,
    log_sums: Vec<f32>,
    /// In token order.
    pub attn_mix: Vec<f32>,
    pub after_attention: Vec<f32>,
    low: Low,
}

/// The block's first half.
pub(crate) fn attend(sizes: Sizes, inputs: &Inputs<'_>, rope: &RopeTable) -> Attended {
    let (n, d) = (sizes.n_tokens(), sizes.d_model);
    let shape = sizes.attention;
    let hidden = required(inputs, HIDDEN);
    let (mut attn_input, mut attn_inverse) = (vec![0.0; n * d], vec![0.0; n]);
    rms_norm(hidden, required(inputs, ATTN_NORM), sizes.eps, &mut attn_input, &mut attn_inverse);

    let mut low = [const { None }; N_PROJECTIONS];
    let query = rotated(sizes, inputs, QUERY, QUERY_NORM, &attn_input, rope, &mut low);
    let key = rotated(sizes, inputs, KEY, KEY_NORM, &attn_input, rope, &mut low);
    let value = in_heads(sizes, inputs, VALUE, shape.n_kv_heads, &attn_input, &mut low);
    let mut mix = vec![0.0; n * sizes.d_query()];
    let mut log_sums = vec![0.0; n * shape.n_heads];
    attention(shape, inputs.starts, &query.turned, &key.turned, &value, &mut mix, &mut log_sums);
    let mut attn_mix = vec![0.0; mix.len()];
    from_heads(&mix, &mut attn_mix, sizes.d_query(), 0, sizes.heads(shape.n_heads));
    let mut after_attention = hidden.to_vec();
    low[adapter_slot(ATTN_OUTPUT)] =
        add_projected(sizes, inputs, ATTN_OUTPUT, &attn_mix, &mut after_attention);
    Attended { attn_input, attn_inverse, query, key, value, mix, log_sums, attn_mix, after_attention, low }
}

/// Adds attention's output or the MLP's to hidden states.
pub(crate) fn add_projected(
    sizes: Sizes,
    inputs: &Inputs<'_>,
    slot: usize,
    x: &[f32],
    hidden: &mut [f32],
) -> Option<Vec<f32>> {
    let (n, d) = (sizes.n_tokens(), sizes.d_model);
    project(sizes, x, inputs, slot, [n, x.len() / n, d], hidden, d, Update::Add)
}

/// What the down projection is given, and what the way back needs of it.
pub(crate) struct Gated {
    ffn_input: Vec<f32>,
    ffn_inverse: Vec<f32>,
    gate_up: Vec<f32>,
    pub ffn_product: Vec<f32>,
}

/// The block's second half, up to the down projection.
pub(crate) fn gated(sizes: Sizes, inputs: &Inputs<'_>, after_attention: &[f32], low: &mut Low) -> Gated {
    let (n, d, d_ff) = (sizes.n_tokens(), sizes.d_model, sizes.d_ff);
    let (mut ffn_input, mut ffn_inverse) = (vec![0.0; n * d], vec![0.0; n]);
    rms_norm(after_attention, required(inputs, FFN_NORM), sizes.eps, &mut ffn_input, &mut ffn_inverse);
    let gate_up = gate_and_up(sizes, inputs, &ffn_input, low);
    let mut ffn_product = vec![0.0; n * d_ff];
    swiglu(&gate_up, &mut ffn_product, d_ff);
    Gated { ffn_input, ffn_inverse, gate_up, ffn_product }
}

/// The block's result and everything on the way.
pub(crate) fn forward(sizes: Sizes, inputs: &Inputs<'_>, rope: &RopeTable) -> Forward {
    let Attended {
        attn_input,
        attn_inverse,
        query,
        key,
        value,
        mix,
        log_sums,
        attn_mix,
        after_attention,
        mut low,
    } = attend(sizes, inputs, rope);
    let Gated { ffn_input, ffn_inverse, gate_up, ffn_product } =
        gated(sizes, inputs, &after_attention, &mut low);
    let mut out = after_attention.clone();
    low[adapter_slot(DOWN)] = add_projected(sizes, inputs, DOWN, &ffn_product, &mut out);

    Forward {
        out,
        kept: Kept {
            attn_inverse,
            query,
            key,
            value,
            mix,
            log_sums,
            after_attention,
            ffn_inverse,
            gate_up: Some(gate_up),
            low,
        },
        captured: CapturedNumbers { attn_input, attn_mix, ffn_input, ffn_product },
    }
}

/// What the projections of a block keep of their factors.
pub(crate) type Low = [Option<Vec<f32>>; N_PROJECTIONS];

/// Gate and up of each token, side by side: `[n_tokens, 2 · d_ff]`.
fn gate_and_up(sizes: Sizes, inputs: &Inputs<'_>, ffn_input: &[f32], low: &mut Low) -> Vec<f32> {
    let (n, d, d_ff) = (sizes.n_tokens(), sizes.d_model, sizes.d_ff);
    let mut gate_up = vec![0.0; n * 2 * d_ff];
    for (slot, first) in [(GATE, 0), (UP, d_ff)] {
        let out = &mut gate_up[first..];
        low[adapter_slot(slot)] =
            project(sizes, ffn_input, inputs, slot, [n, d, d_ff], out, 2 * d_ff, Update::Set);
    }
    gate_up
}

/// A projection of the attention's input, in head order.
fn in_heads(
    sizes: Sizes,
    inputs: &Inputs<'_>,
    slot: usize,
    n_heads: usize,
    x: &[f32],
    low: &mut Low,
) -> Vec<f32> {
    let (n, d_out) = (sizes.n_tokens(), n_heads * sizes.attention.d_head);
    let mut rows = vec![0.0; n * d_out];
    low[adapter_slot(slot)] =
        project(sizes, x, inputs, slot, [n, sizes.d_model, d_out], &mut rows, d_out, Update::Set);
    let mut heads = vec![0.0; n * d_out];
    to_heads(&rows, d_out, 0, &mut heads, sizes.heads(n_heads));
    heads
}

/// Queries or keys: projected, normed if the model does that, rotated.
fn rotated(
    sizes: Sizes,
    inputs: &Inputs<'_>,
    slot: usize,
    norm: usize,
    x: &[f32],
    rope: &RopeTable,
    low: &mut Low,
) -> Heads {
    let AttentionShape { n_heads, n_kv_heads, seq, d_head, .. } = sizes.attention;
    let n_heads = if slot == QUERY { n_heads } else { n_kv_heads };
    let heads = in_heads(sizes, inputs, slot, n_heads, x, low);
    let (mut turned, before_norm) = match inputs.numbers[norm] {
        None => (heads, None),
        Some(_) => {
            let (mut normed, mut inverse) = (vec![0.0; heads.len()], vec![0.0; heads.len() / d_head]);
            rms_norm(&heads, required(inputs, norm), sizes.eps, &mut normed, &mut inverse);
            (normed, Some((heads, inverse)))
        }
    };
    rotate(&mut turned, &rope.cos, &rope.sin, seq, d_head);
    Heads { turned, before_norm }
}

/// The gradients of the inputs that are wanted, from the result's.
pub(crate) fn backward(
    sizes: Sizes,
    inputs: &Inputs<'_>,
    rope: &RopeTable,
    mut kept: Kept,
    d_out: Vec<f32>,
    wanted: [bool; N_INPUTS],
) -> Gradients {
    let gate_up = gate_up_of(sizes, inputs, &mut kept);
    let low = std::mem::take(&mut kept.low);
    let gradients = Gradients::default();
    let mut back = Back { sizes, inputs, wanted, gradients, low, flowing: Default::default(), see: None };
    let d_after = back.mlp(&kept, gate_up, d_out);
    let d_hidden = back.attention(kept, rope, d_after);
    if wanted[HIDDEN] {
        back.gradients.inputs[HIDDEN] = Some(d_hidden);
    }
    back.gradients
}

/// Gate and up as they were kept, or computed again.
fn gate_up_of(sizes: Sizes, inputs: &Inputs<'_>, kept: &mut Kept) -> Vec<f32> {
    kept.gate_up.take().unwrap_or_else(|| {
        let mut normed = vec![0.0; sizes.n_tokens() * sizes.d_model];
        rms_norm_again(&kept.after_attention, required(inputs, FFN_NORM), &kept.ffn_inverse, &mut normed);
        gate_and_up(sizes, inputs, &normed, &mut kept.low)
    })
}

/// What went into a projection and the gradient of what came out, rows a token.
pub(super) struct Seen<'a> {
    /// The projection's weight.
    pub slot: usize,
    /// `[n, d_in]`.
    pub input: &'a [f32],
    /// `[n, d_out]`, its rows `stride` apart.
    pub gradient: &'a [f32],
    pub stride: usize,
    /// Tokens, inputs, outputs.
    pub sizes: [usize; 3],
}

/// The gradient of the hidden states alone; `see` is shown each projection on the way.
pub(super) fn backward_seeing(
    sizes: Sizes,
    inputs: &Inputs<'_>,
    rope: &RopeTable,
    mut kept: Kept,
    d_out: Vec<f32>,
    see: &mut dyn FnMut(Seen<'_>),
) -> Vec<f32> {
    let gate_up = gate_up_of(sizes, inputs, &mut kept);
    let low = std::mem::take(&mut kept.low);
    let (gradients, wanted) = (Gradients::default(), [false; N_INPUTS]);
    let mut back =
        Back { sizes, inputs, wanted, gradients, low, flowing: Default::default(), see: Some(see) };
    let d_after = back.mlp(&kept, gate_up, d_out);
    back.attention(kept, rope, d_after)
}

/// A backward pass under way.
struct Back<'a> {
    sizes: Sizes,
    inputs: &'a Inputs<'a>,
    wanted: [bool; N_INPUTS],
    gradients: Gradients,
    /// The projections' inputs times their factors `A`, scaled.
    low: Low,
    /// The gradients of the same.
    flowing: Low,
    see: Option<&'a mut dyn FnMut(Seen<'_>)>,
}

impl Back<'_> {
    /// Whether a projection's own gradients are wanted, or somebody looks on, and so what it was given.
    fn needs_input(&self, slot: usize) -> bool {
        let is_wanted = self.wanted[slot] || self.wanted[slot + 1] || self.see.is_some();
        is_wanted || self.inputs.adapters[adapter_slot(slot)].is_some()
    }

    /// Takes the gradient at the block's end to the one after attention.
    fn mlp(&mut self, kept: &Kept, mut gate_up: Vec<f32>, mut d_out: Vec<f32>) -> Vec<f32> {
        let (n, d, d_ff) = (self.sizes.n_tokens(), self.sizes.d_model, self.sizes.d_ff);
        let mut product = vec![0.0; n * d_ff];
        self.input_gradient(DOWN, &d_out, d, [n, d_ff, d], &mut product, Update::Set);
        swiglu_backward(&mut gate_up, &mut product, d_ff);
        self.weight_gradient(DOWN, &d_out, d, &product, [n, d_ff, d]);
        drop(product);

        let mut d_normed = vec![0.0; n * d];
        self.input_gradient(GATE, &gate_up, 2 * d_ff, [n, d, d_ff], &mut d_normed, Update::Set);
        self.input_gradient(UP, &gate_up[d_ff..], 2 * d_ff, [n, d, d_ff], &mut d_normed, Update::Add);
        if [GATE, UP].iter().any(|&slot| self.needs_input(slot)) {
            let mut normed = vec![0.0; n * d];
            let gain = required(self.inputs, FFN_NORM);
            rms_norm_again(&kept.after_attention, gain, &kept.ffn_inverse, &mut normed);
            self.weight_gradient(GATE, &gate_up, 2 * d_ff, &normed, [n, d, d_ff]);
            self.weight_gradient(UP, &gate_up[d_ff..], 2 * d_ff, &normed, [n, d, d_ff]);
        }
        self.norm_gradient(FFN_NORM, &kept.after_attention, &kept.ffn_inverse, &d_normed, &mut d_out);
        d_out
    }

    /// Takes the gradient after attention to the one at the block's start.
    fn attention(&mut self, kept: Kept, rope: &RopeTable, mut d_after: Vec<f32>) -> Vec<f32> {
        let (n, d, d_query) = (self.sizes.n_tokens(), self.sizes.d_model, self.sizes.d_query());
        let shape = self.sizes.attention;
        let heads = self.sizes.heads(shape.n_heads);
        let mut rows = vec![0.0; n * d_query];
        if self.needs_input(ATTN_OUTPUT) {
            from_heads(&kept.mix, &mut rows, d_query, 0, heads);
            self.weight_gradient(ATTN_OUTPUT, &d_after, d, &rows, [n, d_query, d]);
        }
        self.input_gradient(ATTN_OUTPUT, &d_after, d, [n, d_query, d], &mut rows, Update::Set);
        let mut d_mix = vec![0.0; n * d_query];
        to_heads(&rows, d_query, 0, &mut d_mix, heads);
        let mut d_query_heads = rows;
        let (mut d_key, mut d_value) = (vec![0.0; kept.value.len()], vec![0.0; kept.value.len()]);
        attention_backward(
            shape,
            self.inputs.starts,
            &kept.query.turned,
            &kept.key.turned,
            &kept.value,
            &kept.mix,
            &kept.log_sums,
            &d_mix,
            &mut d_query_heads,
            &mut d_key,
            &mut d_value,
        );
        drop(d_mix);

        let hidden = required(self.inputs, HIDDEN);
        let mut normed = vec![0.0; n * d];
        rms_norm_again(hidden, required(self.inputs, ATTN_NORM), &kept.attn_inverse, &mut normed);
        let d_query_heads = self.turned_back(QUERY_NORM, kept.query, d_query_heads, rope);
        let d_key = self.turned_back(KEY_NORM, kept.key, d_key, rope);
        let mut d_normed = vec![0.0; n * d];
        self.take_head_gradient(QUERY, shape.n_heads, &d_query_heads, &normed, &mut d_normed, Update::Set);
        self.take_head_gradient(KEY, shape.n_kv_heads, &d_key, &normed, &mut d_normed, Update::Add);
        self.take_head_gradient(VALUE, shape.n_kv_heads, &d_value, &normed, &mut d_normed, Update::Add);
        self.norm_gradient(ATTN_NORM, hidden, &kept.attn_inverse, &d_normed, &mut d_after);
        d_after
    }

    /// The gradient before rotation and head norm.
    fn turned_back(
        &mut self,
        norm: usize,
        heads: Heads,
        mut gradient: Vec<f32>,
        rope: &RopeTable,
    ) -> Vec<f32> {
        let AttentionShape { seq, d_head, .. } = self.sizes.attention;
        rotate_back(&mut gradient, &rope.cos, &rope.sin, seq, d_head);
        match heads.before_norm {
            None => gradient,
            Some((before, inverse)) => {
                let mut d_before = vec![0.0; before.len()];
                self.norm_gradient(norm, &before, &inverse, &gradient, &mut d_before);
                d_before
            }
        }
    }

    /// From a projection's gradient in head order: its weight's, and its part of the input's.
    fn take_head_gradient(
        &mut self,
        slot: usize,
        n_heads: usize,
        heads: &[f32],
        normed: &[f32],
        d_normed: &mut [f32],
        update: Update,
    ) {
        let (n, d, d_out) =
            (self.sizes.n_tokens(), self.sizes.d_model, n_heads * self.sizes.attention.d_head);
        let mut rows = vec![0.0; n * d_out];
        from_heads(heads, &mut rows, d_out, 0, self.sizes.heads(n_heads));
        self.weight_gradient(slot, &rows, d_out, normed, [n, d, d_out]);
        self.input_gradient(slot, &rows, d_out, [n, d, d_out], d_normed, update);
    }

    /// `d_x (+)= d_y · W`, and the part of the factors beside W.
    fn input_gradient(
        &mut self,
        slot: usize,
        d_y: &[f32],
        stride: usize,
        [n, d_in, d_out]: [usize; 3],
        d_x: &mut [f32],
        update: Update,
    ) {
        let weight = matrix(self.inputs, slot);
        let weight = Matrix::new(&weight, d_out, d_in);
        let rows = Matrix::strided(d_y, n, d_out, stride);
        multiply_in(self.sizes.products, rows, weight, MatrixMut::new(d_x, n, d_in), update);
        if let Some(factors) = self.inputs.adapters[adapter_slot(slot)] {
            let flowing = self.flow(factors, slot, d_y, stride, [n, d_in, d_out]);
            factors.input_gradient(flowing, [n, d_in, d_out], d_x);
        }
    }

    /// The gradient of `x · Aᵀ`, computed once.
    fn flow(
        &mut self,
        factors: FactorsRef<'_>,
        slot: usize,
        d_y: &[f32],
        stride: usize,
        sizes: [usize; 3],
    ) -> &[f32] {
        self.flowing[adapter_slot(slot)].get_or_insert_with(|| factors.flow(d_y, stride, sizes))
    }

    /// `d_W = d_yᵀ · x`, the bias's sums and the factors' gradients, where wanted.
    fn weight_gradient(
        &mut self,
        slot: usize,
        d_y: &[f32],
        stride: usize,
        x: &[f32],
        [n, d_in, d_out]: [usize; 3],
    ) {
        if let Some(see) = &mut self.see {
            see(Seen { slot, input: x, gradient: d_y, stride, sizes: [n, d_in, d_out] });
        }
        if self.wanted[slot] {
            let mut gradient = vec![0.0; d_out * d_in];
            let d_y = Matrix::strided(d_y, n, d_out, stride).transposed();
            let (x, out) = (Matrix::new(x, n, d_in), MatrixMut::new(&mut gradient, d_out, d_in));
            multiply_in(self.sizes.products, d_y, x, out, Update::Set);
            self.gradients.inputs[slot] = Some(gradient);
        }
        if self.wanted[slot + 1] {
            let mut sums = vec![0.0; d_out];
            column_sums(d_y, stride, &mut sums);
            self.gradients.inputs[slot + 1] = Some(sums);
        }
        if let Some(factors) = self.inputs.adapters[adapter_slot(slot)] {
            let low = self.low[adapter_slot(slot)].take().expect("kept where there are factors");
            let flowing = self.flow(factors, slot, d_y, stride, [n, d_in, d_out]);
            let gradient = factors.gradient(flowing, &low, x, d_y, stride, [n, d_in, d_out]);
            self.gradients.adapters[adapter_slot(slot)] = Some(gradient);
        }
    }

    /// `d_x += …`, and the gain's gradient where wanted.
    fn norm_gradient(&mut self, slot: usize, x: &[f32], inverse: &[f32], d_y: &[f32], d_x: &mut [f32]) {
        let gain = required(self.inputs, slot);
        let mut d_gain = vec![0.0; gain.len()];
        rms_norm_backward(x, gain, inverse, d_y, d_x, &mut d_gain);
        if self.wanted[slot] {
            self.gradients.inputs[slot] = Some(d_gain);
        }
    }
}
