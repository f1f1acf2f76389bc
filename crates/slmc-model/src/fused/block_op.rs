//! The block as one node of Burn's autodiff.

use std::sync::Arc;

use burn::{
    backend::{
        Flex,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
    },
    module::Param,
    tensor::Tensor,
};

use super::{
    FlexTensor, TrackedTensor, contiguous, flex_tensor, from_plain, from_tracked, into_numbers, numbers,
    plain, tracked,
};
use crate::{
    decoder::{Block, Decoder, Projection},
    forward::Captured,
    rope::RopeTable,
    slices::{
        block::{CapturedNumbers, Kept, backward, forward},
        inputs::{
            ATTN_NORM, ATTN_OUTPUT, DOWN, FFN_NORM, GATE, HIDDEN, Inputs, KEY, KEY_NORM, N_INPUTS,
            N_PROJECTIONS, QUERY, QUERY_NORM, Sizes, UP, VALUE,
        },
        projection::Numbers,
    },
};

/// Runs the block on flex; `None` on other devices. What the projections were given is handed out only when
/// asked for, and then without a graph.
pub(crate) fn block(
    hidden: &Tensor<3>,
    decoder: &Decoder,
    index: usize,
    rope: &Arc<RopeTable>,
    capture: bool,
) -> Option<(Tensor<3>, Option<Captured>)> {
    let [batch, seq, _] = hidden.dims();
    let (block, spec) = (&decoder.blocks[index], &decoder.spec);
    let sizes = Sizes::new(spec, batch, seq, decoder.products);
    let with_graph = hidden.is_autodiff() || block.attn_norm.is_autodiff();
    if !with_graph {
        let inputs = gather(hidden, block, &plain, &plain, &plain)?;
        let found = forward(sizes, &views(&inputs), rope);
        let captured = capture.then(|| captured(found.captured, batch, seq));
        return Some((from_plain(flex_tensor(found.out, &[batch, seq, spec.d_model])), captured));
    }
    let inputs = gather(hidden, block, &tracked, &tracked, &tracked)?;
    let (out, found) = node(sizes, inputs, rope);
    Some((from_tracked(out), capture.then(|| captured(found, batch, seq))))
}

fn captured(numbers: CapturedNumbers, batch: usize, seq: usize) -> Captured {
    let tensor = |numbers: Vec<f32>| {
        let columns = numbers.len() / (batch * seq);
        from_plain(flex_tensor(numbers, &[batch, seq, columns]))
    };
    Captured {
        attn_input: tensor(numbers.attn_input),
        attn_mix: tensor(numbers.attn_mix),
        ffn_input: tensor(numbers.ffn_input),
        ffn_product: tensor(numbers.ffn_product),
    }
}

/// The block's inputs in their slots.
fn gather<T>(
    hidden: &Tensor<3>,
    block: &Block,
    take3: &dyn Fn(Tensor<3>) -> Option<T>,
    take2: &dyn Fn(Tensor<2>) -> Option<T>,
    take1: &dyn Fn(Tensor<1>) -> Option<T>,
) -> Option<[Option<T>; N_INPUTS]> {
    let mut inputs = [const { None }; N_INPUTS];
    inputs[HIDDEN] = Some(take3(hidden.clone())?);
    let on_device = "a decoder's parameters are on one device";
    let vector = |gain: &Param<Tensor<1>>| take1(gain.val()).expect(on_device);
    inputs[ATTN_NORM] = Some(vector(&block.attn_norm));
    inputs[FFN_NORM] = Some(vector(&block.ffn_norm));
    inputs[QUERY_NORM] = block.query_norm.as_ref().map(vector);
    inputs[KEY_NORM] = block.key_norm.as_ref().map(vector);
    let projections: [(usize, &Projection); 7] = [
        (QUERY, &block.query),
        (KEY, &block.key),
        (VALUE, &block.value),
        (ATTN_OUTPUT, &block.attn_output),
        (GATE, &block.gate),
        (UP, &block.up),
        (DOWN, &block.down),
    ];
    for (slot, projection) in projections {
        inputs[slot] = Some(take2(projection.weight.val()).expect(on_device));
        inputs[slot + 1] = projection.bias.as_ref().map(vector);
    }
    Some(inputs)
}

fn views(inputs: &[Option<FlexTensor>; N_INPUTS]) -> Inputs<'_> {
    let numbers =
        inputs.each_ref().map(|tensor| tensor.as_ref().map(|tensor| Numbers::Plain(numbers(tensor))));
    Inputs { numbers, adapters: [None; N_PROJECTIONS], starts: None }
}

/// What the node keeps until the way back.
#[derive(Clone, Debug)]
struct State {
    sizes: Sizes,
    inputs: [Option<FlexTensor>; N_INPUTS],
    rope: Arc<RopeTable>,
    kept: Kept,
}

#[derive(Debug)]
struct BlockBackward;

impl Backward<Flex, N_INPUTS> for BlockBackward {
    type State = State;

    fn backward(self, ops: Ops<State, N_INPUTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d_out = into_numbers(contiguous(grads.consume::<Flex>(&ops.node)));
        let State { sizes, inputs, rope, kept } = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = backward(sizes, &views(&inputs), &rope, kept, d_out, wanted);
        for ((parent, gradient), input) in ops.parents.into_iter().zip(found.inputs).zip(&inputs) {
            if let (Some(parent), Some(gradient), Some(input)) = (parent, gradient, input) {
                register(grads, parent.id, gradient, input);
            }
        }
    }
}

/// Adds a gradient of the input's shape.
pub(super) fn register(grads: &mut Gradients, id: NodeId, gradient: Vec<f32>, input: &FlexTensor) {
    let shape: Vec<usize> = input.layout().shape().iter().copied().collect();
    grads.register::<Flex>(id, flex_tensor(gradient, &shape));
}

/// Runs the block and registers its backward pass.
fn node(
    sizes: Sizes,
    inputs: [Option<TrackedTensor>; N_INPUTS],
    rope: &Arc<RopeTable>,
) -> (TrackedTensor, CapturedNumbers) {
    // A tensor that the model does not have takes part as an untracked number.
    let guards = inputs.each_ref().map(|tensor| match tensor {
        Some(tensor) => tensor.node(),
        None => TrackedTensor::new(flex_tensor(vec![0.0], &[1])).node(),
    });
    let inputs = inputs.map(|tensor| tensor.map(|tensor| contiguous(tensor.into_primitive())));
    let found = forward(sizes, &views(&inputs), rope);
    let shape = [sizes.attention.batch, sizes.attention.seq, sizes.d_model];
    let out = flex_tensor(found.out, &shape);
    let prepared = Backward::<Flex, N_INPUTS>::prepare::<NoCheckpointing>(BlockBackward, guards);
    let out = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            prepared.finish(State { sizes, inputs, rope: rope.clone(), kept: found.kept }, out)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    };
    (out, found.captured)
}
