//! A report for people and for CI: a table, Markdown for a job's summary, JUnit XML and SARIF.

mod junit;
mod markdown;
mod sarif;
mod table;

pub use junit::junit;
pub use markdown::markdown;
pub use sarif::{Places, sarif};
pub use table::table;

use crate::{Check, Status};

/// How a check ended, in a word.
fn word(check: &Check) -> &'static str {
    match check.status {
        Status::Pass => "pass",
        Status::Fail => "FAIL",
    }
}

/// A figure as it is, or nothing.
fn shown(value: Option<f64>) -> String {
    value.map_or_else(String::new, crate::check::significant)
}
