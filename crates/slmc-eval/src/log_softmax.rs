//! Log-probabilities from logits: exponentials in f32 relative to the largest logit, sums in f64.

use slmc_blocks::widest;

/// `e^x` for `x <= 0`, within two units in the last place; below -87 it is as good as 0. Straight-line arithmetic, so that
/// loops over a vocabulary vectorize: Cody and Waite's reduction to `|r| <= ln 2 / 2`, then Taylor's polynomial, whose
/// first term left out is below 1e-8.
#[inline(always)]
pub(crate) fn exp_of_non_positive(x: f32) -> f32 {
    /// Adding and taking away 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let tail = r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)));
    let fraction = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + tail))));
    // The low bits of `shifted` are n; 2^n is n + 127 in the exponent's place.
    fraction * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// Partial sums that a row is spread over: fixed, so that the result does not depend on the machine.
const LANES: usize = 16;
/// Exponentials that are made before they are added, in chunks of as many as there are lanes.
const CHUNKS_AHEAD: usize = 32;

/// The logarithm of the sum of exponentials of a row; `None` if it holds NaN or infinity.
pub(crate) fn log_sum_exp(row: &[f32]) -> Option<f64> {
    widest(
        #[inline(always)]
        || {
            let max = finite_max(row)?;
            let mut sums = [0.0_f64; LANES];
            let (chunks, rest) = row.as_chunks::<LANES>();
            for &x in rest {
                sums[0] += f64::from(exp_of_non_positive(x - max));
            }
            // Each its own loop: together they would be compiled for registers of f64, half as many numbers at a time.
            let mut exponentials = [[0.0_f32; LANES]; CHUNKS_AHEAD];
            for chunks in chunks.chunks(CHUNKS_AHEAD) {
                let exponentials = &mut exponentials[..chunks.len()];
                for (made, &x) in exponentials.as_flattened_mut().iter_mut().zip(chunks.as_flattened()) {
                    *made = exp_of_non_positive(x - max);
                }
                for made in exponentials {
                    for (sum, &made) in sums.iter_mut().zip(&*made) {
                        *sum += f64::from(made);
                    }
                }
            }
            Some(f64::from(max) + sums.iter().sum::<f64>().ln())
        },
    )
}

/// The largest logit; `None` if the row is empty or holds NaN or infinity.
#[inline(always)]
fn finite_max(row: &[f32]) -> Option<f32> {
    // Lanes, and looking at all of them: so the loop vectorizes. As integers, what is not finite is the largest.
    let (mut lanes, mut magnitudes) = ([f32::NEG_INFINITY; LANES], [0_u32; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
            magnitudes[i] = magnitudes[i].max(chunk[i].to_bits() & 0x7fff_ffff);
        }
    }
    let finite =
        magnitudes.iter().all(|&x| f32::from_bits(x).is_finite()) && rest.iter().all(|x| x.is_finite());
    let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    (finite && !row.is_empty()).then_some(max)
}

/// The first of the largest logits; 0 where there is none.
pub(crate) fn argmax(row: &[f32]) -> usize {
    widest(
        #[inline(always)]
        || finite_max(row).and_then(|max| row.iter().position(|&x| x == max)).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_definition() {
        let row: Vec<f32> = (0..19).map(|i| ((i * 7) % 19) as f32 * 0.37 - 3.0).collect();
        let plain = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&row).unwrap() - plain).abs() < 1e-6);
    }

    #[test]
    fn the_exponential_is_the_exponential() {
        for i in 0..=8700 {
            let x = i as f32 * -0.01;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp_of_non_positive(x)) - expected).abs() / expected;
            assert!(error < 2.5e-7, "{x}: {error}");
        }
        assert_eq!(exp_of_non_positive(0.0), 1.0);
        assert!(exp_of_non_positive(-1e30) < 1e-37);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let expected = 1000.0 + 2.0_f64.ln();
        assert!((log_sum_exp(&[1000.0, 1000.0, -1000.0]).unwrap() - expected).abs() < 1e-9);
        assert_eq!(log_sum_exp(&[1.0, f32::NAN]), None);
        assert_eq!(log_sum_exp(&[1.0, f32::INFINITY]), None);
        assert_eq!(log_sum_exp(&[]), None);
    }

    #[test]
    fn the_first_of_equals_is_the_top() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        let mut row: Vec<f32> = (0..100).map(|i| ((i * 37) % 50) as f32).collect();
        assert_eq!(argmax(&row), 27);
        row[99] = 50.0;
        assert_eq!((argmax(&row), log_sum_exp(&row).is_some()), (99, true));
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            for at in [0, 17, 99] {
                let mut row = row.clone();
                row[at] = bad;
                assert_eq!(log_sum_exp(&row), None);
            }
        }
    }
}
