//! Loops compiled for the widest registers that the CPU has.

use pulp::{Arch, Simd, WithSimd};

/// Runs a loop; the closure must be `#[inline(always)]`. The bits are the same for all CPUs: nothing here fuses a product
/// with a sum, and each lane's sums have one order.
#[inline(always)]
pub(crate) fn widest<R>(work: impl FnOnce() -> R) -> R {
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
