//! How much a loss has fallen, row by row: an interval that the rows' own difficulty does not widen.

use serde::Serialize;
use slmc_model::RowLoss;

/// The normal distribution's two-sided 95 %.
const QUANTILE: f64 = 1.959_963_985;

/// The change of a held-out loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Nats a token before.
    pub before: f64,
    /// Nats a token after.
    pub after: f64,
    /// After less before.
    pub change: f64,
    /// The 95 % interval of the change: rows are drawn, and each has both losses (ratio estimator).
    pub interval: [f64; 2],
    /// Tokens measured on.
    pub tokens: u64,
}

impl Paired {
    /// Compares the losses of the same rows; `None` for fewer than two rows.
    pub fn of(before: &[RowLoss], after: &[RowLoss]) -> Option<Self> {
        let n_rows = before.len();
        let tokens: u64 = before.iter().map(|row| row.n_targets).sum();
        if n_rows < 2 || n_rows != after.len() || tokens == 0 {
            return None;
        }
        let sum = |rows: &[RowLoss]| rows.iter().map(|row| row.nll).sum::<f64>() / tokens as f64;
        let (before_mean, after_mean) = (sum(before), sum(after));
        let change = after_mean - before_mean;
        let square = |(b, a): (&RowLoss, &RowLoss)| (a.nll - b.nll - change * b.n_targets as f64).powi(2);
        let squares: f64 = before.iter().zip(after).map(square).sum();
        let error = (squares * n_rows as f64 / (n_rows - 1) as f64).sqrt() / tokens as f64;
        let interval = [change - QUANTILE * error, change + QUANTILE * error];
        Some(Self { before: before_mean, after: after_mean, change, interval, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_own_difficulty_does_not_count() {
        let row = |nll: f64, n_targets| RowLoss { nll, n_targets };
        let before: Vec<RowLoss> = (1..50_u32).map(|i| row(f64::from(i * i), 10)).collect();
        let after: Vec<RowLoss> = before.iter().map(|b| row(b.nll - 5.0, 10)).collect();
        let paired = Paired::of(&before, &after).unwrap();
        assert!((paired.change + 0.5).abs() < 1e-12);
        assert!(paired.interval[1] - paired.interval[0] < 1e-9, "every row changed by the same");
        assert!(Paired::of(&before[..1], &after[..1]).is_none());
    }

    #[test]
    fn the_interval_is_that_of_the_textbook() {
        // Equal weights: the mean of the differences and its standard error.
        let before = [0.0; 4].map(|nll| RowLoss { nll, n_targets: 1 });
        let after = [1.0, 2.0, 3.0, 4.0].map(|nll| RowLoss { nll, n_targets: 1 });
        let paired = Paired::of(&before, &after).unwrap();
        // Standard deviation √(5/3), over √4.
        let half = QUANTILE * (5.0_f64 / 3.0).sqrt() / 2.0;
        assert!((paired.interval[0] - (2.5 - half)).abs() < 1e-12);
        assert!((paired.interval[1] - (2.5 + half)).abs() < 1e-12);
    }
}
