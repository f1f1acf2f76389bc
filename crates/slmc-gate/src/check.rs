//! One bound, and what was measured against it. Figures are compared as they were measured; rounding is for showing them.

use serde::{Deserialize, Serialize};
use slmc_eval::stats::Interval;

use crate::Judge;

/// Whether a bound was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It was.
    Pass,
    /// It was not.
    Fail,
}

/// Whether all bounds were kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All of them.
    Pass,
    /// Not all.
    Fail,
}

/// On which side of a bound a figure must lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    AtMost,
    AtLeast,
}

/// One bound, and what was measured against it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The bound's name in the gate file: `perplexity.increase_at_most`.
    pub name: String,
    /// Whether it was kept.
    pub status: Status,
    /// The figure, unrounded; absent where the bound is not a number.
    pub measured: Option<f64>,
    /// Where the figure may lie on other text of the same kind.
    pub low: Option<f64>,
    /// Its upper limit.
    pub high: Option<f64>,
    /// The bound.
    pub bound: Option<f64>,
    /// The baseline's own figure, where there is one.
    pub baseline: Option<f64>,
    /// The model's own figure, where `measured` is a ratio.
    pub model: Option<f64>,
    /// What decided.
    pub judge: Judge,
    /// Whether the bound lies inside the interval: another text could decide otherwise.
    pub inconclusive: bool,
    /// One sentence for people.
    pub message: String,
}

/// How figures of a check are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Plain,
    Percent,
    Bytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Plain => significant(value),
            Self::Percent => format!("{} %", significant(value * 100.0)),
            Self::Bytes => format!("{:.3} MB", value / 1e6),
        }
    }
}

/// Five significant digits, without trailing zeros.
pub(crate) fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits = (4 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A bound and what it is about, before it is judged.
pub(crate) struct Claim<'a> {
    pub name: String,
    pub what: &'a str,
    pub side: Side,
    pub bound: f64,
    pub judge: Judge,
    pub unit: Unit,
    pub baseline: Option<f64>,
    pub model: Option<f64>,
}

impl Claim<'_> {
    /// Judges a figure with an interval.
    pub fn judge(self, measured: Interval) -> Check {
        let keeps = |value: f64| match self.side {
            Side::AtMost => value <= self.bound,
            Side::AtLeast => value >= self.bound,
        };
        let (worst, best) = match self.side {
            Side::AtMost => (measured.high, measured.low),
            Side::AtLeast => (measured.low, measured.high),
        };
        let kept = match self.judge {
            Judge::Estimate => keeps(measured.estimate),
            Judge::SurelyGood => keeps(worst),
            Judge::SurelyBad => keeps(best),
        };
        let has_width = measured.low < measured.high;
        let word = match self.side {
            Side::AtMost => "at most",
            Side::AtLeast => "at least",
        };
        let show = |value: f64| self.unit.show(value);
        let mut message = format!("{}: {}", self.what, show(measured.estimate));
        if has_width && measured.low.is_finite() {
            message += &format!(" ({} to {})", show(measured.low), show(measured.high));
        }
        message += &format!(", {word} {} is allowed", show(self.bound));
        let inconclusive = has_width && keeps(worst) != keeps(best);
        if inconclusive {
            message += "; other text of the same kind could decide otherwise";
        }
        Check {
            name: self.name,
            status: if kept { Status::Pass } else { Status::Fail },
            measured: Some(measured.estimate),
            low: has_width.then_some(measured.low).filter(|x| x.is_finite()),
            high: has_width.then_some(measured.high).filter(|x| x.is_finite()),
            bound: Some(self.bound),
            baseline: self.baseline,
            model: self.model,
            judge: self.judge,
            inconclusive,
            message,
        }
    }

    /// Judges a figure that is what it is.
    pub fn judge_exact(self, measured: f64) -> Check {
        self.judge(Interval { estimate: measured, low: measured, high: measured })
    }
}

impl Check {
    /// A check that is no number.
    pub(crate) fn of_fact(name: &str, kept: bool, message: String) -> Self {
        Self {
            name: name.to_owned(),
            status: if kept { Status::Pass } else { Status::Fail },
            measured: None,
            low: None,
            high: None,
            bound: None,
            baseline: None,
            model: None,
            judge: Judge::Estimate,
            inconclusive: false,
            message,
        }
    }

    /// Whether it failed.
    pub fn failed(&self) -> bool {
        self.status == Status::Fail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(side: Side, judge: Judge, bound: f64, (low, estimate, high): (f64, f64, f64)) -> Check {
        let name = "x".to_owned();
        let claim =
            Claim { name, what: "x", side, bound, judge, unit: Unit::Plain, baseline: None, model: None };
        claim.judge(Interval { estimate, low, high })
    }

    #[test]
    fn figures_are_compared_unrounded() {
        let exact = |measured| check(Side::AtMost, Judge::Estimate, 0.01, (measured, measured, measured));
        assert_eq!(exact(0.01).status, Status::Pass);
        assert_eq!(exact(0.010_000_000_000_1).status, Status::Fail);
        let least = check(Side::AtLeast, Judge::Estimate, 0.98, (0.979_999_999_9, 0.979_999_999_9, 0.98));
        assert_eq!(least.status, Status::Fail);
    }

    #[test]
    fn what_decides_can_be_chosen() {
        let around = (0.5, 1.0, 1.5);
        let status = |judge, bound| check(Side::AtMost, judge, bound, around).status;
        assert_eq!(status(Judge::Estimate, 1.2), Status::Pass);
        assert_eq!(status(Judge::SurelyGood, 1.2), Status::Fail);
        assert_eq!(status(Judge::SurelyGood, 1.5), Status::Pass);
        assert_eq!(status(Judge::SurelyBad, 0.7), Status::Pass);
        assert_eq!(status(Judge::SurelyBad, 0.4), Status::Fail);
        assert!(check(Side::AtMost, Judge::Estimate, 1.2, around).inconclusive);
        assert!(!check(Side::AtMost, Judge::Estimate, 1.6, around).inconclusive);
    }

    #[test]
    fn digits() {
        assert_eq!(significant(0.012345678), "0.012346");
        assert_eq!(significant(26.5), "26.5");
        assert_eq!(significant(123456.7), "123457");
        assert_eq!(significant(0.0), "0");
    }
}
