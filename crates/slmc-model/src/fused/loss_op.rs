//! A loss whose gradients are known before the way back, as one node of Burn's autodiff.

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
use slmc_kernels::scale;

use super::{FlexTensor, block_op::register, flex_tensor, from_tracked, into_numbers, tracked};

/// A loss's gradients; empty where none is wanted.
#[derive(Clone, Debug)]
pub(crate) struct LossGradients {
    /// `[batch * seq, d_model]`.
    pub hidden: Vec<f32>,
    /// `[vocab_size, d_model]`.
    pub head: Vec<f32>,
}

#[derive(Clone, Debug)]
struct State {
    gradients: LossGradients,
    hidden: FlexTensor,
    head: FlexTensor,
}

#[derive(Debug)]
struct LossBackward;

impl Backward<Flex, 2> for LossBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let flowing = into_numbers(grads.consume::<Flex>(&ops.node))[0];
        let State { gradients, hidden, head } = ops.state;
        let found = [gradients.hidden, gradients.head];
        for ((parent, mut gradient), input) in ops.parents.into_iter().zip(found).zip([&hidden, &head]) {
            if let Some(parent) = parent {
                if flowing != 1.0 {
                    scale(&mut gradient, flowing);
                }
                register(grads, parent.id, gradient, input);
            }
        }
    }
}

/// The loss as a tensor `[1]` whose backward pass hands out these gradients.
pub(crate) fn attach(value: f32, hidden: Tensor<3>, head: Tensor<2>, gradients: LossGradients) -> Tensor<1> {
    let on_flex = "the caller has seen that both are on flex";
    let (hidden, head) = (tracked(hidden).expect(on_flex), tracked(head).expect(on_flex));
    let guards = [hidden.node(), head.node()];
    let out = flex_tensor(vec![value], &[1]);
    let prepared = Backward::<Flex, 2>::prepare::<NoCheckpointing>(LossBackward, guards);
    from_tracked(match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let (hidden, head) = (hidden.into_primitive(), head.into_primitive());
            prepared.finish(State { gradients, hidden, head }, out)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    })
}
