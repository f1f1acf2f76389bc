//! Method `auto`: ways to round are tried on a part of the text, measured on text that was kept aside, and the best of them is taken.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use slmc_ir::{Checkpoint, Format, Host, Outline, TensorKey, TokenId};
use slmc_recipe::{StageContext, StageError};

use super::{
    Calibration, Goal, Quantize,
    choice::choose,
    fitting,
    held_out::HeldOut,
    scales::RoundedToNearest,
    solved::Wanted,
    store::{Chosen, Store},
    way::{Material, Way, Work, spread},
};
use crate::kept;

/// Sequences that a way is tried with.
const TRIED: usize = 16;

/// What trying takes, all in all, as sequences of one calibration.
pub(crate) const TRIED_SEQUENCES: usize = 5 * TRIED;

/// Of a time that was given, the share in which ways are tried.
const TRYING: f64 = 0.3;

/// Fewer sequences than this are no calibration.
const LEAST: usize = 8;

/// Formats that stand for a mixture: those of blocks of 32, by the bits they take, and two of 256 for less.
const STAND_INS: [Format; 6] =
    [Format::Q2K, Format::Q3K, Format::Iq4Nl, Format::Q5_0, Format::Q6K, Format::Q8_0];

/// A way that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// The way.
    pub way: Way,
    /// KL divergence of each held-out sequence, nats a token.
    pub divergences: Vec<f64>,
    /// What it took: passes over the text, and all else.
    pub seconds: [f64; 2],
}

impl Trial {
    /// KL divergence, nats a token.
    pub fn kld(&self) -> f64 {
        self.divergences.iter().sum::<f64>() / self.divergences.len().max(1) as f64
    }

    /// Whether it is better than another by more than chance explains: by the standard error of what they are apart.
    fn beats(&self, other: &Self) -> bool {
        let apart: Vec<f64> = self.divergences.iter().zip(&other.divergences).map(|(a, b)| b - a).collect();
        let n = apart.len().max(1) as f64;
        let mean = apart.iter().sum::<f64>() / n;
        let variance = apart.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        mean > (variance / n).sqrt()
    }
}

/// What was decided.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// The way.
    pub way: Way,
    /// Sequences to calibrate on.
    pub n_sequences: usize,
}

/// All of it, kept between sittings.
#[derive(Default, Serialize, Deserialize)]
struct Record {
    trials: Vec<Trial>,
    decision: Option<Decision>,
}

/// What is done with the time there is.
pub struct Chooser<'a> {
    pub quantize: &'a Quantize,
    pub input: &'a Checkpoint,
    pub outline: &'a Outline,
    pub wanted: &'a Wanted,
    pub calibration: &'a Calibration,
    pub held_out: Option<&'a HeldOut<'a>>,
    pub context: &'a StageContext<'a>,
}

impl Chooser<'_> {
    /// Tries the ways that there are, and decides; what was left out comes back in words.
    pub fn decide(&self) -> Result<(Decision, Vec<Trial>, Vec<String>), StageError> {
        let path = self.context.folder.join("auto.json");
        let mut record: Record = if path.exists() { kept::read_json(&path)? } else { Record::default() };
        let mut left_out = Vec::new();
        if record.decision.is_none() {
            let begun = self.context.host.elapsed();
            match self.held_out {
                Some(held_out) => left_out = self.try_all(held_out, &mut record, &path)?,
                None => left_out.push(
                    "no way to round was tried: the text is too short to keep some of it aside".to_owned(),
                ),
            }
            let spent = (self.context.host.elapsed() - begun).as_secs_f64();
            let decision = self.decision(&record.trials, spent);
            if let Some(minutes) = self.quantize.config.minutes.filter(|_| decision.1) {
                left_out.push(format!(
                    "calibration on {LEAST} sequences, and it will take longer than {minutes} minutes"
                ));
            }
            record.decision = Some(decision.0);
            kept::write_json(&path, &record)?;
            let _ = std::fs::remove_dir_all(self.folder());
        }
        let decision = record.decision.ok_or_else(|| StageError::Failed("nothing was decided".to_owned()))?;
        Ok((decision, record.trials, left_out))
    }

    fn folder(&self) -> PathBuf {
        self.context.folder.join("trials")
    }

    /// The way that is taken where nothing else is better.
    fn usual(&self) -> Way {
        Way { scales: false, reorders: self.quantize.reorders(self.outline), makes_up: true }
    }

    /// The best of those tried, and sequences for the time that is left; whether that is too little.
    fn decision(&self, trials: &[Trial], spent: f64) -> (Decision, bool) {
        let usual = trials.iter().find(|trial| trial.way == self.usual());
        let best = trials.iter().fold(usual, |best, trial| match best {
            Some(best) if !trial.beats(best) => Some(best),
            _ => Some(trial),
        });
        let all = self.calibration.sequences.len();
        let way = best.map_or(self.usual(), |trial| trial.way);
        let Some(minutes) = self.quantize.config.minutes else {
            return (Decision { way, n_sequences: all }, false);
        };
        let Some(timed) = trials.iter().find(|trial| trial.way == way && way.makes_up).or(usual) else {
            return (Decision { way, n_sequences: LEAST.min(all) }, all > LEAST);
        };
        // Solving takes as long for any text, but once for each format.
        let n_formats =
            self.wanted.values().map(Vec::len).sum::<usize>() as f64 / self.wanted.len().max(1) as f64;
        let [passes, rest] = timed.seconds;
        let left = minutes * 60.0 - spent - rest * n_formats;
        let fits = left / (passes / TRIED.min(all) as f64).max(1e-9);
        let is_late = fits < LEAST as f64 && all > LEAST;
        (Decision { way, n_sequences: (fits.max(LEAST as f64) as usize).min(all) }, is_late)
    }

    /// Tries one way after the other, while there is time.
    fn try_all(
        &self,
        held_out: &HeldOut<'_>,
        record: &mut Record,
        path: &std::path::Path,
    ) -> Result<Vec<String>, StageError> {
        let until =
            self.quantize.config.minutes.map(|minutes| {
                self.context.host.elapsed() + Duration::from_secs_f64(minutes * 60.0 * TRYING)
            });
        let usual = self.usual();
        let plain = Way { reorders: false, ..usual };
        let mut left_out = Vec::new();
        // Channels are scaled for what is better of both.
        let scaled = |record: &Record| {
            let of = |way: Way| record.trials.iter().find(|trial| trial.way == way);
            let is_plain_better = of(plain).zip(of(usual)).is_some_and(|(plain, usual)| plain.beats(usual));
            Way { scales: true, ..if is_plain_better { plain } else { usual } }
        };
        for step in 0..5 {
            let way = match step {
                0 => usual,
                1 => Way { scales: false, reorders: false, makes_up: false },
                2 => plain,
                3 => Way { scales: true, reorders: false, makes_up: false },
                _ => scaled(record),
            };
            if record.trials.iter().any(|trial| trial.way == way) {
                continue;
            }
            let host = Until { host: self.context.host, at: until };
            match self.try_way(way, held_out, &host) {
                Ok(trial) => {
                    self.context.host.begin(&format!("tried {}", way.name()), 1, "way");
                    self.context.host.advance_to(1, &format!("kld {:.5}", trial.kld()));
                    self.context.host.end();
                    record.trials.push(trial);
                    kept::write_json(path, record)?;
                }
                Err(StageError::Interrupted(_)) if !self.context.host.stop_requested() => {
                    left_out.push(format!("not tried for want of time: {}", way.name()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(left_out)
    }

    /// Rounds the model by a way, calibrated on a few sequences, and measures it.
    fn try_way(&self, way: Way, held_out: &HeldOut<'_>, host: &dyn Host) -> Result<Trial, StageError> {
        let begun = host.elapsed();
        let wanted = self.tried_formats();
        if !way.scales && !way.makes_up {
            let rounding = self.quantize.rounding(&wanted);
            let rounded = RoundedToNearest { inner: Arc::clone(&self.input.weights), rounding };
            let divergences = held_out.divergences(&self.input.with_weights(Arc::new(rounded)), host)?;
            let seconds = (host.elapsed() - begun).as_secs_f64();
            return Ok(Trial { way, divergences, seconds: [0.0, seconds] });
        }
        // Ways with scales share them.
        let name = match way {
            Way { scales: true, .. } => "scaled",
            Way { reorders: true, .. } => "reordered",
            _ => "plain",
        };
        let folder = self.folder().join(name);
        std::fs::create_dir_all(&folder).map_err(|e| kept::failed(&folder, e))?;
        let context = StageContext { folder: &folder, host, ..*self.context };
        let work = Work {
            input: self.input,
            wanted: &wanted,
            sequences: &spread(&self.calibration.sequences, TRIED),
            counts: &self.calibration.counts,
            store: Arc::new(Store::open(folder.join("solved"))?),
            context: &context,
        };
        let material = self.quantize.material(way, &work)?;
        let divergences = held_out.divergences(&chosen(&material)?, host)?;
        let [passes, _] = material.seconds;
        let all = (host.elapsed() - begun).as_secs_f64();
        Ok(Trial { way, divergences, seconds: [passes, all - passes] })
    }

    /// The formats of the goal; under a size, one of about that size.
    fn tried_formats(&self) -> Wanted {
        let bits = match self.quantize.goal {
            Goal::Format(_) | Goal::Integers(_) => return self.wanted.clone(),
            Goal::FileBytes(bytes) => bytes as f64 * 8.0 / self.outline.spec.n_parameters() as f64,
            Goal::BitsPerWeight(bits) => bits,
        };
        let near = |format: &Format| (format.bits_per_weight() - bits).abs();
        let stand_in =
            STAND_INS.into_iter().min_by(|a, b| near(a).total_cmp(&near(b))).unwrap_or(Format::Q5_0);
        let one = |key: &TensorKey| vec![fitting(stand_in, key.shape(&self.outline.spec)[1])];
        let one_each = self.wanted.keys().map(|key| (*key, one(key)));
        one_each.filter(|(_, formats)| formats.iter().all(|format| !format.is_float())).collect()
    }
}

/// The model that a material makes, each tensor in the one format that it was solved in or in the best.
pub fn chosen(material: &Material) -> Result<Checkpoint, StageError> {
    let (formats, _) = choose(&material.solved, u64::MAX >> 16)
        .ok_or_else(|| StageError::Failed("nothing was solved".to_owned()))?;
    Ok(with_formats(material, formats))
}

/// The model that a material makes in these formats.
pub fn with_formats(material: &Material, formats: BTreeMap<TensorKey, Format>) -> Checkpoint {
    let chosen = Chosen { inner: Arc::clone(&material.inner), store: Arc::clone(&material.store), formats };
    material.before.with_weights(Arc::new(chosen))
}

/// A host that wants to stop at some time.
struct Until<'a> {
    host: &'a dyn Host,
    at: Option<Duration>,
}

impl Host for Until<'_> {
    fn begin(&self, what: &str, total: u64, unit: &str) {
        self.host.begin(what, total, unit);
    }

    fn advance_to(&self, done: u64, note: &str) {
        self.host.advance_to(done, note);
    }

    fn end(&self) {
        self.host.end();
    }

    fn warn(&self, message: &str) {
        self.host.warn(message);
    }

    fn elapsed(&self) -> Duration {
        self.host.elapsed()
    }

    fn stop_requested(&self) -> bool {
        self.host.stop_requested() || self.at.is_some_and(|at| self.host.elapsed() >= at)
    }
}

/// How many sequences are kept aside of so many that are there, where so many are to be calibrated on.
pub fn n_held_out(there: usize, wanted: Option<usize>) -> usize {
    const MOST: usize = 8;
    let spare = wanted.map_or(there / 4, |wanted| there.saturating_sub(wanted));
    spare.min(MOST)
}

/// Which of so many sequences are kept aside.
pub fn is_held_out(index: usize, there: usize, n_held_out: usize) -> bool {
    (0..n_held_out).any(|i| (2 * i + 1) * there / (2 * n_held_out) == index)
}

/// Sequences apart from those that are kept aside.
pub fn apart(all: Vec<Vec<TokenId>>, n_held_out: usize) -> [Vec<Vec<TokenId>>; 2] {
    let there = all.len();
    let mut parts = [Vec::new(), Vec::new()];
    for (index, sequence) in all.into_iter().enumerate() {
        parts[usize::from(is_held_out(index, there, n_held_out))].push(sequence);
    }
    parts
}
