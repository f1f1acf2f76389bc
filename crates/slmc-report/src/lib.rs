//! Runs as one HTML page that needs nothing else: no network, no script, no font. Charts are SVG made here.
//!
//! The crate sees JSON and numbers, never a model: who makes a [`RunView`] reads the run's folder.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod front;
mod html;
mod pictures;
mod sections;
mod svg;

use serde_json::Value;

pub use front::pareto;
pub use pictures::{Picture, pictures};

/// What a training stage measured as it went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// The stage.
    pub name: String,
    /// What was measured, and by step its values, in nats a token.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
}

/// How numbers of one kind lie.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// The chart's title: `Weights of down`.
    pub title: String,
    /// What one of the numbers is: `weight`.
    pub of: String,
    /// Numbers in each bin, bins of equal width from `-limit` to `limit`.
    pub counts: Vec<u64>,
    /// Where the bins end.
    pub limit: f64,
}

/// What a stage's model writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The stage.
    pub name: String,
    /// The text, token by token.
    pub tokens: Vec<String>,
}

/// A prompt, and how each stage's model goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// The prompt.
    pub prompt: String,
    /// Stage by stage; the first is what others are compared with.
    pub written: Vec<Sample>,
}

/// One run, as its folder tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunView {
    /// The folder's name.
    pub name: String,
    /// `plan.json`.
    pub plan: Value,
    /// `summary.json`.
    pub summary: Value,
    /// `result.json` of each stage.
    pub results: Vec<Value>,
    /// The history of the last artefact.
    pub lineage: Value,
    /// Tokens a second of each stage's model, reading a prompt and writing; empty where that was not measured.
    pub speeds: Vec<Option<[f64; 2]>>,
    /// Training stages.
    pub curves: Vec<Curves>,
    /// Weights of the last artefact, and what goes through it.
    pub histograms: Vec<Histogram>,
    /// What the stages' models write.
    pub samples: Vec<Samples>,
    /// The command that makes the run again.
    pub command: String,
}

/// The page.
pub fn page(runs: &[RunView], version: &str) -> String {
    let mut body = String::new();
    if runs.len() > 1 {
        body += &front::section(runs);
    }
    for run in runs {
        body += &sections::run(run);
    }
    let title = match runs {
        [only] => format!("slmc · {}", only.name),
        _ => format!("slmc · {} runs", runs.len()),
    };
    html::document(&title, &body, version)
}
