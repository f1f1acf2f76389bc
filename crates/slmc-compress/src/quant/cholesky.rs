//! What the factors of both sides have in common: Cholesky's factor, and damping that grows until there is one.

use faer::{
    Mat, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::cholesky::llt,
    prelude::default,
};

use crate::CompressError;

/// Where damping begins to grow from when asked for less.
const SMALLEST_DAMPING: f64 = 1e-6;
/// Where it stops: at ten times the mean diagonal any such matrix is far from singular.
const LARGEST_DAMPING: f64 = 10.0;

/// What `factor` finds at this damping, or at the first of ten times as much, a hundred times, and so on, at which it finds
/// something; and that damping.
///
/// # Errors
/// When the damping asked for is no damping, or nothing is ever found.
pub(super) fn damped<T>(
    damping: f64,
    mut factor: impl FnMut(f64) -> Option<T>,
) -> Result<(T, f64), CompressError> {
    if !(damping.is_finite() && damping >= 0.0) {
        return Err(CompressError::Damping(damping));
    }
    let mut damping = damping;
    loop {
        if let Some(found) = factor(damping) {
            return Ok((found, damping));
        }
        if damping >= LARGEST_DAMPING {
            return Err(CompressError::Singular(damping));
        }
        damping = (damping * 10.0).max(SMALLEST_DAMPING);
    }
}

/// `L` lower triangular with `L Lᵀ` the `n` by `n` matrix with its rows and columns in reverse, or `None` where there is none.
/// Only `at(i, j)` with `i` at most `j` is meant.
pub(super) fn of_the_reverse(n: usize, at: impl Fn(usize, usize) -> f64) -> Option<Mat<f64>> {
    let mut lower = Mat::from_fn(n, n, |i, j| at(n - 1 - i, n - 1 - j));
    let scratch = llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    llt::factor::cholesky_in_place(lower.as_mut(), default(), Par::Seq, stack, default()).ok()?;
    Some(lower)
}
