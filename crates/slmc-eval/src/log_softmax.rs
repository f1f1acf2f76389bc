//! Log-probabilities from logits: exponentials in f32 relative to the largest logit, sums in f64.

/// Partial sums that a row is spread over: fixed, so that the result does not depend on the machine.
const LANES: usize = 8;

/// The logarithm of the sum of exponentials of a row; `None` if it holds NaN or infinity.
pub(crate) fn log_sum_exp(row: &[f32]) -> Option<f64> {
    let max = finite_max(row)?;
    let mut sums = [0.0_f64; LANES];
    let chunks = row.chunks_exact(LANES);
    for &x in chunks.remainder() {
        sums[0] += f64::from((x - max).exp());
    }
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from((x - max).exp());
        }
    }
    Some(f64::from(max) + sums.iter().sum::<f64>().ln())
}

/// The largest logit; `None` if the row is empty or holds NaN or infinity.
fn finite_max(row: &[f32]) -> Option<f32> {
    let finite = row.iter().all(|x| x.is_finite());
    if finite { row.iter().copied().reduce(f32::max) } else { None }
}

/// The first of the largest logits.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    best
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
    }
}
