//! The run's log: `metrics.jsonl`, one line a step.
//!
//! After a resume, lines beyond the checkpoint are cut off, so the file holds what an unbroken run would have
//! written (the times aside).

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Longest line that is read back.
const MAX_LINE_BYTES: usize = 1 << 16;

/// The held-out figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalFigures {
    /// Mean negative log-likelihood of a target token, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Target tokens it was measured on.
    pub tokens: u64,
}

/// The loss of one step, before that step's update; means over the step's target tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossFigures {
    /// What was minimised.
    pub loss: f64,
    /// KL divergence from the teacher, in nats; in distillation alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl: Option<f64>,
    /// Next-token cross-entropy, in nats; in distillation alone (else it is the loss).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ce: Option<f64>,
}

/// One line. Step 0 is the state before training: an evaluation and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Steps done.
    pub step: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// The step's loss.
    #[serde(flatten, skip_serializing_if = "Option::is_none", default)]
    pub losses: Option<LossFigures>,
    /// Learning rate of the step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lr: Option<f64>,
    /// Norm of the gradient before clipping.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Training tokens a second in this step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_per_s: Option<f64>,
    /// Seconds of training so far, earlier sessions included.
    pub seconds: f64,
    /// The held-out figures after this step, if it was a step with an evaluation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval: Option<EvalFigures>,
}

/// The open log.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the log of a run that has done `step` steps: later lines are cut off. `None` begins a new log.
    pub(crate) fn open(path: &Path, step: Option<u64>) -> Result<Self, TrainError> {
        let io = || TrainError::io(path);
        let keep = match step {
            Some(step) if path.exists() => kept_bytes(path, step)?,
            _ => 0,
        };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io())?;
        file.set_len(keep).map_err(io())?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds a line, in one write.
    pub(crate) fn write(&mut self, line: &MetricsLine) -> Result<(), TrainError> {
        let mut text = serde_json::to_string(line).map_err(|e| TrainError::checkpoint(&self.path, e))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(TrainError::io(&self.path))
    }

    /// Waits until the lines are on the disk: a checkpoint must not outlive the lines that led to it.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_all().map_err(TrainError::io(&self.path))
    }
}

/// Length of the whole lines up to and with `step`.
fn kept_bytes(path: &Path, step: u64) -> Result<u64, TrainError> {
    let mut reader = BufReader::new(File::open(path).map_err(TrainError::io(path))?);
    let mut kept = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let limited = &mut std::io::Read::take(&mut reader, MAX_LINE_BYTES as u64);
        limited.read_until(b'\n', &mut line).map_err(TrainError::io(path))?;
        let is_whole = line.last() == Some(&b'\n');
        let parsed = serde_json::from_slice::<MetricsLine>(&line);
        match parsed {
            Ok(parsed) if is_whole && parsed.step <= step => kept += line.len() as u64,
            _ => return Ok(kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> MetricsLine {
        let losses = Some(LossFigures { loss: 1.0 / step as f64, kl: None, ce: Some(0.5) });
        MetricsLine { step, tokens: step * 8, losses, lr: Some(1e-3), ..Default::default() }
    }

    #[test]
    fn a_line_reads_back() {
        let eval = Some(EvalFigures { nll: 1.0, perplexity: 1_f64.exp(), tokens: 3 });
        for line in [line(3), MetricsLine { eval, ..Default::default() }] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<MetricsLine>(&text).unwrap(), line, "{text}");
        }
    }

    #[test]
    fn resuming_cuts_off_what_came_after_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut unbroken = Metrics::open(&path, None).unwrap();
        (1..=6).for_each(|step| unbroken.write(&line(step)).unwrap());
        let expected = std::fs::read(&path).unwrap();

        let mut broken = Metrics::open(&path, None).unwrap();
        (1..=4).for_each(|step| broken.write(&line(step)).unwrap());
        std::fs::write(&path, [&std::fs::read(&path).unwrap()[..], b"{\"step\":5,\"tok"].concat()).unwrap();
        let mut resumed = Metrics::open(&path, Some(2)).unwrap();
        (3..=6).for_each(|step| resumed.write(&line(step)).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
}
