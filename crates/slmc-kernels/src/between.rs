//! What an engine does between products: plain loops on slices of one thread, compiled for the widest registers that
//! the CPU has. The same bits on every instruction set.

use crate::dispatch::{dispatched, sum_pairs};

dispatched! {
    /// `sum += x`.
    pub fn add(sum: &mut [f32], x: &[f32]) {
        for (s, x) in sum.iter_mut().zip(x) {
            *s += x;
        }
    }
}

dispatched! {
    /// Whether no number is NaN or an infinity.
    pub fn all_finite(x: &[f32]) -> bool {
        // As integers, what is not finite is the largest.
        x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max) < f32::INFINITY.to_bits()
    }
}

dispatched! {
    /// Rotates each head of `2 · cos.len()` numbers, the two halves by the angles whose cosines and sines are given, and
    /// multiplies it by `factor` (arXiv:2104.09864).
    pub fn rotate_heads(heads: &mut [f32], cos: &[f32], sin: &[f32], factor: f32) {
        for head in heads.chunks_exact_mut((2 * cos.len()).max(1)) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = ((*a * cos - *b * sin) * factor, (*b * cos + *a * sin) * factor);
            }
        }
    }
}

dispatched! {
    /// `x / sqrt(mean(x²) + eps) · gain` of each row as long as the gain, in place (arXiv:1910.07467).
    pub fn norm_rows(rows: &mut [f32], gain: &[f32], eps: f32) {
        for row in rows.chunks_exact_mut(gain.len().max(1)) {
            let inverse = 1.0 / (sum_pairs(row, row, |a, b| a * b) / gain.len() as f32 + eps).sqrt();
            for (x, gain) in row.iter_mut().zip(gain) {
                *x = *x * inverse * gain;
            }
        }
    }
}

/// Rounds to half precision, ties to even, as [`slmc_blocks::f32_to_f16`].
///
/// # Panics
/// When the slices are not as long as each other.
pub fn to_halves(numbers: &[f32], halves: &mut [u16]) {
    assert_eq!(numbers.len(), halves.len(), "as many halves as numbers");
    #[cfg(target_arch = "x86_64")]
    if crate::dispatch::has_avx2_fma() {
        use std::arch::x86_64::{
            _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps,
        };

        #[target_feature(enable = "avx2,f16c")]
        fn convert(numbers: &[f32], halves: &mut [u16]) {
            let (numbers, rest) = numbers.as_chunks::<8>();
            let (eights, others) = halves.as_chunks_mut::<8>();
            for (numbers, halves) in numbers.iter().zip(eights) {
                // SAFETY: eight numbers are read and eight halves written.
                #[allow(unsafe_code)]
                unsafe {
                    let eight =
                        _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(numbers.as_ptr()));
                    _mm_storeu_si128(halves.as_mut_ptr().cast(), eight);
                }
            }
            rest.iter().zip(others).for_each(|(x, half)| *half = slmc_blocks::f32_to_f16(*x));
        }
        // SAFETY: the CPU has what the function is compiled for.
        #[allow(unsafe_code)]
        unsafe {
            convert(numbers, halves);
        }
        return;
    }
    numbers.iter().zip(halves).for_each(|(x, half)| *half = slmc_blocks::f32_to_f16(*x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;

    #[test]
    fn what_is_not_finite_is_found_wherever_it_is() {
        let mut x = numbers(37, 1);
        x[3] = -f32::MAX;
        assert!(all_finite(&x) && all_finite(&[]));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 36] {
                let held = std::mem::replace(&mut x[at], bad);
                assert!(!all_finite(&x), "{bad} at {at}");
                x[at] = held;
            }
        }
    }

    #[test]
    fn halves_are_those_of_one_number_at_a_time() {
        for n in [0, 1, 7, 8, 9, 64, 77] {
            let mut x = numbers(n, 1);
            let special =
                [0.0, -0.0, 65504.0, 65520.0, 1e9, -1e9, 6e-8, 2.9e-8, 1e-30, 0.333_333, f32::INFINITY];
            x.iter_mut().zip(special).for_each(|(x, special)| *x = special);
            let mut found = vec![0xAAAA; n];
            to_halves(&x, &mut found);
            assert_eq!(found, x.iter().map(|&x| slmc_blocks::f32_to_f16(x)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn loops_do_what_they_say() {
        let (cos, sin) = ([0.6_f32, 1.0, 0.0], [0.8_f32, 0.0, 1.0]);
        let mut heads = numbers(12, 2);
        let before = heads.clone();
        rotate_heads(&mut heads, &cos, &sin, 0.5);
        for h in 0..2 {
            for i in 0..3 {
                let (a, b) = (before[6 * h + i], before[6 * h + 3 + i]);
                assert_eq!(heads[6 * h + i], (a * cos[i] - b * sin[i]) * 0.5);
                assert_eq!(heads[6 * h + 3 + i], (b * cos[i] + a * sin[i]) * 0.5);
            }
        }
        let (mut rows, gain) = (numbers(2 * 37, 3), numbers(37, 4));
        let (mut expected, mut inverse) = (vec![0.0; rows.len()], vec![0.0; 2]);
        crate::rms_norm(&rows, &gain, 1e-5, &mut expected, &mut inverse);
        norm_rows(&mut rows, &gain, 1e-5);
        assert_eq!(rows, expected);
        add(&mut rows, &expected);
        assert!(rows.iter().zip(&expected).all(|(a, b)| *a == 2.0 * b));
    }
}
