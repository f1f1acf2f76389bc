//! Losses over the vocabulary, a chunk of tokens at a time: logits of a whole batch never exist.
//!
//! Gradients with respect to the hidden states and the head are computed in the forward pass, while a chunk's
//! logits are at hand (Liger kernels, arXiv:2410.10989, section 3.2).

use burn::tensor::{Tensor, TensorData, activation};
use slmc_ir::TokenId;

use crate::load::read_back;

/// Tokens whose logits exist at the same time.
const CHUNK_TOKENS: usize = 256;

/// What distillation reports.
#[derive(Clone, Debug)]
pub struct DistillationLoss {
    /// `alpha · T² · KL + (1 - alpha) · cross entropy`, to call `backward` on; `[1]`.
    pub total: Tensor<1>,
    /// Mean `KL(teacher ‖ student)` at the temperature, in nats a token, before the factor `T²`.
    pub kl: f32,
    /// Mean cross entropy against the targets at temperature 1, in nats a token.
    pub cross_entropy: f32,
}

/// Mean cross entropy of the next token, in nats: `[1]`, to call `backward` on.
///
/// `hidden` is `[batch, seq, d_model]`, `head` `[vocab_size, d_model]`; `targets` holds one token for each
/// position, `mask` its weight (1 when absent). The mean is over the weights' sum; all zero gives 0.
///
/// # Panics
/// When `targets` or `mask` has not one entry a position.
pub fn next_token_loss(
    hidden: Tensor<3>,
    head: Tensor<2>,
    targets: &[TokenId],
    mask: Option<&[f32]>,
) -> Tensor<1> {
    let rows = Rows::new(&hidden, targets, mask);
    let plain_head = head.clone().without_autodiff();
    let plain_hidden = flat(hidden.clone().without_autodiff());
    let mut sums = Sums::new(&plain_hidden, &plain_head);
    for (start, n_rows) in chunks(rows.n_rows) {
        let chunk = plain_hidden.clone().narrow(0, start, n_rows);
        let logits = chunk.clone().matmul(plain_head.clone().transpose());
        let log_probabilities = activation::log_softmax(logits, 1);
        let (loss, gradient) = cross_entropy(log_probabilities, &rows, start, n_rows);
        sums.loss += loss;
        sums.add(chunk, gradient, &plain_head);
    }
    sums.attach(hidden, head)
}

/// Distillation: forward KL from the teacher at a temperature, mixed with cross entropy against the targets
/// (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2).
///
/// Hidden states are `[batch, seq, d_model]` (the teacher's without gradient; its `d_model` may differ), heads
/// `[vocab_size, d_model]`. When one vocabulary is padded, the rows that both have count.
///
/// # Panics
/// When `targets` has not one entry a position, or the teacher's shape differs in batch or seq.
pub fn distillation_loss(
    student_hidden: Tensor<3>,
    student_head: Tensor<2>,
    teacher_hidden: Tensor<3>,
    teacher_head: Tensor<2>,
    targets: &[TokenId],
    temperature: f32,
    alpha: f32,
) -> DistillationLoss {
    let rows = Rows::new(&student_hidden, targets, None);
    let vocab_size = student_head.dims()[0].min(teacher_head.dims()[0]);
    let full_head = student_head.clone().without_autodiff();
    let plain_head = full_head.clone().narrow(0, 0, vocab_size);
    let plain_hidden = flat(student_hidden.clone().without_autodiff());
    let teacher_head = teacher_head.without_autodiff().narrow(0, 0, vocab_size);
    let teacher_hidden = flat(teacher_hidden.without_autodiff());
    let mut sums = Sums::new(&plain_hidden, &full_head);
    let (mut kl_sum, mut cross_entropy_sum) = (0.0_f64, 0.0_f64);
    for (start, n_rows) in chunks(rows.n_rows) {
        let chunk = plain_hidden.clone().narrow(0, start, n_rows);
        let logits = chunk.clone().matmul(plain_head.clone().transpose());
        let teacher_rows = teacher_hidden.clone().narrow(0, start, n_rows);
        let teacher_logits = teacher_rows.matmul(teacher_head.clone().transpose());
        let soft = activation::log_softmax(logits.clone() / temperature, 1);
        let soft_teacher = activation::log_softmax(teacher_logits / temperature, 1);
        let p_teacher = soft_teacher.clone().exp();
        let kl = p_teacher.clone() * (soft_teacher - soft.clone());
        kl_sum += f64::from(kl.sum().into_scalar::<f32>()) / rows.weight_sum;
        let kl_gradient = (soft.exp() - p_teacher) * (temperature * alpha / rows.weight_sum as f32);
        let (loss, gradient) = cross_entropy(activation::log_softmax(logits, 1), &rows, start, n_rows);
        cross_entropy_sum += loss;
        sums.add(chunk, kl_gradient + gradient * (1.0 - alpha), &plain_head);
    }
    let t_squared = f64::from(temperature) * f64::from(temperature);
    sums.loss = f64::from(alpha) * t_squared * kl_sum + f64::from(1.0 - alpha) * cross_entropy_sum;
    let total = sums.attach(student_hidden, student_head);
    DistillationLoss { total, kl: kl_sum as f32, cross_entropy: cross_entropy_sum as f32 }
}

/// Targets and their weights, one a position.
struct Rows<'a> {
    n_rows: usize,
    targets: &'a [TokenId],
    mask: Option<&'a [f32]>,
    weight_sum: f64,
}

impl<'a> Rows<'a> {
    fn new(hidden: &Tensor<3>, targets: &'a [TokenId], mask: Option<&'a [f32]>) -> Self {
        let [batch, seq, _] = hidden.dims();
        assert_eq!(targets.len(), batch * seq, "one target a position");
        assert!(mask.is_none_or(|mask| mask.len() == targets.len()), "one weight a position");
        let weight_sum = match mask {
            Some(mask) => mask.iter().map(|&w| f64::from(w)).sum(),
            None => targets.len() as f64,
        };
        Self { n_rows: batch * seq, targets, mask, weight_sum }
    }

    /// Weights of a chunk's rows, divided by the sum of all.
    fn weights(&self, start: usize, n_rows: usize) -> Vec<f32> {
        let share = |row: usize| {
            let weight = self.mask.map_or(1.0, |mask| f64::from(mask[row]));
            if self.weight_sum == 0.0 { 0.0 } else { (weight / self.weight_sum) as f32 }
        };
        (start..start + n_rows).map(share).collect()
    }
}

fn chunks(n_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n_rows).step_by(CHUNK_TOKENS).map(move |start| (start, CHUNK_TOKENS.min(n_rows - start)))
}

fn flat(hidden: Tensor<3>) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    hidden.reshape([batch * seq, d_model])
}

/// A chunk's weighted cross entropy and its gradient with respect to the logits.
fn cross_entropy(
    log_probabilities: Tensor<2>,
    rows: &Rows<'_>,
    start: usize,
    n_rows: usize,
) -> (f64, Tensor<2>) {
    let device = log_probabilities.device();
    let ids: Vec<i32> = rows.targets[start..start + n_rows].iter().map(|id| id.cast_signed()).collect();
    let index = Tensor::<2, burn::tensor::Int>::from_data(TensorData::new(ids, [n_rows, 1]), &device);
    let weights: Tensor<2> =
        Tensor::from_data(TensorData::new(rows.weights(start, n_rows), [n_rows, 1]), &device);
    let picked = log_probabilities.clone().gather(1, index.clone());
    let loss = -(picked * weights.clone()).sum().into_scalar::<f32>();
    let gradient = log_probabilities.exp() * weights.clone();
    let gradient = gradient.scatter(1, index, -weights, burn::tensor::IndexingUpdateOp::Add);
    (f64::from(loss), gradient)
}

/// A loss that is being summed, and its gradients.
struct Sums {
    loss: f64,
    d_hidden: Vec<Tensor<2>>,
    d_head: Tensor<2>,
}

impl Sums {
    fn new(_hidden: &Tensor<2>, head: &Tensor<2>) -> Self {
        Self { loss: 0.0, d_hidden: Vec::new(), d_head: head.zeros_like() }
    }

    fn add(&mut self, hidden: Tensor<2>, d_logits: Tensor<2>, head: &Tensor<2>) {
        self.d_hidden.push(d_logits.clone().matmul(head.clone()));
        let update = d_logits.transpose().matmul(hidden);
        let [n_rows, _] = update.dims();
        let [vocab_size, d_model] = self.d_head.dims();
        let sum = self.d_head.clone().narrow(0, 0, n_rows) + update;
        self.d_head = if n_rows == vocab_size {
            sum
        } else {
            let rest = Tensor::zeros([vocab_size - n_rows, d_model], &sum.device());
            Tensor::cat(vec![sum, rest], 0)
        };
    }

    /// A tensor with the loss's value, and with its gradients: `Σ x · g` has gradient `g` where `g` is
    /// constant, and taking away its own value leaves the loss's.
    fn attach(self, hidden: Tensor<3>, head: Tensor<2>) -> Tensor<1> {
        let d_hidden = Tensor::cat(self.d_hidden, 0).reshape(hidden.dims());
        let value = Tensor::from_data(TensorData::new(vec![self.loss as f32], [1]), &d_hidden.device());
        let linear = (hidden * d_hidden).sum() + (head * self.d_head).sum();
        let zero = linear.clone() - linear.detach();
        zero + value
    }
}

/// The number in a loss.
pub(crate) fn scalar(loss: &Tensor<1>) -> f32 {
    read_back(loss.clone())[0]
}
