//! The time a run has taken, over all its sessions, and how long a step takes.

use std::time::Duration;

use slmc_ir::Host;

/// Weight of the newest step in the running mean.
const NEWEST: f64 = 0.2;

/// The host's clock, as the run sees it.
pub(crate) struct Clock<'a> {
    host: &'a dyn Host,
    session_began: Duration,
    earlier_seconds: f64,
    step_began: f64,
    n_steps: u64,
    step_seconds: f64,
    /// Of all steps but the first.
    sum_of_steps: f64,
    eval_seconds: f64,
}

impl<'a> Clock<'a> {
    /// A session begins, after `earlier_seconds` of others.
    pub(crate) fn new(host: &'a dyn Host, earlier_seconds: f64) -> Self {
        let session_began = host.elapsed();
        Self {
            host,
            session_began,
            earlier_seconds,
            step_began: 0.0,
            n_steps: 0,
            step_seconds: 0.0,
            sum_of_steps: 0.0,
            eval_seconds: 0.0,
        }
    }

    /// Seconds of the run so far.
    pub(crate) fn seconds(&self) -> f64 {
        self.earlier_seconds + self.host.elapsed().saturating_sub(self.session_began).as_secs_f64()
    }

    pub(crate) fn begin_step(&mut self) {
        self.step_began = self.seconds();
    }

    /// Seconds of the step that is over.
    pub(crate) fn end_step(&mut self) -> f64 {
        let seconds = self.seconds() - self.step_began;
        self.n_steps += 1;
        if self.n_steps > 1 {
            self.sum_of_steps += seconds;
        }
        // A session's first step warms up caches and devices: it counts only until there is a second one.
        self.step_seconds = match self.n_steps {
            1 | 2 => seconds,
            _ => {
                self.step_seconds
                    + (seconds - self.step_seconds) * NEWEST.max(1.0 / (self.n_steps - 1) as f64)
            }
        };
        seconds
    }

    /// What a step takes, from the session's latest ones; 0 before the first.
    pub(crate) fn step_seconds(&self) -> f64 {
        self.step_seconds
    }

    /// Steps of the session.
    pub(crate) fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// What a step took on average in this session, its first left out where there is another; 0 before it.
    pub(crate) fn mean_step_seconds(&self) -> f64 {
        match self.n_steps {
            0 | 1 => self.step_seconds,
            n => self.sum_of_steps / (n - 1) as f64,
        }
    }

    pub(crate) fn note_eval(&mut self, seconds: f64) {
        self.eval_seconds = seconds;
    }

    /// What the last evaluation took; 0 before the first.
    pub(crate) fn eval_seconds(&self) -> f64 {
        self.eval_seconds
    }
}
