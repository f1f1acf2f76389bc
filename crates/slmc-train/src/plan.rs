//! How many steps, and the learning rate of each.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Budget, TrainSettings};

/// Steps run before a budget in minutes becomes a number of steps.
pub const TIMED_STEPS: u64 = 5;

/// How often a budget in minutes is looked at again: after each third of the steps but the last. A machine that others use,
/// too, is seldom as fast throughout as over its first steps.
const REVISIONS: u64 = 2;

/// A revision that changes the steps by a smaller share leaves them as they are.
const WORTH_REVISING: f64 = 0.01;

/// Warm-up under a budget in minutes, until its steps are known.
const PROVISIONAL_WARMUP: u64 = 20;

/// A budget resolved into steps, and kept in a run's checkpoints: a resumed run follows the schedule of the one that was
/// interrupted. With steps or tokens it is settled from the start. With minutes the clock settles it, over the first steps,
/// and revises it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Steps of the whole run; unknown while the first steps of a budget in minutes are being timed.
    pub total_steps: Option<u64>,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// How often a budget in minutes was looked at again.
    #[serde(default)]
    pub n_revisions: u64,
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
        Self { total_steps, warmup_steps: settings.warmup_steps.unwrap_or(default), n_revisions: 0 }
    }

    /// Settles a budget in minutes: `done` steps are done, a step takes `seconds_per_step` (its share of the
    /// evaluations included), and `seconds_left` remain. The run has at least the steps already done.
    pub fn resolve(&mut self, settings: &TrainSettings, done: u64, seconds_per_step: f64, seconds_left: f64) {
        let total = done + steps_in(seconds_left, seconds_per_step);
        self.total_steps = Some(total);
        if settings.warmup_steps.is_none() {
            self.warmup_steps = PROVISIONAL_WARMUP.min((total / 10).max(TIMED_STEPS));
        }
    }

    /// Whether it is time to look again at a budget in minutes that was settled, after `done` steps.
    pub fn revision_is_due(&self, settings: &TrainSettings, done: u64) -> bool {
        let (Budget::Minutes(_), Some(total)) = (settings.budget, self.total_steps) else { return false };
        // A checkpoint may say anything.
        let third = |n: u64| total.saturating_mul(n).div_ceil(REVISIONS + 1);
        self.n_revisions < REVISIONS && (third(self.n_revisions + 1)..total).contains(&done)
    }

    /// Looks again at a budget in minutes, as [`resolve`](Self::resolve) does; whether that changes the steps.
    pub fn revise(&mut self, done: u64, seconds_per_step: f64, seconds_left: f64) -> bool {
        self.n_revisions += 1;
        let old = self.total_steps.unwrap_or(done);
        let new = done + steps_in(seconds_left, seconds_per_step);
        let changes = old.abs_diff(new) as f64 > WORTH_REVISING * old as f64;
        if changes {
            self.total_steps = Some(new);
        }
        changes
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

/// Whole steps that fit into some seconds.
fn steps_in(seconds: f64, seconds_per_step: f64) -> u64 {
    // A clock that stands still gives no rate; the cast saturates, and 2^53 steps are more than any run has.
    (seconds.max(0.0) / seconds_per_step.max(1e-9)).min((1_u64 << 53) as f64) as u64
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
        assert_eq!(Plan::new(&settings), Plan { total_steps: Some(2), warmup_steps: 1, n_revisions: 0 });
    }

    #[test]
    fn minutes_become_steps_once_timed() {
        let settings = TrainSettings { budget: Budget::Minutes(10.0), ..Default::default() };
        let mut plan = Plan::new(&settings);
        assert_eq!(plan.total_steps, None);
        close(plan.learning_rate(&settings, 1), 3e-4 * 2.0 / 20.0);
        plan.resolve(&settings, 5, 2.0, 590.0);
        assert_eq!(plan, Plan { total_steps: Some(300), warmup_steps: 20, n_revisions: 0 });
        plan.resolve(&settings, 5, 30.0, -3.0);
        assert_eq!(plan, Plan { total_steps: Some(5), warmup_steps: 5, n_revisions: 0 });
    }

    #[test]
    fn minutes_are_looked_at_again_after_each_third_but_the_last() {
        let settings = TrainSettings { budget: Budget::Minutes(10.0), ..Default::default() };
        let mut plan = Plan { total_steps: Some(100), warmup_steps: 10, n_revisions: 0 };
        let due = |plan: &Plan, done| plan.revision_is_due(&settings, done);
        assert_eq!([33, 34, 99, 100].map(|done| due(&plan, done)), [false, true, true, false]);
        assert!(plan.revise(34, 2.0, 172.0));
        assert_eq!(plan, Plan { total_steps: Some(120), warmup_steps: 10, n_revisions: 1 });
        assert_eq!([79, 80].map(|done| due(&plan, done)), [false, true]);
        // One step more of 120 is not worth a new schedule.
        assert!(!plan.revise(80, 2.0, 82.0));
        assert_eq!(plan, Plan { total_steps: Some(120), warmup_steps: 10, n_revisions: 2 });
        assert!(!due(&plan, 90));
        let steps = TrainSettings { budget: Budget::Steps(100), ..Default::default() };
        assert!(!Plan::new(&steps).revision_is_due(&steps, 50));
    }

    #[test]
    fn a_clock_that_stands_still_does_not_overflow() {
        let settings = TrainSettings { budget: Budget::Minutes(1.0), ..Default::default() };
        let mut plan = Plan::new(&settings);
        plan.resolve(&settings, 5, 0.0, 60.0);
        assert!(plan.total_steps.unwrap() > 1 << 30);
    }
}
