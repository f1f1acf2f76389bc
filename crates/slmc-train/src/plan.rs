//! How many steps, and the learning rate of each.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Budget, TrainSettings};

/// Steps run before a budget in minutes becomes a number of steps.
pub const TIMED_STEPS: u64 = 5;

/// Warm-up under a budget in minutes, until its steps are known.
const PROVISIONAL_WARMUP: u64 = 20;

/// A budget resolved into steps. Settled once in a run's life and kept in its checkpoints, so a resumed run
/// follows the very schedule of an unbroken one whatever the clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Steps of the whole run; unknown while the first steps of a budget in minutes are being timed.
    pub total_steps: Option<u64>,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
}

impl Plan {
    /// What the settings alone say.
    pub fn new(settings: &TrainSettings) -> Self {
        let total_steps = match settings.budget {
            Budget::Steps(steps) => Some(steps),
            Budget::Tokens(tokens) => Some(tokens.div_ceil(settings.tokens_per_step())),
            Budget::Minutes(_) => None,
        };
        let default = total_steps.map_or(PROVISIONAL_WARMUP, |total| (total / 20).clamp(1, 500));
        Self { total_steps, warmup_steps: settings.warmup_steps.unwrap_or(default) }
    }

    /// Settles a budget in minutes: `done` steps are done, a step takes `seconds_per_step` (its share of the
    /// evaluations included), and `seconds_left` remain. The run has at least the steps already done.
    pub fn resolve(&mut self, settings: &TrainSettings, done: u64, seconds_per_step: f64, seconds_left: f64) {
        // A clock that stands still gives no rate; the cast saturates, and 2^53 steps are more than any run has.
        let more = (seconds_left.max(0.0) / seconds_per_step.max(1e-9)).min((1_u64 << 53) as f64) as u64;
        let total = done + more;
        self.total_steps = Some(total);
        if settings.warmup_steps.is_none() {
            self.warmup_steps = PROVISIONAL_WARMUP.min((total / 10).max(TIMED_STEPS));
        }
    }

    /// Learning rate of step `step`, counted from 0: linear warm-up to `learning_rate`, then half a cosine that
    /// reaches the floor at the last step (SGDR without restarts, arXiv:1608.03983, equation 5).
    pub fn learning_rate(&self, settings: &TrainSettings, step: u64) -> f64 {
        let (peak, floor) = (settings.learning_rate, settings.floor());
        if step < self.warmup_steps {
            return peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let Some(total) = self.total_steps else { return peak };
        let n_decaying = total.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps + 1) as f64 / n_decaying as f64).min(1.0);
        floor + (peak - floor) * 0.5 * (1.0 + (PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn schedule_follows_the_closed_form() {
        let settings = TrainSettings {
            budget: Budget::Steps(110),
            learning_rate: 1.0,
            final_learning_rate: Some(0.2),
            warmup_steps: Some(10),
            ..Default::default()
        };
        let plan = Plan::new(&settings);
        let rate = |step| plan.learning_rate(&settings, step);
        close(rate(0), 0.1);
        close(rate(4), 0.5);
        close(rate(9), 1.0);
        close(rate(59), 0.6); // half-way: the mean of peak and floor
        close(rate(34), 0.6 + 0.4 * (PI / 4.0).cos());
        close(rate(109), 0.2);
        close(rate(500), 0.2);
    }

    #[test]
    fn tokens_round_up_to_whole_steps() {
        let settings = TrainSettings { budget: Budget::Tokens(2049), accumulate: 2, ..Default::default() };
        assert_eq!(settings.tokens_per_step(), 2048);
        assert_eq!(Plan::new(&settings), Plan { total_steps: Some(2), warmup_steps: 1 });
    }

    #[test]
    fn minutes_become_steps_once_timed() {
        let settings = TrainSettings { budget: Budget::Minutes(10.0), ..Default::default() };
        let mut plan = Plan::new(&settings);
        assert_eq!(plan.total_steps, None);
        close(plan.learning_rate(&settings, 1), 3e-4 * 2.0 / 20.0);
        plan.resolve(&settings, 5, 2.0, 590.0);
        assert_eq!(plan, Plan { total_steps: Some(300), warmup_steps: 20 });
        plan.resolve(&settings, 5, 30.0, -3.0);
        assert_eq!(plan, Plan { total_steps: Some(5), warmup_steps: 5 });
    }

    #[test]
    fn a_clock_that_stands_still_does_not_overflow() {
        let settings = TrainSettings { budget: Budget::Minutes(1.0), ..Default::default() };
        let mut plan = Plan::new(&settings);
        plan.resolve(&settings, 5, 0.0, 60.0);
        assert!(plan.total_steps.unwrap() > 1 << 30);
    }
}
