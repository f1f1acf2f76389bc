//! A projection's matrix, plain or packed, and the low-rank factors beside it (LoRA, arXiv:2106.09685, section 4.1).
//!
//! The factors' part is two thin products each way. Their product `B · A` never exists, nor does the matrix's gradient.

use std::borrow::Cow;

use slmc_ir::Weight;
use slmc_kernels::{Matrix, MatrixMut, Update, multiply, scale};

/// A tensor's numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Numbers<'a> {
    Plain(&'a [f32]),
    /// As stored: decoded each time they are needed.
    Packed(&'a Weight),
}

impl<'a> Numbers<'a> {
    pub fn decoded(self) -> Cow<'a, [f32]> {
        match self {
            Self::Plain(numbers) => Cow::Borrowed(numbers),
            Self::Packed(weight) => {
                let decoded = slmc_blocks::decode_weight(weight);
                Cow::Owned(decoded.expect("a weight's lengths were checked when it was made"))
            }
        }
    }
}

/// The place of a projection among the projections, from its slot among the inputs.
pub(crate) const fn adapter_slot(slot: usize) -> usize {
    (slot - super::inputs::QUERY) / 2
}

/// Low-rank factors: `y += scale · (x · Aᵀ) · Bᵀ`. Sizes below are `[n, d_in, d_out]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FactorsRef<'a> {
    /// `[rank, d_in]`.
    pub a: &'a [f32],
    /// `[d_out, rank]`.
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

/// The gradients of the two factors.
#[derive(Clone, Debug)]
pub(crate) struct AdapterGradient {
    /// `[rank, d_in]`.
    pub a: Vec<f32>,
    /// `[d_out, rank]`.
    pub b: Vec<f32>,
}

impl FactorsRef<'_> {
    fn a(&self, d_in: usize) -> Matrix<'_> {
        Matrix::new(self.a, self.rank, d_in)
    }

    fn b(&self, d_out: usize) -> Matrix<'_> {
        Matrix::new(self.b, d_out, self.rank)
    }

    /// Adds the factors' part to `out`; hands out `scale · x · Aᵀ`, `[n, rank]`.
    pub fn forward(
        &self,
        x: &[f32],
        [n, d_in, d_out]: [usize; 3],
        out: &mut [f32],
        stride: usize,
    ) -> Vec<f32> {
        let mut low = vec![0.0; n * self.rank];
        let product = MatrixMut::new(&mut low, n, self.rank);
        multiply(Matrix::new(x, n, d_in), self.a(d_in).transposed(), product, Update::Set);
        scale(&mut low, self.scale);
        let out = MatrixMut::strided(out, n, d_out, stride);
        multiply(Matrix::new(&low, n, self.rank), self.b(d_out).transposed(), out, Update::Add);
        low
    }

    /// `scale · d_y · B`, `[n, rank]`: the gradient of `x · Aᵀ`.
    pub fn flow(&self, d_y: &[f32], stride: usize, [n, _, d_out]: [usize; 3]) -> Vec<f32> {
        let mut flowing = vec![0.0; n * self.rank];
        let product = MatrixMut::new(&mut flowing, n, self.rank);
        multiply(Matrix::strided(d_y, n, d_out, stride), self.b(d_out), product, Update::Set);
        scale(&mut flowing, self.scale);
        flowing
    }

    /// `d_x += flowing · A`.
    pub fn input_gradient(&self, flowing: &[f32], [n, d_in, _]: [usize; 3], d_x: &mut [f32]) {
        let flowing = Matrix::new(flowing, n, self.rank);
        multiply(flowing, self.a(d_in), MatrixMut::new(d_x, n, d_in), Update::Add);
    }

    /// `d_A = flowingᵀ · x` and `d_B = d_yᵀ · low`.
    pub fn gradient(
        &self,
        flowing: &[f32],
        low: &[f32],
        x: &[f32],
        d_y: &[f32],
        stride: usize,
        [n, d_in, d_out]: [usize; 3],
    ) -> AdapterGradient {
        let rank = self.rank;
        let (mut a, mut b) = (vec![0.0; rank * d_in], vec![0.0; d_out * rank]);
        let flowing = Matrix::new(flowing, n, rank).transposed();
        multiply(flowing, Matrix::new(x, n, d_in), MatrixMut::new(&mut a, rank, d_in), Update::Set);
        let d_y = Matrix::strided(d_y, n, d_out, stride).transposed();
        multiply(d_y, Matrix::new(low, n, rank), MatrixMut::new(&mut b, d_out, rank), Update::Set);
        AdapterGradient { a, b }
    }
}
