//! The machine's own bounds, for benchmarks: byte products in registers, nothing read or written; and memory read from end
//! to end, nothing done with it.

use std::hint::black_box;

use memmap2::{MmapMut, MmapOptions};

use crate::Team;

#[cfg(target_arch = "x86_64")]
use super::int8_tiles;
#[cfg(target_arch = "aarch64")]
use super::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};
use super::{
    select::Isa,
    simd::{ROWS, Simd, portable::Portable},
};

/// Chains that hide the instructions' latency at any width.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;
/// As many as there are registers for where they are few.
const FEW_CHAINS: usize = 6;

/// Does `rounds` rounds of the byte products that the kernels are made of, with the fastest instruction set that the
/// CPU has, on the calling thread; returns the multiplications and additions done. Time it on every thread at once.
pub fn byte_products(rounds: u32) -> u64 {
    let n_chains = match Isa::best() {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx(_, tiles) => {
            return u64::from(rounds) * int8_tiles::products_in_tiles(tiles, rounds) as u64;
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the value proves that the CPU has what the function is compiled for.
        #[allow(unsafe_code)]
        Isa::Avx512(s) => unsafe { avx512(s, rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        #[allow(unsafe_code)]
        Isa::Avx2(s) => unsafe { avx2(s, rounds) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        #[allow(unsafe_code)]
        Isa::Neon(s) => unsafe { neon(s, rounds) },
        Isa::Portable(s) => chains::<Portable, FEW_CHAINS>(s, rounds),
    };
    u64::from(rounds) * (n_chains * ROWS * 4 * 2) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn avx512(s: Avx512, rounds: u32) -> usize {
    chains::<Avx512, CHAINS>(s, rounds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(s: Avx2, rounds: u32) -> usize {
    chains::<Avx2, FEW_CHAINS>(s, rounds)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn neon(s: Neon, rounds: u32) -> usize {
    chains::<Neon, FEW_CHAINS>(s, rounds)
}

/// Returns the number of chains.
#[inline(always)]
fn chains<S: Simd, const N: usize>(s: S, rounds: u32) -> usize {
    let levels = s.load_bytes(&black_box([1; 64]));
    let x = s.splat_bytes(black_box([1, 2, 1, 3]));
    // Each begins elsewhere, or the compiler would do one for all.
    let mut sums = [s.begin(s.splat_int(0)); N];
    for (sum, first) in sums.iter_mut().zip(black_box([0; N])) {
        *sum = s.begin(s.splat_int(first));
    }
    for _ in 0..black_box(rounds) {
        for sum in &mut sums {
            // Short sums overflow, which costs nothing and means nothing here.
            *sum = s.accumulate(*sum, levels, x);
        }
    }
    let mut out = [0; ROWS];
    for sum in sums {
        s.store_ints(s.finish(s.splat_int(0), sum), &mut out);
        black_box(&out);
    }
    N
}

/// Memory to be read, as the weights' is: in huge pages where the system has them.
#[derive(Debug)]
pub struct Sweep(MmapMut);

impl Sweep {
    /// `n_bytes` that are there, and more than the caches hold if they are to be a bound.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn new(n_bytes: usize) -> std::io::Result<Self> {
        let mut memory = MmapOptions::new().len(n_bytes).map_anon()?;
        // Without huge pages it is slower, as the weights are.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        memory.fill(1);
        Ok(Self(memory))
    }

    /// Reads it once, on all threads of a team. Time it.
    pub fn read(&self, team: &Team) {
        /// Words of a task.
        const PIECE: usize = 1 << 15;
        let words = self.0.as_chunks::<8>().0;
        team.run(words.len().div_ceil(PIECE), &|task| {
            let words = &words[task * PIECE..words.len().min((task + 1) * PIECE)];
            let mut sums = [0_u64; 32];
            for words in words.as_chunks::<32>().0 {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum ^= u64::from_le_bytes(*word);
                }
            }
            black_box(sums);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_can_be_had() {
        // Rounds times chains, rows, columns, and two operations each.
        let per_round = byte_products(1);
        assert!(per_round.is_multiple_of(128) && byte_products(10) == 10 * per_round);
        Sweep::new(100_000).unwrap().read(&Team::new(2).unwrap());
    }
}
