//! One forward and backward pass: the gradients of a loss, by tensor key.

use std::collections::BTreeMap;

use burn::tensor::{Gradients, IndexingUpdateOp, Tensor};
use slmc_ir::{Role, TensorKey, TokenId};

use crate::{
    by_hand,
    decoder::{Decoder, Parameter},
    evaluator::token_tensor,
    loss::scalar,
};

/// Gradients of the trainable parameters, flattened in row order, without autodiff.
#[derive(Clone, Debug)]
pub struct Grads {
    pub(crate) by_key: BTreeMap<TensorKey, Tensor<1>>,
    /// What the gradients are still to be multiplied by: clipping costs no pass over them.
    pub(crate) factor: f32,
}

impl Default for Grads {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), factor: 1.0 }
    }
}

impl Grads {
    /// The keys that have a gradient, in order.
    pub fn keys(&self) -> impl Iterator<Item = TensorKey> + '_ {
        self.by_key.keys().copied()
    }

    /// A parameter's gradient, flattened in row order.
    pub fn get(&self, key: TensorKey) -> Option<Tensor<1>> {
        let gradient = self.by_key.get(&key)?.clone();
        Some(if self.factor == 1.0 { gradient } else { gradient * self.factor })
    }

    /// Adds another micro-batch's gradients.
    pub fn accumulate(&mut self, other: Self) {
        if self.by_key.is_empty() {
            *self = other;
            return;
        }
        self.settle();
        for (key, gradient) in other.by_key {
            self.add(key, if other.factor == 1.0 { gradient } else { gradient * other.factor });
        }
    }

    /// Multiplies what is still to be multiplied.
    fn settle(&mut self) {
        let factor = std::mem::replace(&mut self.factor, 1.0);
        if factor != 1.0 {
            let scaled = std::mem::take(&mut self.by_key).into_iter();
            self.by_key = scaled.map(|(key, gradient)| (key, gradient * factor)).collect();
        }
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f32) {
        self.factor *= factor;
    }

    /// Euclidean norm over all parameters.
    pub fn norm(&self) -> f32 {
        let squares: f64 = self.by_key.values().map(sum_of_squares).sum();
        (squares.sqrt() * f64::from(self.factor.abs())) as f32
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
            Some(old) => sum(old, gradient),
            None => gradient,
        };
        self.by_key.insert(key, sum);
    }

    /// Adds the embedding's part: the gradients of the tokens' rows, `[batch, seq, d_model]`.
    fn add_embedded(&mut self, decoder: &Decoder, tokens: &[TokenId], rows: Tensor<3>) {
        if !decoder.embedding.is_require_grad() {
            return;
        }
        let key = TensorKey::model(Role::Embedding);
        let [vocab_size, d_model] = decoder.embedding.dims();
        let table = self.by_key.remove(&key);
        #[cfg(feature = "flex")]
        let table = match crate::fused::scatter_add(table, vocab_size, tokens, &rows) {
            Ok(sum) => {
                self.by_key.insert(key, sum);
                return;
            }
            Err(table) => table,
        };
        let ids = token_tensor(tokens, 1, tokens.len(), &rows.device()).reshape([tokens.len()]);
        let table = match table {
            Some(table) => table.reshape([vocab_size, d_model]),
            None => Tensor::zeros([vocab_size, d_model], &rows.device()),
        };
        let rows = rows.reshape([tokens.len(), d_model]);
        let sum = table.select_assign(0, ids, rows, IndexingUpdateOp::Add);
        self.by_key.insert(key, sum.reshape([vocab_size * d_model]));
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
    #[cfg(feature = "flex")]
    if crate::fused::runs_on(&decoder.device()) {
        return match recompute {
            true => recomputed(decoder, tokens, batch, seq, loss),
            false => through_graph(decoder, tokens, batch, seq, loss),
        };
    }
    by_hand(decoder, tokens, [batch, seq], loss, recompute)
}

/// One graph from the embedding to the loss: for fused operations, which are few.
#[cfg(feature = "flex")]
fn through_graph<T>(
    decoder: &Decoder,
    tokens: &[TokenId],
    batch: usize,
    seq: usize,
    loss: impl FnOnce(Tensor<3>, Tensor<2>) -> (Tensor<1>, T),
) -> (f32, T, Grads) {
    let embedded = leaf(embed(decoder, tokens, batch, seq));
    let hidden = (0..decoder.blocks.len()).fold(embedded.clone(), |hidden, i| decoder.block(i, hidden));
    let (total, extra) = loss(decoder.final_norm(hidden), decoder.head());
    let value = scalar(&total);
    let mut left = total.backward();
    drop(total);
    let mut grads = Grads::default();
    grads.collect(decoder, decoder.keys().into_iter(), &mut left);
    if let Some(rows) = embedded.grad_remove(&mut left) {
        grads.add_embedded(decoder, tokens, rows);
    }
    (value, extra, grads)
}

/// The tokens' rows, without a graph: their gradient is added to the embedding's by hand, in its place.
fn embed(decoder: &Decoder, tokens: &[TokenId], batch: usize, seq: usize) -> Tensor<3> {
    let table = decoder.embedding.val().without_autodiff();
    let ids = token_tensor(tokens, 1, tokens.len(), &table.device()).reshape([tokens.len()]);
    table.select(0, ids).reshape([batch, seq, decoder.spec.d_model])
}

/// As [`through_graph`], keeping block inputs only: a backward pass for each block, last to first.
#[cfg(feature = "flex")]
fn recomputed<T>(
    decoder: &Decoder,
    tokens: &[TokenId],
    batch: usize,
    seq: usize,
    loss: impl FnOnce(Tensor<3>, Tensor<2>) -> (Tensor<1>, T),
) -> (f32, T, Grads) {
    let plain = decoder.for_evaluation();
    let mut inputs = vec![embed(&plain, tokens, batch, seq)];
    for index in 0..plain.blocks.len() {
        let output = plain.block(index, inputs[index].clone());
        inputs.push(output);
    }
    drop(plain);
    let mut grads = Grads::default();

    let (value, extra, mut flowing) = through_loss(decoder, last_of(&mut inputs), loss, &mut grads);

    for index in (0..decoder.blocks.len()).rev() {
        let input = leaf(last_of(&mut inputs));
        let Some(gradient) = flowing.take() else { break };
        let mut left = (decoder.block(index, input.clone()) * gradient).sum().backward();
        grads.collect(decoder, decoder.keys().into_iter().filter(|key| key.block == Some(index)), &mut left);
        flowing = input.grad_remove(&mut left);
    }
    if let Some(rows) = flowing {
        grads.add_embedded(decoder, tokens, rows);
    }
    (value, extra, grads)
}

/// Final norm and loss, there and back: the loss, what else it hands out, and the gradient of the last block's result.
fn through_loss<T>(
    decoder: &Decoder,
    hidden: Tensor<3>,
    loss: impl FnOnce(Tensor<3>, Tensor<2>) -> (Tensor<1>, T),
    grads: &mut Grads,
) -> (f32, T, Option<Tensor<3>>) {
    let last = leaf(hidden);
    let (total, extra) = loss(decoder.final_norm(last.clone()), decoder.head());
    let value = scalar(&total);
    let mut left = total.backward();
    drop(total);
    let outside = decoder.keys().into_iter().filter(|key| key.block.is_none());
    grads.collect(decoder, outside, &mut left);
    (value, extra, last.grad_remove(&mut left))
}

/// On devices without fused operations: each block forward and backward as [`by_hand`](crate::by_hand) has it.
fn by_hand<T>(
    decoder: &Decoder,
    tokens: &[TokenId],
    [batch, seq]: [usize; 2],
    loss: impl FnOnce(Tensor<3>, Tensor<2>) -> (Tensor<1>, T),
    recompute: bool,
) -> (f32, T, Grads) {
    enum Pass {
        Input(Box<Tensor<2>>),
        Kept(Box<by_hand::Kept>),
    }
    let plain = decoder.for_evaluation();
    let (spec, d_model) = (&plain.spec, plain.spec.d_model);
    let shared = by_hand::Shared::new(spec, &plain.rope.table(spec, seq), [batch, seq], &plain.device());
    let mut hidden = embed(&plain, tokens, batch, seq).reshape([batch * seq, d_model]);
    let mut passes = Vec::with_capacity(plain.blocks.len());
    for block in &plain.blocks {
        let (out, kept) = by_hand::forward(hidden.clone(), block, spec, &shared);
        passes.push(if recompute { Pass::Input(Box::new(hidden)) } else { Pass::Kept(Box::new(kept)) });
        hidden = out;
    }
    let mut grads = Grads::default();
    let hidden = hidden.reshape([batch, seq, d_model]);
    let (value, extra, flowing) = through_loss(decoder, hidden, loss, &mut grads);
    let mut flowing = flowing.map(|gradient| gradient.reshape([batch * seq, d_model]));
    for (index, (block, pass)) in plain.blocks.iter().zip(passes).enumerate().rev() {
        let Some(gradient) = flowing.take() else { break };
        let kept = match pass {
            Pass::Kept(kept) => *kept,
            Pass::Input(input) => by_hand::forward(*input, block, spec, &shared).1,
        };
        let (d_input, found) = by_hand::backward(kept, gradient, block, spec, &shared);
        for (role, part, gradient) in found {
            let key = TensorKey { block: Some(index), role, part };
            if decoder.parameter(key).is_some_and(Parameter::is_trainable) {
                grads.add(key, gradient);
            }
        }
        flowing = Some(d_input);
    }
    if let Some(rows) = flowing {
        grads.add_embedded(decoder, tokens, rows.reshape([batch, seq, d_model]));
    }
    (value, extra, grads)
}

#[cfg(feature = "flex")]
fn last_of(inputs: &mut Vec<Tensor<3>>) -> Tensor<3> {
    inputs.pop().expect("one input is kept for each block")
}

fn leaf(input: Tensor<3>) -> Tensor<3> {
    input.autodiff().require_grad()
}

fn sum_of_squares(gradient: &Tensor<1>) -> f64 {
    #[cfg(feature = "flex")]
    if let Some(sum) = crate::fused::sum_of_squares(gradient) {
        return sum;
    }
    f64::from(gradient.clone().powi_scalar(2).sum().into_scalar::<f32>())
}

fn sum(old: Tensor<1>, new: Tensor<1>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    return crate::fused::sum(old, new);
    #[cfg(not(feature = "flex"))]
    return old + new;
}
