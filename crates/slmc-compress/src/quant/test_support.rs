//! Weights and second moments to test solvers on.

use ndarray::Array2;

use super::Hessian;
use crate::LayerStats;

/// Numbers without a pattern.
pub(super) fn numbers(rows: usize, columns: usize, seed: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| {
        let x = ((i * 7919 + j * 104_729 + seed * 1_299_709) as f32 * 0.61803).sin();
        x * x * x * (1.0 + (j % 7) as f32 / 3.0)
    })
}

/// Second moments of channels that share causes, as a layer's inputs and its outputs' gradients do.
pub(super) fn moments(n: usize, seed: usize) -> Hessian {
    let causes = numbers(400, n / 4, seed);
    let seen = Array2::from_shape_fn((400, n), |(t, c)| {
        causes[[t, c % (n / 4)]] + 0.5 * causes[[t, (c * 5 + 1) % (n / 4)]]
    });
    let mut hessian = Hessian::empty(n);
    hessian.observe((&seen + &(numbers(400, n, seed + 1) * 0.1)).view());
    hessian
}
