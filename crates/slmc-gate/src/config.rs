//! The gate file: TOML, read strictly.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use slmc_eval::tasks::{Metric, WritingFigures};

use crate::{GateError, size};

/// Longest gate file, in bytes.
const MAX_GATE_BYTES: u64 = 1 << 20;

/// What a model may cost beside its baseline, and on what that is measured.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateFile {
    /// The compressed model; `--model` wins.
    #[serde(default)]
    pub model: Option<String>,
    /// What it was made from; `--baseline` wins.
    #[serde(default)]
    pub baseline: Option<String>,
    /// The text that perplexity and KL are measured on.
    #[serde(default)]
    pub data: Option<DataSection>,
    /// The bounds.
    pub gate: Bounds,
    /// How intervals are made.
    #[serde(default)]
    pub statistics: StatisticsSection,
    /// How tensors to blame are looked for.
    #[serde(default)]
    pub blame: BlameSection,
    /// Where the baseline's predictions are kept; `.slmc-cache` beside the gate file when absent.
    #[serde(default)]
    pub cache: Option<String>,
}

/// The text that perplexity and KL are measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Text, JSONL, a folder of texts or a dataset manifest.
    pub path: String,
    /// Tokens in a chunk.
    #[serde(default = "default_ctx")]
    pub ctx: usize,
    /// Chunks; all of the text when absent.
    #[serde(default)]
    pub chunks: Option<usize>,
    /// Keep activations and cache in f32.
    #[serde(default)]
    pub exact: bool,
}

/// How intervals are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatisticsSection {
    /// Share of such intervals that hold the true value.
    pub confidence: f64,
    /// Resamplings of an interval.
    pub resamplings: usize,
    /// Their seed.
    pub seed: u64,
}

impl Default for StatisticsSection {
    fn default() -> Self {
        Self { confidence: 0.95, resamplings: 2000, seed: 0 }
    }
}

/// How tensors to blame are looked for when quality was lost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlameSection {
    /// Whether at all.
    pub enabled: bool,
    /// Chunks of the text that each trial is measured on.
    pub chunks: usize,
    /// Blocks whose tensors are tried one by one.
    pub blocks: usize,
    /// Tensors that are named.
    pub top: usize,
}

impl Default for BlameSection {
    fn default() -> Self {
        Self { enabled: true, chunks: 2, blocks: 2, top: 10 }
    }
}

/// What decides: see the words of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// The figure that was measured.
    #[default]
    Estimate,
    /// Fails unless the whole interval keeps the bound: a build has to prove that it is good.
    SurelyGood,
    /// Fails only when the whole interval breaks the bound: a build is good until proven bad.
    SurelyBad,
}

/// Whether something that is found fails the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permit {
    /// It does.
    Forbid,
    /// It is only listed.
    Allow,
}

/// The bounds; each is optional, one must be there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Of perplexity.
    #[serde(default)]
    pub perplexity: Option<PerplexityBound>,
    /// Of KL(base || model), nats a token.
    #[serde(default)]
    pub kld: Option<KldBound>,
    /// Of the share of tokens with the same likeliest next token.
    #[serde(default)]
    pub same_top: Option<AtLeast>,
    /// Of the file or folder.
    #[serde(default)]
    pub file_size: Option<SizeBound>,
    /// Of all stored bits over all weights.
    #[serde(default)]
    pub bits_per_weight: Option<AtMost>,
    /// Of the engine's speed.
    #[serde(default)]
    pub tokens_per_second: Option<SpeedBound>,
    /// Of memory while the engine reads one chunk and writes a few tokens.
    #[serde(default)]
    pub peak_memory: Option<SizeBound>,
    /// Of things done other than asked, as the model's history records them.
    #[serde(default)]
    pub fallbacks: Option<Permit>,
    /// Of tensors that differ from the baseline's as no rounding makes them.
    #[serde(default)]
    pub damaged: Option<Permit>,
    /// Of tasks, by name.
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskBound>,
}

/// Perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerplexityBound {
    /// Largest `ppl / ppl_base - 1`.
    #[serde(default)]
    pub increase_at_most: Option<f64>,
    /// Largest perplexity.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// What decides on the increase.
    #[serde(default)]
    pub judge: Judge,
}

/// KL divergence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KldBound {
    /// Largest mean.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Largest 99th percentile.
    #[serde(default)]
    pub p99_at_most: Option<f64>,
    /// What decides on the mean.
    #[serde(default)]
    pub judge: Judge,
}

/// A lower limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtLeast {
    /// Smallest value.
    pub at_least: f64,
    /// What decides.
    #[serde(default)]
    pub judge: Judge,
}

/// An upper limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtMost {
    /// Largest value.
    pub at_most: f64,
}

/// An upper limit of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeBound {
    /// Most bytes: `"92MB"`, `"88MiB"`, or a number.
    #[serde(deserialize_with = "size::deserialize")]
    pub at_most: u64,
}

/// Speed of writing tokens, measured in turn with the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeedBound {
    /// Smallest ratio to the baseline's.
    #[serde(default)]
    pub ratio_at_least: Option<f64>,
    /// Fewest tokens a second.
    #[serde(default)]
    pub at_least: Option<f64>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskBound {
    /// Smallest ratio to the baseline's figure.
    #[serde(default)]
    pub recovery_at_least: Option<f64>,
    /// Smallest figure.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// Of a task whose answers are written: largest share of texts that go round in circles.
    #[serde(default)]
    pub repetition_at_most: Option<f64>,
    /// Largest share of texts with nothing in them to read.
    #[serde(default)]
    pub unreadable_at_most: Option<f64>,
    /// Largest share of texts that do not end by themselves.
    #[serde(default)]
    pub endless_at_most: Option<f64>,
    /// Items from the start of the task; all when absent.
    #[serde(default)]
    pub limit: Option<usize>,
    /// The figure; the task's own when absent.
    #[serde(default)]
    pub metric: Option<Metric>,
    /// The task's file, where it is none of the built-in ones.
    #[serde(default)]
    pub file: Option<String>,
    /// What decides on the recovery.
    #[serde(default)]
    pub judge: Judge,
}

impl TaskBound {
    /// The bounds on how texts fail.
    pub(crate) fn writing(&self) -> impl Iterator<Item = WritingBound> {
        let bound = |key, what, share, at_most: Option<f64>| {
            at_most.map(|at_most| WritingBound { key, what, share, at_most })
        };
        let bounds = [
            bound(
                "repetition_at_most",
                "texts that go round in circles",
                |of| of.repetition,
                self.repetition_at_most,
            ),
            bound(
                "unreadable_at_most",
                "texts that cannot be read",
                |of| of.unreadable,
                self.unreadable_at_most,
            ),
            bound("endless_at_most", "texts that do not end", |of| of.endless, self.endless_at_most),
        ];
        bounds.into_iter().flatten()
    }
}

/// A bound on how texts fail.
pub(crate) struct WritingBound {
    pub key: &'static str,
    /// Which texts.
    pub what: &'static str,
    /// Their share.
    pub share: fn(&WritingFigures) -> f64,
    pub at_most: f64,
}

fn default_ctx() -> usize {
    512
}

impl GateFile {
    /// Reads a gate file. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, has a key that is none, or bounds nothing.
    pub fn read(path: &Path) -> Result<Self, GateError> {
        let read = |e: std::io::Error| {
            GateError::Input(format!("cannot read the gate file {}: {e}", path.display()))
        };
        let n_bytes = std::fs::metadata(path).map_err(read)?.len();
        if n_bytes > MAX_GATE_BYTES {
            return Err(GateError::Input(format!(
                "{}: {n_bytes} bytes is too long for a gate file",
                path.display()
            )));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let place = |message: String| GateError::Input(format!("{}: {message}", path.display()));
        let mut file = Self::parse(&text).map_err(place)?;
        file.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(file)
    }

    /// Reads a gate file's text, paths untouched.
    ///
    /// # Errors
    /// As [`GateFile::read`], in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Self = toml::from_str(text).map_err(|e| {
            let message = slmc_recipe::explain(e.message());
            match e.span() {
                Some(span) => format!("line {}: {message}", line_of(text, span.start)),
                None => message,
            }
        })?;
        file.validate()?;
        Ok(file)
    }

    fn validate(&self) -> Result<(), String> {
        let StatisticsSection { confidence, resamplings, .. } = self.statistics;
        if !(confidence > 0.5 && confidence < 1.0) {
            return Err(format!("statistics.confidence = {confidence}: must be above 0.5 and below 1"));
        }
        if !(100..=1_000_000).contains(&resamplings) {
            return Err(format!("statistics.resamplings = {resamplings}: must be 100 to 1000000"));
        }
        if self.blame.enabled && (self.blame.chunks == 0 || self.blame.top == 0) {
            return Err("blame.chunks and blame.top must be at least 1".to_owned());
        }
        let bounds = self.gate.numbers();
        if bounds.is_empty() && self.gate.fallbacks.is_none() && self.gate.damaged.is_none() {
            return Err("[gate] bounds nothing: add perplexity, kld, same_top, file_size, bits_per_weight, \
                tokens_per_second, peak_memory, fallbacks, damaged or tasks.NAME"
                .to_owned());
        }
        if let Some((name, number)) = bounds.iter().find(|(_, number)| !number.is_finite() || *number < 0.0) {
            return Err(format!("gate.{name} = {number}: must be a finite number, 0 or more"));
        }
        let text_needed =
            self.gate.perplexity.is_some() || self.gate.kld.is_some() || self.gate.same_top.is_some();
        if text_needed && self.data.is_none() {
            return Err("gate.perplexity, kld and same_top are measured on a text: add [data] with path = …"
                .to_owned());
        }
        Ok(())
    }

    fn resolve_paths(&mut self, folder: &Path) {
        let resolve = |path: &mut String| *path = below(folder, path).to_string_lossy().into_owned();
        let tasks = self.gate.tasks.values_mut().filter_map(|task| task.file.as_mut());
        self.model
            .iter_mut()
            .chain(self.baseline.iter_mut())
            .chain(self.data.iter_mut().map(|data| &mut data.path))
            .chain(self.cache.iter_mut())
            .chain(tasks)
            .for_each(resolve);
    }
}

impl Bounds {
    /// Every bound that is a number, by its name in the file.
    pub(crate) fn numbers(&self) -> Vec<(String, f64)> {
        let mut all: Vec<(String, Option<f64>)> = Vec::new();
        let mut add = |name: &str, bound: Option<f64>| all.push((name.to_owned(), bound));
        let perplexity = self.perplexity.as_ref();
        add("perplexity.increase_at_most", perplexity.and_then(|b| b.increase_at_most));
        add("perplexity.at_most", perplexity.and_then(|b| b.at_most));
        add("kld.at_most", self.kld.as_ref().and_then(|b| b.at_most));
        add("kld.p99_at_most", self.kld.as_ref().and_then(|b| b.p99_at_most));
        add("same_top.at_least", self.same_top.as_ref().map(|b| b.at_least));
        add("file_size.at_most", self.file_size.as_ref().map(|b| b.at_most as f64));
        add("bits_per_weight.at_most", self.bits_per_weight.as_ref().map(|b| b.at_most));
        let speed = self.tokens_per_second.as_ref();
        add("tokens_per_second.ratio_at_least", speed.and_then(|b| b.ratio_at_least));
        add("tokens_per_second.at_least", speed.and_then(|b| b.at_least));
        add("peak_memory.at_most", self.peak_memory.as_ref().map(|b| b.at_most as f64));
        for (name, task) in &self.tasks {
            add(&format!("tasks.{name}.recovery_at_least"), task.recovery_at_least);
            add(&format!("tasks.{name}.at_least"), task.at_least);
            for WritingBound { key, at_most, .. } in task.writing() {
                add(&format!("tasks.{name}.{key}"), Some(at_most));
            }
        }
        all.into_iter().filter_map(|(name, bound)| Some((name, bound?))).collect()
    }
}

fn below(folder: &Path, path: &str) -> PathBuf {
    if path.starts_with("hf:") { PathBuf::from(path) } else { folder.join(path) }
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.as_bytes()[..byte.min(text.len())].iter().filter(|&&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: &str = r#"
        [data]
        path = "wiki.test.raw"
        chunks = 24
        [gate]
        perplexity = { increase_at_most = 0.01 }
        kld        = { at_most = 0.05 }
        file_size  = { at_most = "92MB" }
        fallbacks  = "forbid"
        tasks.hellaswag = { recovery_at_least = 0.98 }
    "#;

    #[test]
    fn the_smallest_file_is_read() {
        let file = GateFile::parse(GATE).unwrap();
        assert_eq!(file.data.as_ref().unwrap().ctx, 512);
        assert_eq!(file.gate.file_size.unwrap().at_most, 92_000_000);
        assert_eq!(file.gate.fallbacks, Some(Permit::Forbid));
        assert_eq!(file.gate.numbers().len(), 4);
        assert_eq!(file.gate.perplexity.unwrap().judge, Judge::Estimate);
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let message = GateFile::parse(text).unwrap_err();
        assert!(message.contains(expected), "{message}\nshould say: {expected}");
    }

    #[test]
    fn slips_are_errors_with_a_suggestion() {
        refused(&GATE.replace("increase_at_most", "increase_at_mst"), "did you mean `increase_at_most`");
        refused(&GATE.replace("increase_at_most", "increase_at_mst"), "line 6");
        refused(&GATE.replace("kld  ", "kdl  "), "did you mean `kld`");
        refused(&GATE.replace("[data]", "[dta]"), "did you mean `data`");
        refused(&GATE.replace("92MB", "92 megs"), "no unit");
        refused(&GATE.replace("0.05", "-0.05"), "kld.at_most");
        refused(&GATE.replace("\"forbid\"", "\"forbidden\""), "forbid");
        refused("[gate]\n", "bounds nothing");
        refused("[gate]\nkld = { at_most = 0.1 }\n", "[data]");
        refused("[gate]\nkld = { at_most = nan }\n[data]\npath = 'x'", "finite");
        refused("x = ", "line 1");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let mut file = GateFile::parse(GATE).unwrap();
        file.resolve_paths(Path::new("ci/gates"));
        assert_eq!(file.data.unwrap().path, "ci/gates/wiki.test.raw");
    }
}
