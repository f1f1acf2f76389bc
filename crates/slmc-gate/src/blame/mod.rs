//! Which tensors cost most.
//!
//! First, cheaply, from the weights: a tensor whose difference from the baseline's is out of line with the other tensors' is
//! *damaged* ([`weights`]): rounding does not scale a tensor, swap its rows, or hit one layer ten times as hard. Then,
//! measured: a tensor is put back as the baseline has it, and KL divergence on a few chunks says what that saves. Where
//! nothing is damaged, the *costly* ones are looked for: whole blocks are tried, and the tensors of the worst of them one by
//! one. Beside a fault that is to be mended first, that would be minutes for figures that will change.

mod measured;
mod weights;

use serde::{Deserialize, Serialize};
use slmc_eval::{Baseline, Paired};
use slmc_ir::{Format, TensorKey};

use crate::{
    GateError,
    config::BlameSection,
    pair::{GateText, Pair},
};
use measured::{Saved, Trials};
use weights::TensorError;

/// Damaged tensors that are measured.
const MAX_DAMAGED: usize = 16;

/// Why a tensor is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlameKind {
    /// Its difference from the baseline's is out of line: a fault in how the file was made.
    Damaged,
    /// It is as the others, and much depends on it.
    Costly,
}

/// A tensor to blame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blame {
    /// The tensor: `block 3 down`.
    pub tensor: String,
    /// Its block.
    pub block: Option<usize>,
    /// Why it is named.
    pub kind: BlameKind,
    /// The format it is stored in.
    pub format: String,
    /// Norm of its difference from the baseline's over the norm of the baseline's.
    pub relative_error: f64,
    /// KL that is saved with the baseline's in its place, nats a token; absent where no text was measured.
    pub kld_saved: Option<f64>,
    /// The same as a share of all KL.
    pub kld_share: Option<f64>,
    /// Fall of the perplexity's increase with the baseline's in its place.
    pub ppl_increase_saved: Option<f64>,
    /// What is wrong with it.
    pub why: String,
    /// What to do.
    pub hint: String,
}

/// Measurements on the gate's text.
#[derive(Clone, Copy)]
pub(crate) struct Evidence<'a> {
    pub paired: &'a Paired,
    pub recorded: &'a Baseline,
    pub text: &'a GateText,
}

/// Every tensor beside the baseline's.
pub(crate) struct Weights {
    errors: Vec<TensorError>,
}

impl Weights {
    /// Compares every tensor of two models of one shape.
    pub fn compare(pair: &Pair<'_>) -> Result<Self, GateError> {
        let errors =
            weights::errors(&pair.model.checkpoint, &pair.baseline_beside_model(), pair.request.host)?;
        Ok(Self { errors })
    }

    /// The tensors that are damaged, the worst first, and what is wrong with each.
    pub fn damaged(&self) -> Vec<String> {
        let word = |error: &&TensorError| Some(format!("{}: {}", error.key, error.suspicion.as_ref()?));
        self.suspects().iter().filter_map(word).collect()
    }

    fn suspects(&self) -> Vec<&TensorError> {
        let mut suspects: Vec<&TensorError> =
            self.errors.iter().filter(|error| error.suspicion.is_some()).collect();
        suspects.sort_by(|a, b| b.severity().total_cmp(&a.severity()));
        suspects
    }
}

/// What was found.
pub(crate) struct Found {
    pub blame: Vec<Blame>,
    pub notes: Vec<String>,
}

/// Looks for the tensors to blame.
pub(crate) fn find(
    pair: &Pair<'_>,
    weights: &Weights,
    evidence: Option<Evidence<'_>>,
    settings: BlameSection,
) -> Result<Found, GateError> {
    let errors = &weights.errors;
    let mut suspects = weights.suspects();
    let mut notes = Vec::new();
    let mut blame: Vec<Blame> = Vec::new();
    match evidence {
        None => {
            notes.push("no text is measured: tensors are named by their weights alone".to_owned());
            let by_error = suspects.iter().copied().chain(largest(errors).filter(|e| e.suspicion.is_none()));
            blame.extend(by_error.map(|error| of(error, None)));
        }
        Some(evidence) => {
            let trials = Trials::new(pair, evidence, settings.chunks);
            suspects.truncate(MAX_DAMAGED);
            let keys: Vec<TensorKey> = suspects.iter().map(|error| error.key).collect();
            let mut damaged = measure(&trials, &keys, errors)?;
            sort_by_saving(&mut damaged);
            if damaged.is_empty() {
                blame.extend(costly(&trials, errors, settings)?);
            } else {
                notes.push(
                    "which of the other tensors are costly is looked for once none is damaged".to_owned(),
                );
                blame.extend(damaged);
            }
            notes.push(format!(
                "blame is measured on {} of the text's chunks, where KL is {}",
                trials.n_chunks(),
                crate::check::significant(trials.kld())
            ));
        }
    }
    blame.truncate(settings.top);
    Ok(Found { blame, notes })
}

/// The tensors of the blocks that save most when they are put back whole.
fn costly(
    trials: &Trials<'_>,
    errors: &[TensorError],
    settings: BlameSection,
) -> Result<Vec<Blame>, GateError> {
    let changed: Vec<&TensorError> = errors.iter().filter(|error| error.relative_error > 0.0).collect();
    let mut groups: Vec<Option<usize>> = changed.iter().map(|error| error.key.block).collect();
    groups.sort_unstable();
    groups.dedup();
    let keys_of = |group: Option<usize>| -> Vec<TensorKey> {
        changed.iter().map(|error| error.key).filter(|key| key.block == group).collect()
    };
    let sets: Vec<Vec<TensorKey>> = groups.iter().map(|&group| keys_of(group)).collect();
    let saved = trials.each("blocks", &sets)?;
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by(|&a, &b| saved[b].kld.total_cmp(&saved[a].kld));
    let keys: Vec<TensorKey> =
        order.into_iter().take(settings.blocks.max(1)).flat_map(|i| sets[i].clone()).collect();
    let mut costly = measure(trials, &keys, errors)?;
    sort_by_saving(&mut costly);
    Ok(costly)
}

fn measure(trials: &Trials<'_>, keys: &[TensorKey], errors: &[TensorError]) -> Result<Vec<Blame>, GateError> {
    let sets: Vec<Vec<TensorKey>> = keys.iter().map(|&key| vec![key]).collect();
    let saved = trials.each("tensors", &sets)?;
    let error_of = |key: TensorKey| errors.iter().find(|error| error.key == key);
    let pairs = keys.iter().zip(saved);
    Ok(pairs.filter_map(|(&key, saved)| Some(of(error_of(key)?, Some(saved)))).collect())
}

fn sort_by_saving(blame: &mut [Blame]) {
    let saved = |b: &Blame| b.kld_saved.unwrap_or(0.0);
    blame.sort_by(|a, b| saved(b).total_cmp(&saved(a)));
}

fn largest(errors: &[TensorError]) -> impl Iterator<Item = &TensorError> {
    let mut sorted: Vec<&TensorError> = errors.iter().filter(|error| error.relative_error > 0.0).collect();
    sorted.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
    sorted.into_iter()
}

fn of(error: &TensorError, saved: Option<Saved>) -> Blame {
    let kind = if error.suspicion.is_some() { BlameKind::Damaged } else { BlameKind::Costly };
    let why = error.suspicion.clone().unwrap_or_else(|| {
        format!(
            "much depends on it: relative error {} as {}",
            crate::check::significant(error.relative_error),
            error.format
        )
    });
    Blame {
        tensor: error.key.to_string(),
        block: error.key.block,
        kind,
        format: error.format.name().to_owned(),
        relative_error: error.relative_error,
        kld_saved: saved.map(|s| s.kld),
        kld_share: saved.map(|s| s.share),
        ppl_increase_saved: saved.map(|s| s.ppl_increase),
        why,
        hint: hint(error, kind),
    }
}

fn hint(error: &TensorError, kind: BlameKind) -> String {
    let better = match error.format {
        Format::Q8_0 => "f16",
        Format::F16 | Format::Bf16 => "f32",
        Format::F32 => "as the baseline has it",
        _ => "q8_0",
    };
    match kind {
        BlameKind::Damaged => {
            format!("make {} again from the baseline; if it was meant, keep it at {better}", error.key)
        }
        BlameKind::Costly => format!("keep {} at {better}", error.key),
    }
}
