//! Inner loops for the CPU: the only unsafe arithmetic.
//!
//! Plain functions on slices, each with its backward pass where it has one. All of them spread over rayon's
//! current pool in chunks whose bounds depend on the shapes only, and sum in a fixed order: the same inputs
//! give the same bits whatever the number of threads.
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

mod adamw;
mod amx;
mod attention;
mod between;
pub mod cached;
mod dispatch;
mod exp;
mod half;
mod heads;
mod loss;
mod matrix;
mod memory;
pub mod packed;
mod rms_norm;
mod rows;
mod swiglu;
mod team;

pub use adamw::{AdamWStep, adamw};
pub use attention::{AttentionShape, attention, attention_backward};
pub use between::{add, all_finite, norm_rows, rotate_heads, to_halves};
pub use half::{HalfRight, HalfUnits, Products, add_moments_half, multiply_half, multiply_in};
pub use heads::{from_heads, rotate, rotate_back, to_heads};
pub use loss::{Distillation, cross_entropy, distillation};
pub use matrix::{Matrix, MatrixMut, Update, multiply, multiply_one_thread};
pub use memory::{give_freed_memory_back, keep_freed_memory};
pub use rms_norm::{rms_norm, rms_norm_again, rms_norm_backward};
pub use rows::{add_assign, add_row, column_sums, gather_rows, scale, scatter_add_rows, sum_of_squares};
pub use swiglu::{swiglu, swiglu_backward};
pub use team::{Team, TeamError};

/// Numbers that one task of an element-wise loop handles. Fixed, so that sums do not depend on the threads.
pub(crate) const CHUNK: usize = 1 << 15;

/// Rows of `columns` numbers that one task handles: about [`CHUNK`] numbers.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    (CHUNK / columns.max(1)).max(1)
}

#[cfg(test)]
pub(crate) mod testing {
    /// Numbers between -1 and 1 from a counter: the same in every run.
    pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Largest difference, relative to the largest number expected.
    pub fn worst(found: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(1e-30_f64, |m, x| m.max(x.abs()));
        let worst = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - b).abs());
        worst.fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) }) / largest
    }

    /// Runs `f` on pools of one, two and five threads; the results must be the same bits.
    pub fn same_on_any_threads<T: PartialEq + std::fmt::Debug + Send>(f: impl Fn() -> T + Sync) -> T {
        let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
        let one = on(1);
        assert_eq!(one, on(2));
        assert_eq!(one, on(5));
        one
    }

    /// Central difference of `f` at each of `x`, in f64.
    pub fn slope(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let step = 1e-5;
        let at = |i: usize, by: f64| {
            let mut moved = x.to_vec();
            moved[i] += by;
            f(&moved)
        };
        (0..x.len()).map(|i| (at(i, step) - at(i, -step)) / (2.0 * step)).collect()
    }

    /// Widened copies.
    pub fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }
}
