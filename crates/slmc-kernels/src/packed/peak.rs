//! The CPU's own bound, for benchmarks: byte products in registers, nothing read or written.

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};
use super::{
    select::Isa,
    simd::{ROWS, Simd},
};

/// Chains that hide the instruction's latency at any width.
const CHAINS: usize = 12;

/// Does `rounds` rounds of the byte products that the kernels are made of, with the fastest instruction set that the
/// CPU has, on the calling thread; returns the multiplications and additions done. Time it on every thread at once.
pub fn byte_products(rounds: u32) -> u64 {
    match Isa::best() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the value proves that the CPU has what the function is compiled for.
        #[allow(unsafe_code)]
        Isa::Avx512(s) => unsafe { avx512(s, rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        #[allow(unsafe_code)]
        Isa::Avx2(s) => unsafe { avx2(s, rounds) },
        Isa::Portable(s) => chains(s, rounds),
    }
    u64::from(rounds) * (CHAINS * ROWS * 4 * 2) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn avx512(s: Avx512, rounds: u32) {
    chains(s, rounds);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(s: Avx2, rounds: u32) {
    chains(s, rounds);
}

#[inline(always)]
fn chains<S: Simd>(s: S, rounds: u32) {
    let levels = s.load_bytes(&black_box([1; 64]));
    let x = s.splat_bytes(black_box([1, 2, 1, 3]));
    // Each begins elsewhere, or the compiler would do one for all.
    let mut sums = [s.splat_int(0); CHAINS];
    for (sum, first) in sums.iter_mut().zip(black_box([0; CHAINS])) {
        *sum = s.splat_int(first);
    }
    for _ in 0..black_box(rounds) {
        for sum in &mut sums {
            *sum = s.dot::<false>(*sum, levels, x);
        }
    }
    let mut out = [0; ROWS];
    for sum in sums {
        s.store_ints(sum, &mut out);
        black_box(&out);
    }
}
