//! The losses from Burn's own operations, for devices without fused ones.

use burn::tensor::{Tensor, TensorData, activation};

use slmc_kernels::Distillation;

use crate::loss::{Rows, flat};

/// Tokens whose logits exist at the same time.
const CHUNK_TOKENS: usize = 256;

/// See [`crate::next_token_loss`].
pub(crate) fn next_token(hidden: Tensor<3>, head: Tensor<2>, rows: &Rows<'_>) -> Tensor<1> {
    let plain_head = head.clone().without_autodiff();
    let plain_hidden = flat(hidden.clone().without_autodiff());
    let mut sums = Sums::new(&plain_head);
    for (start, n_rows) in chunks(rows.n_rows) {
        let chunk = plain_hidden.clone().narrow(0, start, n_rows);
        let logits = chunk.clone().matmul(plain_head.clone().transpose());
        let (loss, gradient) = cross_entropy(activation::log_softmax(logits, 1), rows, start, n_rows);
        sums.loss += loss;
        sums.add(chunk, gradient, &plain_head);
    }
    sums.attach(hidden, head)
}

/// See [`crate::distillation_loss`]: the loss, mean KL and mean cross entropy.
pub(crate) fn distillation(
    [student_hidden, teacher_hidden]: [Tensor<3>; 2],
    [student_head, teacher_head]: [Tensor<2>; 2],
    rows: &Rows<'_>,
    settings: Distillation,
) -> (Tensor<1>, [f32; 2]) {
    let Distillation { temperature, alpha } = settings;
    let vocab_size = student_head.dims()[0].min(teacher_head.dims()[0]);
    let full_head = student_head.clone().without_autodiff();
    let plain_head = full_head.clone().narrow(0, 0, vocab_size);
    let plain_hidden = flat(student_hidden.clone().without_autodiff());
    let teacher_head = teacher_head.without_autodiff().narrow(0, 0, vocab_size);
    let teacher_hidden = flat(teacher_hidden.without_autodiff());
    let mut sums = Sums::new(&full_head);
    let (mut kl_sum, mut cross_entropy_sum) = (0.0_f64, 0.0_f64);
    for (start, n_rows) in chunks(rows.n_rows) {
        let chunk = plain_hidden.clone().narrow(0, start, n_rows);
        let logits = chunk.clone().matmul(plain_head.clone().transpose());
        let teacher_rows = teacher_hidden.clone().narrow(0, start, n_rows);
        let teacher_logits = teacher_rows.matmul(teacher_head.clone().transpose());
        let soft = activation::log_softmax(logits.clone() / temperature, 1);
        let soft_teacher = activation::log_softmax(teacher_logits / temperature, 1);
        let p_teacher = soft_teacher.clone().exp();
        let weights = rows.weight_column(start, n_rows, &p_teacher.device());
        let kl = (p_teacher.clone() * (soft_teacher - soft.clone())).sum_dim(1) * weights.clone();
        kl_sum += f64::from(kl.sum().into_scalar::<f32>());
        let kl_gradient = (soft.exp() - p_teacher) * (weights * (temperature * alpha));
        let (loss, gradient) = cross_entropy(activation::log_softmax(logits, 1), rows, start, n_rows);
        cross_entropy_sum += loss;
        sums.add(chunk, kl_gradient + gradient * (1.0 - alpha), &plain_head);
    }
    let t_squared = f64::from(temperature) * f64::from(temperature);
    sums.loss = f64::from(alpha) * t_squared * kl_sum + f64::from(1.0 - alpha) * cross_entropy_sum;
    (sums.attach(student_hidden, student_head), [kl_sum as f32, cross_entropy_sum as f32])
}

fn chunks(n_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n_rows).step_by(CHUNK_TOKENS).map(move |start| (start, CHUNK_TOKENS.min(n_rows - start)))
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
    let weights = rows.weight_column(start, n_rows, &device);
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
    d_head: Option<Tensor<2>>,
    head_shape: [usize; 2],
}

impl Sums {
    fn new(head: &Tensor<2>) -> Self {
        Self { loss: 0.0, d_hidden: Vec::new(), d_head: None, head_shape: head.dims() }
    }

    fn add(&mut self, hidden: Tensor<2>, d_logits: Tensor<2>, head: &Tensor<2>) {
        self.d_hidden.push(d_logits.clone().matmul(head.clone()));
        let update = d_logits.transpose().matmul(hidden);
        let [n_rows, _] = update.dims();
        let [vocab_size, d_model] = self.head_shape;
        let update = if n_rows == vocab_size {
            update
        } else {
            let rest = Tensor::zeros([vocab_size - n_rows, d_model], &update.device());
            Tensor::cat(vec![update, rest], 0)
        };
        // Moved out, so that the sum can take its place.
        self.d_head = match self.d_head.take() {
            Some(sum) => Some(sum + update),
            None => Some(update),
        };
    }

    /// A tensor with the loss's value, and with its gradients: `Σ x · g` has gradient `g` where `g` is
    /// constant, and taking away its own value leaves the loss's.
    fn attach(self, hidden: Tensor<3>, head: Tensor<2>) -> Tensor<1> {
        let d_head = self.d_head.unwrap_or_else(|| head.clone().without_autodiff().zeros_like());
        let d_hidden = Tensor::cat(self.d_hidden, 0).reshape(hidden.dims());
        let value = Tensor::from_data(TensorData::new(vec![self.loss as f32], [1]), &d_hidden.device());
        let linear = (hidden * d_hidden).sum() + (head * d_head).sum();
        let zero = linear.clone() - linear.detach();
        zero + value
    }
}
