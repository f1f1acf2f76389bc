//! The algebra that refits share, in f64.

use faer::{
    Accum, Conj, Mat, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{cholesky::llt, matmul::matmul},
    prelude::default,
};

/// Where damping begins to grow from when asked for less.
const SMALLEST_DAMPING: f64 = 1e-8;
/// Where it stops: at ten times the mean diagonal any Gram matrix is far from singular.
pub const LARGEST_DAMPING: f64 = 10.0;

/// The damping to try when one was too little; `None` when there is no more.
pub fn next_damping(damping: f64) -> Option<f64> {
    (damping < LARGEST_DAMPING).then(|| (damping * 10.0).max(SMALLEST_DAMPING))
}

/// `cross (gram + lambda I)^-1`, with lambda a share of the mean diagonal, or `None` when that matrix has no Cholesky
/// factor.
pub fn shift(gram: &Mat<f64>, cross: &Mat<f64>, damping: f64) -> Option<Mat<f64>> {
    let n = gram.nrows();
    let mean = (0..n).map(|i| gram[(i, i)]).sum::<f64>() / n as f64;
    let lambda = damping * mean;
    // Channels that were never active know nothing of the others: a row of the identity leaves them alone.
    let mut factor = Mat::from_fn(n, n, |i, j| {
        gram[(i, j)] + if i != j { 0.0 } else { lambda + f64::from(gram[(i, i)] == 0.0) }
    });
    let scratch = llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    llt::factor::cholesky_in_place(factor.as_mut(), default(), Par::Seq, stack, default()).ok()?;
    // (gram + lambda I) shift^T = cross^T
    let mut solution = cross.transpose().to_owned();
    llt::solve::solve_in_place_with_conj(factor.as_ref(), Conj::No, solution.as_mut(), Par::Seq, stack);
    let shift = solution.transpose().to_owned();
    shift.is_all_finite().then_some(shift)
}

pub fn product(left: &Mat<f64>, right: &Mat<f64>) -> Mat<f64> {
    let mut result = Mat::zeros(left.nrows(), right.ncols());
    matmul(result.as_mut(), Accum::Replace, left.as_ref(), right.as_ref(), 1.0, Par::Seq);
    result
}

/// Trace of `matrix gram matrix^T`: the squared norm of the matrix's outputs, summed over tokens.
pub fn quadratic(matrix: &Mat<f64>, gram: &Mat<f64>) -> f64 {
    inner(&product(matrix, gram), matrix)
}

/// Sum of products of the elements.
pub fn inner(left: &Mat<f64>, right: &Mat<f64>) -> f64 {
    (0..left.ncols()).map(|j| (0..left.nrows()).map(|i| left[(i, j)] * right[(i, j)]).sum::<f64>()).sum()
}
