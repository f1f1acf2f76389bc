//! One forward and backward pass: the gradients of a loss, by tensor key.

use std::collections::BTreeMap;

use burn::tensor::{Gradients, Tensor};
use slmc_ir::{Role, TensorKey, TokenId};

use crate::{
    decoder::{Decoder, Parameter},
    evaluator::token_tensor,
    loss::scalar,
};

/// Gradients of the trainable parameters, flattened in row order, without autodiff.
#[derive(Clone, Debug, Default)]
pub struct Grads {
    pub(crate) by_key: BTreeMap<TensorKey, Tensor<1>>,
}

impl Grads {
    /// The keys that have a gradient, in order.
    pub fn keys(&self) -> impl Iterator<Item = TensorKey> + '_ {
        self.by_key.keys().copied()
    }

    /// A parameter's gradient, flattened in row order.
    pub fn get(&self, key: TensorKey) -> Option<&Tensor<1>> {
        self.by_key.get(&key)
    }

    /// Adds another micro-batch's gradients.
    pub fn accumulate(&mut self, other: Self) {
        for (key, gradient) in other.by_key {
            self.add(key, gradient);
        }
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f32) {
        for gradient in self.by_key.values_mut() {
            *gradient = gradient.clone() * factor;
        }
    }

    /// Euclidean norm over all parameters.
    pub fn norm(&self) -> f32 {
        let square = |g: &Tensor<1>| f64::from(g.clone().powi_scalar(2).sum().into_scalar::<f32>());
        self.by_key.values().map(square).sum::<f64>().sqrt() as f32
    }

    /// Scales all gradients so that their common norm is at most `max_norm`; the norm before is returned
    /// (Pascanu et al. 2013, arXiv:1211.5063). A norm that is not finite changes nothing: the caller decides.
    pub fn clip(&mut self, max_norm: f32) -> f32 {
        let norm = self.norm();
        if norm.is_finite() && norm > max_norm {
            self.scale(max_norm / norm);
        }
        norm
    }

    fn add(&mut self, key: TensorKey, gradient: Tensor<1>) {
        let sum = match self.by_key.remove(&key) {
            Some(old) => old + gradient,
            None => gradient,
        };
        self.by_key.insert(key, sum);
    }

    /// Takes the gradients of these parameters out of what a backward pass left.
    fn collect(&mut self, decoder: &Decoder, keys: impl Iterator<Item = TensorKey>, left: &mut Gradients) {
        for key in keys {
            let gradient = match decoder.parameter(key) {
                Some(Parameter::Matrix(matrix)) => matrix.val().grad_remove(left).map(|g| {
                    let n = g.shape().num_elements();
                    g.reshape([n])
                }),
                Some(Parameter::Vector(vector)) => vector.val().grad_remove(left),
                None => None,
            };
            if let Some(gradient) = gradient {
                self.add(key, gradient);
            }
        }
    }
}

/// Runs `batch` sequences of `seq` tokens through the decoder (on a device with autodiff), `loss` on the
/// hidden states `[batch, seq, d_model]` and the head, and the way back. `loss` hands back the tensor to
/// differentiate, `[1]`, and whatever else the caller wants to see; both come out beside the gradients.
///
/// With `recompute` only each block's input is kept and blocks are run again on the way back (Chen et al. 2016,
/// arXiv:1604.06174): less memory, a third more work, the same gradients.
///
/// # Panics
/// When there are not `batch * seq` tokens, or a token is outside the vocabulary.
pub fn gradients<T>(
    decoder: &Decoder,
    tokens: &[TokenId],
    batch: usize,
    seq: usize,
    loss: impl FnOnce(Tensor<3>, Tensor<2>) -> (Tensor<1>, T),
    recompute: bool,
) -> (f32, T, Grads) {
    assert_eq!(tokens.len(), batch * seq, "batch × seq tokens");
    assert!(tokens.iter().all(|&t| (t as usize) < decoder.spec.vocab_size), "tokens inside the vocabulary");
    if recompute {
        return recomputed(decoder, tokens, batch, seq, loss);
    }
    let ids = token_tensor(tokens, batch, seq, &decoder.device());
    let (total, extra) = loss(decoder.hidden(ids), decoder.head());
    let value = scalar(&total);
    let mut left = total.backward();
    drop(total);
    let mut grads = Grads::default();
    grads.collect(decoder, decoder.keys().into_iter(), &mut left);
    (value, extra, grads)
}

/// As [`gradients`], keeping block inputs only: a backward pass for each block, last to first.
fn recomputed<T>(
    decoder: &Decoder,
    tokens: &[TokenId],
    batch: usize,
    seq: usize,
    loss: impl FnOnce(Tensor<3>, Tensor<2>) -> (Tensor<1>, T),
) -> (f32, T, Grads) {
    let plain = decoder.for_evaluation();
    let mut inputs = vec![plain.embed(token_tensor(tokens, batch, seq, &plain.device()))];
    for index in 0..plain.blocks.len() {
        let output = plain.block(index, inputs[index].clone());
        inputs.push(output);
    }
    drop(plain);
    let mut grads = Grads::default();

    let last = leaf(inputs.pop());
    let (total, extra) = loss(decoder.final_norm(last.clone()), decoder.head());
    let value = scalar(&total);
    let mut left = total.backward();
    drop(total);
    let outside = || decoder.keys().into_iter().filter(|key| key.block.is_none());
    grads.collect(decoder, outside(), &mut left);
    let mut flowing = last.grad_remove(&mut left);

    for index in (0..decoder.blocks.len()).rev() {
        let input = leaf(inputs.pop());
        let Some(gradient) = flowing.take() else { break };
        let mut left = (decoder.block(index, input.clone()) * gradient).sum().backward();
        grads.collect(decoder, decoder.keys().into_iter().filter(|key| key.block == Some(index)), &mut left);
        flowing = input.grad_remove(&mut left);
    }
    if let (Some(gradient), true) = (flowing, decoder.embedding.is_require_grad()) {
        let embedded = decoder.embed(token_tensor(tokens, batch, seq, &decoder.device()));
        let mut left = (embedded * gradient).sum().backward();
        grads.collect(decoder, std::iter::once(TensorKey::model(Role::Embedding)), &mut left);
    }
    (value, extra, grads)
}

fn leaf(input: Option<Tensor<3>>) -> Tensor<3> {
    input.expect("one input is kept for each block").autodiff().require_grad()
}
