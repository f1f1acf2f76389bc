//! Method `auto`: ways to round are tried on a part of the text, measured on text that was kept aside, and the best of them is taken.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use slmc_ir::{Checkpoint, Format, Host, Outline, TensorKey};
use slmc_recipe::{StageContext, StageError};

use super::{
    Calibration, Goal, Quantize,
    choice::choose,
    held_out::HeldOut,
    remove_left,
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
    /// What it took: passes over the text, and all else. Not known where it was done in several sittings.
    seconds: Option<[f64; 2]>,
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
pub struct Record {
    /// The ways, as they were tried.
    pub trials: Vec<Trial>,
    /// What was done other than asked, in words.
    pub left_out: Vec<String>,
    /// Seconds of the stage until this was written, all sittings together.
    seconds: f64,
    decision: Option<Decision>,
}

/// Tries and decides.
pub struct Chooser<'a> {
    pub quantize: &'a Quantize,
    pub input: &'a Checkpoint,
    pub outline: &'a Outline,
    pub wanted: &'a Wanted,
    pub floats: &'a BTreeMap<TensorKey, Format>,
    pub calibration: &'a Calibration,
    pub held_out: Option<&'a HeldOut<'a>>,
    pub context: &'a StageContext<'a>,
    /// When the stage began, by the host's clock.
    pub begun: Duration,
}

impl Chooser<'_> {
    /// Tries the ways that there are, and decides; what an earlier sitting has done is kept.
    pub fn decide(&self) -> Result<(Decision, Record), StageError> {
        let path = self.context.folder.join("auto.json");
        let mut record: Record = if path.exists() { kept::read_json(&path)? } else { Record::default() };
        if record.decision.is_none() {
            let before = record.seconds;
            record.left_out = match self.held_out {
                Some(held_out) => self.try_all(held_out, &mut record, &path)?,
                None => {
                    vec![
                        "no way to round was tried: the text is too short to keep some of it aside"
                            .to_owned(),
                    ]
                }
            };
            record.seconds = before + self.spent();
            record.decision = Some(self.decision(&mut record));
            kept::write_json(&path, &record)?;
        }
        let _ = std::fs::remove_dir_all(self.folder());
        let decision = record.decision.clone();
        decision.map(|decision| (decision, record)).ok_or_else(|| StageError::Failed("undecided".to_owned()))
    }

    fn folder(&self) -> PathBuf {
        self.context.folder.join("trials")
    }

    /// Seconds in this sitting.
    fn spent(&self) -> f64 {
        (self.context.host.elapsed() - self.begun).as_secs_f64()
    }

    /// The way that is taken where nothing else is better.
    fn usual(&self) -> Way {
        self.quantize.way(self.outline)
    }

    /// Whether a way can be taken: formats are chosen by what GPTQ's errors cost, and by nothing else.
    fn can_be_taken(&self, way: Way) -> bool {
        way.makes_up || matches!(self.quantize.goal, Goal::Format(_) | Goal::Integers(_))
    }

    /// The best of those tried, and as many sequences as there is time for.
    fn decision(&self, record: &mut Record) -> Decision {
        let of = |way: Way| record.trials.iter().find(move |trial| trial.way == way);
        let usual = of(self.usual());
        let can_be_taken = record.trials.iter().filter(|trial| self.can_be_taken(trial.way));
        let best = can_be_taken.fold(usual, |best, trial| match best {
            Some(best) if !trial.beats(best) => Some(best),
            _ => Some(trial),
        });
        let way = best.map_or(self.usual(), |trial| trial.way);
        let all = self.calibration.sequences.len();
        let Some(minutes) = self.quantize.config.minutes else { return Decision { way, n_sequences: all } };
        let seconds = |trial: Option<&Trial>| trial.and_then(|trial| trial.seconds);
        let timed = seconds(of(way).filter(|_| way.makes_up)).or(seconds(usual));
        let any = || record.trials.iter().filter(|trial| trial.way.makes_up).find_map(|trial| trial.seconds);
        let timed = timed.or_else(any);
        let Some([passes, rest]) = timed else {
            let (n_sequences, why) = match self.held_out {
                Some(_) if record.trials.is_empty() && all > LEAST => {
                    (LEAST, format!("calibration on {LEAST} sequences for want of time"))
                }
                _ => (all, format!("{minutes} minutes are not kept to: nothing could be timed")),
            };
            record.left_out.push(why);
            return Decision { way, n_sequences };
        };
        // Solving takes as long for any text, but once for each format; a search of scales reads twice the text of its trial.
        let n_formats =
            self.wanted.values().map(Vec::len).sum::<usize>() as f64 / self.wanted.len().max(1) as f64;
        let search = Way { scales: true, reorders: false, makes_up: false };
        let search = if way.scales { seconds(of(search)).map_or(0.0, |both| both.iter().sum()) } else { 0.0 };
        let left = minutes * 60.0 - record.seconds - rest * n_formats - 2.0 * search;
        let fits = left / (passes / TRIED.min(all) as f64).max(1e-9);
        if fits < LEAST as f64 && all > LEAST {
            record.left_out.push(format!(
                "calibration on {LEAST} sequences, and it will take longer than {minutes} minutes"
            ));
        }
        Decision { way, n_sequences: (fits.max(LEAST as f64) as usize).min(all) }
    }

    /// Tries one way after the other, while there is time; what was left out comes back in words.
    fn try_all(
        &self,
        held_out: &HeldOut<'_>,
        record: &mut Record,
        path: &Path,
    ) -> Result<Vec<String>, StageError> {
        let before = record.seconds;
        let until =
            self.quantize.config.minutes.map(|minutes| {
                self.begun + Duration::from_secs_f64((minutes * 60.0 * TRYING - before).max(0.0))
            });
        let usual = self.usual();
        let plain = Way { reorders: false, ..usual };
        let [rtn, awq] = [false, true].map(|scales| Way { scales, reorders: false, makes_up: false });
        let mut left_out = Vec::new();
        for step in 0..5 {
            let of = |way: Way| record.trials.iter().find(move |trial| trial.way == way);
            let way = match step {
                0 => usual,
                1 => rtn,
                2 => plain,
                3 => awq,
                // Channels are scaled for what is better of both.
                _ => {
                    let is_better = of(plain).zip(of(usual)).is_some_and(|(plain, usual)| plain.beats(usual));
                    Way { scales: true, ..if is_better { plain } else { usual } }
                }
            };
            if of(way).is_some() {
                continue;
            }
            let host = Until { host: self.context.host, at: until };
            match self.try_way(way, held_out, &host) {
                Ok(trial) => {
                    record.trials.push(trial);
                    record.seconds = before + self.spent();
                    kept::write_json(path, record)?;
                }
                Err(StageError::Interrupted(_)) if !self.context.host.stop_requested() => {
                    left_out.push(format!("not tried for want of time: {}", way.name()));
                }
                // One way may fail; the usual one is what the stage is about.
                Err(StageError::Failed(why)) if way != usual => {
                    left_out.push(format!("{}: {why}", way.name()))
                }
                Err(error) => {
                    record.seconds = before + self.spent();
                    kept::write_json(path, record)?;
                    return Err(error);
                }
            }
        }
        Ok(left_out)
    }

    /// Rounds the model by a way, calibrated on a few sequences, and measures it.
    fn try_way(&self, way: Way, held_out: &HeldOut<'_>, host: &dyn Host) -> Result<Trial, StageError> {
        let begun = host.elapsed();
        let tried = self.quantize.tried_formats(self.outline, self.wanted);
        // Ways with scales share them.
        let name = match way {
            Way { scales: true, .. } => "scaled",
            Way { reorders: true, .. } => "reordered",
            Way { makes_up: true, .. } => "plain",
            _ => "rtn",
        };
        let folder = self.folder().join(name);
        if self.quantize.config.minutes.is_some() && !(way.scales && way.makes_up) {
            // What an earlier sitting had begun cannot be timed.
            remove_left(&folder)?;
        }
        std::fs::create_dir_all(&folder).map_err(|e| kept::failed(&folder, e))?;
        let context = StageContext { folder: &folder, host, ..*self.context };
        let work = Work {
            input: self.input,
            wanted: &tried,
            rounding: &self.quantize.rounding(&tried),
            floats: self.floats,
            sequences: &spread(&self.calibration.sequences, TRIED),
            counts: &self.calibration.counts,
            store: Arc::new(Store::open(folder.join("solved"))?),
            context: &context,
        };
        let material = self.quantize.material(way, &work)?;
        let divergences = held_out.divergences(&chosen(&material)?, host)?;
        let all = (host.elapsed() - begun).as_secs_f64();
        let seconds = material.seconds.map(|[passes, _]| [passes, all - passes]);
        Ok(Trial { way, divergences, seconds })
    }
}

impl Quantize {
    /// The formats of the goal; under a size, one of about that size.
    pub(super) fn tried_formats(&self, outline: &Outline, wanted: &Wanted) -> Wanted {
        let bits = match self.goal {
            Goal::Format(_) | Goal::Integers(_) => return wanted.clone(),
            Goal::FileBytes(bytes) => bytes as f64 * 8.0 / outline.spec.n_parameters() as f64,
            Goal::BitsPerWeight(bits) => bits,
        };
        let near = |format: &Format| (format.bits_per_weight() - bits).abs();
        let stand_in = |key: &TensorKey| {
            let n_columns = key.shape(&outline.spec)[1];
            let fits = |format: &Format| n_columns.is_multiple_of(format.block_weights());
            STAND_INS.into_iter().filter(fits).min_by(|a, b| near(a).total_cmp(&near(b)))
        };
        wanted.keys().filter_map(|key| Some((*key, vec![stand_in(key)?]))).collect()
    }
}

/// The model that a material makes, each tensor in the one format that it was solved in or in the best.
fn chosen(material: &Material) -> Result<Checkpoint, StageError> {
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
