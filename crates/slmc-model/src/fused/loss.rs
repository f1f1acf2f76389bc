//! Head, softmax and loss in one operation, a chunk of tokens at a time.

use std::cell::OnceCell;

use burn::tensor::Tensor;
use slmc_kernels::{
    Distillation, HalfRight, Matrix, MatrixMut, Products, Update, multiply, multiply_half, multiply_in,
};

use super::{
    FlexTensor,
    loss_op::{LossGradients, attach},
    numbers, plain,
};
use crate::loss::{Rows, flat};

/// Logits that exist at the same time, at least 64 rows of them: 64 MiB.
const CHUNK_LOGITS: usize = 1 << 24;
const CHUNK_ROWS: usize = 64;

/// Cross entropy on flex; `None` on other devices.
pub(crate) fn next_token(
    hidden: &Tensor<3>,
    head: &Tensor<2>,
    rows: &Rows<'_>,
    products: Products,
) -> Option<Tensor<1>> {
    let mut student = Side::new(hidden, head, head.dims()[0], products)?;
    let mut sums = Sums::new(&student, hidden, head);
    let mut sum = 0.0;
    for (start, n) in chunks(rows.n_rows, student.vocab_size) {
        student.logits(start, n);
        let (weights, mut losses) = (rows.weights(start, n), vec![0.0; n]);
        slmc_kernels::cross_entropy(
            &mut student.logits,
            &rows.targets[start..start + n],
            &weights,
            &mut losses,
        );
        sum += weights.iter().zip(&losses).map(|(&w, &l)| f64::from(w) * f64::from(l)).sum::<f64>();
        sums.add(&student, start, n);
    }
    Some(attach(sum as f32, hidden.clone(), head.clone(), sums.gradients))
}

/// Distillation on flex, with mean KL and mean cross entropy; `None` on other devices.
pub(crate) fn distillation(
    [student_hidden, teacher_hidden]: &[Tensor<3>; 2],
    [student_head, teacher_head]: &[Tensor<2>; 2],
    rows: &Rows<'_>,
    settings: Distillation,
    products: Products,
) -> Option<(Tensor<1>, [f32; 2])> {
    let vocab_size = student_head.dims()[0].min(teacher_head.dims()[0]);
    let mut student = Side::new(student_hidden, student_head, vocab_size, products)?;
    let mut teacher = Side::new(teacher_hidden, teacher_head, vocab_size, products)?;
    let mut sums = Sums::new(&student, student_hidden, student_head);
    let [mut kl_sum, mut cross_entropy_sum] = [0.0_f64; 2];
    for (start, n) in chunks(rows.n_rows, vocab_size) {
        student.logits(start, n);
        teacher.logits(start, n);
        let (weights, mut losses) = (rows.weights(start, n), vec![[0.0; 2]; n]);
        let targets = &rows.targets[start..start + n];
        slmc_kernels::distillation(
            &mut student.logits,
            &teacher.logits,
            targets,
            &weights,
            settings,
            &mut losses,
        );
        for (&weight, &[kl, cross_entropy]) in weights.iter().zip(&losses) {
            kl_sum += f64::from(weight) * f64::from(kl);
            cross_entropy_sum += f64::from(weight) * f64::from(cross_entropy);
        }
        sums.add(&student, start, n);
    }
    let [t, alpha] = [settings.temperature, settings.alpha].map(f64::from);
    let total = alpha * t * t * kl_sum + (1.0 - alpha) * cross_entropy_sum;
    let total = attach(total as f32, student_hidden.clone(), student_head.clone(), sums.gradients);
    Some((total, [kl_sum as f32, cross_entropy_sum as f32]))
}

/// Rows `start..start + n` of the logits of these hidden states, in row order; `None` on other devices.
pub(crate) fn logits(hidden: &Tensor<3>, head: &Tensor<2>, start: usize, n: usize) -> Option<Vec<f32>> {
    let mut side = Side::new(hidden, head, head.dims()[0], Products::Single)?;
    side.logits(start, n);
    Some(side.logits)
}

fn chunks(n_rows: usize, vocab_size: usize) -> impl Iterator<Item = (usize, usize)> {
    let n = (CHUNK_LOGITS / vocab_size).max(CHUNK_ROWS);
    (0..n_rows).step_by(n).map(move |start| (start, n.min(n_rows - start)))
}

/// One model's hidden states and head, and a chunk of its logits.
struct Side {
    hidden: FlexTensor,
    head: FlexTensor,
    d_model: usize,
    vocab_size: usize,
    logits: Vec<f32>,
    products: Products,
    /// The head as products in bf16 take it: transposed for logits, and as it is for the way back. Laid out once for
    /// all chunks.
    half_heads: [OnceCell<HalfRight>; 2],
}

impl Side {
    fn new(hidden: &Tensor<3>, head: &Tensor<2>, vocab_size: usize, products: Products) -> Option<Self> {
        let d_model = head.dims()[1];
        let (hidden, head) = (plain(flat(hidden.clone().without_autodiff()))?, plain(head.clone())?);
        Some(Self {
            hidden,
            head,
            d_model,
            vocab_size,
            logits: Vec::new(),
            products,
            half_heads: Default::default(),
        })
    }

    /// `out = a · headᵀ`, or `out = a · head`.
    fn times_head(&self, a: Matrix<'_>, transposed: bool, out: MatrixMut<'_>) {
        let head = if transposed { self.head().transposed() } else { self.head() };
        match self.products {
            Products::Single => multiply(a, head, out, Update::Set),
            Products::Half(units) => {
                let half = &self.half_heads[usize::from(transposed)];
                multiply_half(a, half.get_or_init(|| HalfRight::new(units, head)), out, Update::Set);
            }
        }
    }

    fn chunk(&self, start: usize, n: usize) -> Matrix<'_> {
        Matrix::new(&numbers(&self.hidden)[start * self.d_model..], n, self.d_model)
    }

    fn head(&self) -> Matrix<'_> {
        Matrix::new(numbers(&self.head), self.vocab_size, self.d_model)
    }

    fn logits(&mut self, start: usize, n: usize) {
        let mut logits = std::mem::take(&mut self.logits);
        logits.resize(n * self.vocab_size, 0.0);
        let out = MatrixMut::new(&mut logits, n, self.vocab_size);
        self.times_head(self.chunk(start, n), true, out);
        self.logits = logits;
    }
}

/// Gradients under way; nothing is computed for a tensor outside the graph.
struct Sums {
    gradients: LossGradients,
}

impl Sums {
    fn new(student: &Side, hidden: &Tensor<3>, head: &Tensor<2>) -> Self {
        let zeros = |tracked: bool, like: &FlexTensor| {
            if tracked { vec![0.0; numbers(like).len()] } else { Vec::new() }
        };
        let hidden = zeros(is_tracked(hidden), &student.hidden);
        Self { gradients: LossGradients { hidden, head: zeros(is_tracked(head), &student.head) } }
    }

    /// Adds a chunk, whose logits have become their gradients.
    fn add(&mut self, student: &Side, start: usize, n: usize) {
        let d_logits = Matrix::new(&student.logits, n, student.vocab_size);
        let d_model = student.d_model;
        if !self.gradients.hidden.is_empty() {
            let rows = &mut self.gradients.hidden[start * d_model..(start + n) * d_model];
            student.times_head(d_logits, false, MatrixMut::new(rows, n, d_model));
        }
        if !self.gradients.head.is_empty() {
            let out = MatrixMut::new(&mut self.gradients.head, student.vocab_size, d_model);
            let chunk = student.chunk(start, n);
            multiply_in(student.products, d_logits.transposed(), chunk, out, Update::Add);
        }
    }
}

fn is_tracked<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.is_autodiff() && tensor.is_tracked()
}
