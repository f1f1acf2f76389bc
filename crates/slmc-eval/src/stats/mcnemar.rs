//! McNemar's test: of the items that two models answer differently, is it as often the one that is right as the other?

use serde::Serialize;

/// Largest number of differing items that is summed exactly.
const MAX_EXACT: u64 = 2000;

/// What came of the test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Items that only the first model has right.
    pub only_first: u64,
    /// Items that only the second model has right.
    pub only_second: u64,
    /// The probability of a split at least as uneven if both models were as good: two-sided, exact binomial; by the normal
    /// approximation with continuity correction above 2,000 differing items.
    pub p_value: f64,
}

/// Compares two models item by item (McNemar 1947; the exact form is a sign test on the items that differ).
pub fn mcnemar(only_first: u64, only_second: u64) -> McNemar {
    let n = only_first + only_second;
    let fewer = only_first.min(only_second);
    let p_value = if n == 0 {
        1.0
    } else if n <= MAX_EXACT {
        (2.0 * lower_tail(n, fewer)).min(1.0)
    } else {
        let apart = only_first.abs_diff(only_second) as f64;
        let z = (apart - 1.0).max(0.0) / (n as f64).sqrt();
        2.0 * super::distributions::normal_cdf(-z)
    };
    McNemar { only_first, only_second, p_value }
}

/// P(X <= k) of a binomial distribution with `n` tosses of a fair coin, summed in logarithms.
fn lower_tail(n: u64, k: u64) -> f64 {
    let mut log_choose = 0.0_f64;
    let log_half = n as f64 * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for i in 0..=k {
        if i > 0 {
            log_choose += ((n - i + 1) as f64).ln() - (i as f64).ln();
        }
        sum += (log_choose - log_half).exp();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // 1 of 6: 2 (1 + 6) / 64.
        assert!((mcnemar(1, 5).p_value - 14.0 / 64.0).abs() < 1e-12);
        assert_eq!(mcnemar(0, 0).p_value, 1.0);
        assert_eq!(mcnemar(7, 7).p_value, 1.0);
        assert!((mcnemar(0, 10).p_value - 2.0 / 1024.0).abs() < 1e-15);
    }

    #[test]
    fn the_approximation_takes_over_smoothly() {
        let (exact, normal) = (mcnemar(950, 1050).p_value, mcnemar(951, 1051).p_value);
        assert!((exact - normal).abs() < 2e-3, "{exact} {normal}");
    }
}
