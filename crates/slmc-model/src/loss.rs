//! Losses over the vocabulary, a chunk of tokens at a time: logits of a whole batch never exist.
//!
//! Gradients with respect to the hidden states and the head are computed in the forward pass, while a chunk's
//! logits are at hand (Liger kernels, arXiv:2410.10989, section 3.2).

use burn::tensor::{Device, Tensor, TensorData};
use slmc_ir::TokenId;
use slmc_kernels::{Distillation, Products};

use crate::{load::read_back, loss_composed};

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
/// position, `mask` its weight (1 when absent). The mean is over the weights' sum; all zero gives 0. On flex the products
/// are computed as `products` says.
///
/// # Panics
/// When `targets` or `mask` has not one entry a position.
pub fn next_token_loss(
    hidden: Tensor<3>,
    head: Tensor<2>,
    targets: &[TokenId],
    mask: Option<&[f32]>,
    products: Products,
) -> Tensor<1> {
    let rows = Rows::new(&hidden, targets, mask);
    #[cfg(feature = "flex")]
    if let Some(loss) = crate::fused::next_token(&hidden, &head, &rows, products) {
        return loss;
    }
    loss_composed::next_token(hidden, head, &rows)
}

/// Distillation: forward KL from the teacher at a temperature, mixed with cross entropy against the targets
/// (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2).
///
/// Hidden states are `[batch, seq, d_model]` (the teacher's without gradient; its `d_model` may differ), heads
/// `[vocab_size, d_model]`. When one vocabulary is padded, the rows that both have count. On flex the products are
/// computed as `products` says.
///
/// # Panics
/// When `targets` has not one entry a position, or the teacher's shape differs in batch or seq.
pub fn distillation_loss(
    student_hidden: Tensor<3>,
    student_head: Tensor<2>,
    teacher_hidden: Tensor<3>,
    teacher_head: Tensor<2>,
    targets: &[TokenId],
    settings: Distillation,
    products: Products,
) -> DistillationLoss {
    let rows = Rows::new(&student_hidden, targets, None);
    let hidden = [student_hidden, teacher_hidden];
    let heads = [student_head, teacher_head];
    #[cfg(feature = "flex")]
    if let Some((total, [kl, cross_entropy])) =
        crate::fused::distillation(&hidden, &heads, &rows, settings, products)
    {
        return DistillationLoss { total, kl, cross_entropy };
    }
    let (total, [kl, cross_entropy]) = loss_composed::distillation(hidden, heads, &rows, settings);
    DistillationLoss { total, kl, cross_entropy }
}

/// Targets and their weights, one a position.
pub(crate) struct Rows<'a> {
    pub n_rows: usize,
    pub targets: &'a [TokenId],
    mask: Option<&'a [f32]>,
    weight_sum: f64,
}

impl<'a> Rows<'a> {
    pub fn new(hidden: &Tensor<3>, targets: &'a [TokenId], mask: Option<&'a [f32]>) -> Self {
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
    pub fn weights(&self, start: usize, n_rows: usize) -> Vec<f32> {
        let share = |row: usize| {
            let weight = self.mask.map_or(1.0, |mask| f64::from(mask[row]));
            if self.weight_sum == 0.0 { 0.0 } else { (weight / self.weight_sum) as f32 }
        };
        (start..start + n_rows).map(share).collect()
    }

    /// The same as a column.
    pub fn weight_column(&self, start: usize, n_rows: usize, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.weights(start, n_rows), [n_rows, 1]), device)
    }
}

/// `[batch, seq, d_model]` to `[batch * seq, d_model]`.
pub(crate) fn flat(hidden: Tensor<3>) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    hidden.reshape([batch * seq, d_model])
}

/// The number in a loss.
pub(crate) fn scalar(loss: &Tensor<1>) -> f32 {
    read_back(loss.clone())[0]
}
