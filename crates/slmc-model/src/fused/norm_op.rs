//! RMSNorm as one node of Burn's autodiff: the norm after the last block.

use burn::{
    backend::{
        Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
    },
    tensor::Tensor,
};
use slmc_kernels::rms_norm_backward;

use super::{
    FlexTensor, block_op::register, contiguous, flex_tensor, from_plain, from_tracked, into_numbers, numbers,
    plain, tracked,
};

/// Runs the norm on flex; `None` on other devices.
pub(crate) fn rms_norm(x: &Tensor<3>, gain: &Tensor<1>, eps: f32) -> Option<Tensor<3>> {
    let shape = x.dims();
    if !x.is_autodiff() && !gain.is_autodiff() {
        let (x, gain) = (plain(x.clone())?, plain(gain.clone())?);
        return Some(from_plain(flex_tensor(forward(&x, &gain, eps).0, &shape)));
    }
    let (x, gain) = (tracked(x.clone())?, tracked(gain.clone())?);
    let guards = [x.node(), gain.node()];
    let (x, gain) = (contiguous(x.into_primitive()), contiguous(gain.into_primitive()));
    let (out, inverse) = forward(&x, &gain, eps);
    let out = flex_tensor(out, &shape);
    let prepared = Backward::<Flex, 2>::prepare::<NoCheckpointing>(NormBackward, guards);
    Some(from_tracked(match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(State { x, gain, inverse }, out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    }))
}

fn forward(x: &FlexTensor, gain: &FlexTensor, eps: f32) -> (Vec<f32>, Vec<f32>) {
    let (x, gain) = (numbers(x), numbers(gain));
    let (mut out, mut inverse) = (vec![0.0; x.len()], vec![0.0; x.len() / gain.len()]);
    slmc_kernels::rms_norm(x, gain, eps, &mut out, &mut inverse);
    (out, inverse)
}

#[derive(Clone, Debug)]
struct State {
    x: FlexTensor,
    gain: FlexTensor,
    inverse: Vec<f32>,
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 2> for NormBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d_out = into_numbers(contiguous(grads.consume::<Flex>(&ops.node)));
        let State { x, gain, inverse } = ops.state;
        let (mut d_x, mut d_gain) = (vec![0.0; d_out.len()], vec![0.0; numbers(&gain).len()]);
        rms_norm_backward(numbers(&x), numbers(&gain), &inverse, &d_out, &mut d_x, &mut d_gain);
        let [x_node, gain_node] = ops.parents;
        if let Some(node) = x_node {
            register(grads, node.id, d_x, &x);
        }
        if let Some(node) = gain_node {
            register(grads, node.id, d_gain, &gain);
        }
    }
}
