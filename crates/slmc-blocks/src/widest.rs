//! Loops compiled for the widest registers of the CPU, without `unsafe` of ours.

use pulp::{Arch, Simd, WithSimd};

/// Runs a loop compiled for the widest registers that this CPU has; the closure must be `#[inline(always)]`, and so must what it
/// calls. The bits are the same for all as long as the loop itself fixes the order of its sums: nothing here adds up floats in
/// another order or fuses a product with a sum.
#[inline(always)]
pub fn widest<R>(work: impl FnOnce() -> R) -> R {
    /// Inlined into a function of the CPU's features, and with it what it calls.
    struct Work<F>(F);
    impl<R, F: FnOnce() -> R> WithSimd for Work<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Work(work))
}
