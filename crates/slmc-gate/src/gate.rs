//! The gate: measure what is bounded, compare, and when quality was lost look for the tensors to blame.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use slmc_eval::{
    PairedFigures,
    stats::Resampling,
    tasks::{TaskComparison, WritingFigures, compare},
};
use slmc_ir::{Checkpoint, Host};

use crate::{
    Blame, Cache, Check, DataSection, GateError, GateFile, Judge, Lock, Permit, Verdict,
    blame::{self, Evidence, Weights},
    check::{Claim, Side, Unit},
    config::{TaskBound, WritingBound},
    facts,
    pair::{GateText, Pair},
    speed,
};

/// A model, opened.
pub struct Opened {
    /// The model.
    pub checkpoint: Checkpoint,
    /// The file or folder that it lies in.
    pub artefact: std::path::PathBuf,
}

/// Opens what the user calls a model.
pub type Open<'a> = dyn Fn(&str) -> Result<Opened, String> + 'a;
/// Measures how many bytes of memory a model takes at most while it runs.
pub type PeakMemory<'a> = dyn Fn(&str) -> Result<u64, String> + 'a;

/// What a gate is asked.
pub struct Request<'a> {
    /// The gate file.
    pub file: &'a GateFile,
    /// The compressed model.
    pub model: &'a str,
    /// What it was made from.
    pub baseline: &'a str,
    /// The lock file.
    pub lock: &'a Path,
    /// Whether to write it anew.
    pub update_lock: bool,
    /// The folder for the baseline's predictions.
    pub cache: &'a Path,
    /// Where dataset manifests' paths begin.
    pub data_root: Option<&'a Path>,
    /// Threads.
    pub n_threads: usize,
    /// Version of slmc.
    pub version: &'a str,
    /// Progress, warnings, the clock, and the user's wish to stop.
    pub host: &'a dyn Host,
    /// Opens models.
    pub open: &'a Open<'a>,
    /// Measures memory.
    pub peak_memory: &'a PeakMemory<'a>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether all bounds were kept.
    pub verdict: Verdict,
    /// Bound by bound.
    pub checks: Vec<Check>,
    /// Tensors to blame, the worst first; empty where nothing failed.
    pub blame: Vec<Blame>,
    /// What is to know beside: fallbacks that are allowed, why nobody can be blamed.
    pub notes: Vec<String>,
    /// The model, as it was given.
    pub model: String,
    /// The baseline.
    pub baseline: String,
    /// SHA-256 of the model's files.
    pub model_sha256: String,
    /// SHA-256 of the baseline's files.
    pub baseline_sha256: String,
    /// Figures on the text.
    pub figures: Option<PairedFigures>,
    /// Figures on the tasks.
    pub tasks: Vec<TaskComparison>,
    /// Whether the lock was written.
    pub lock_updated: bool,
}

/// Runs a gate.
///
/// # Errors
/// When the comparison could not be made. A bound that is broken is no error but a verdict.
pub fn run_gate(request: &Request<'_>) -> Result<Report, GateError> {
    let data = request.file.data.as_ref();
    let exact = data.is_some_and(|data| data.exact);
    let pair = Pair::open(request, Cache::new(request.cache), exact)?;
    let text = data.map(|data| pair.text(data)).transpose()?;
    let section = data.zip(text.as_ref());
    let mut run = Run {
        pair: &pair,
        report: empty_report(request, &pair),
        pinned: pair.pinned(section),
        figures: [BTreeMap::new(), BTreeMap::new()],
    };
    let lock = if request.update_lock { None } else { Lock::read(request.lock)? };
    if let Some(lock) = &lock
        && !run.holds(lock)
    {
        return Ok(run.finish());
    }
    run.facts()?;
    let weights = run.weights()?;
    let paired = match section {
        Some(section) if run.text_is_bounded() => Some(run.on_text(section)?),
        _ => None,
    };
    run.tasks(lock.as_ref())?;
    run.resources()?;
    if run.quality_was_lost() && request.file.blame.enabled {
        let evidence = paired.as_ref().zip(text.as_ref()).map(|((paired, recorded), text)| Evidence {
            paired,
            recorded,
            text,
        });
        run.blame(evidence, weights)?;
    }
    if request.update_lock {
        run.write_lock()?;
    }
    Ok(run.finish())
}

fn empty_report(request: &Request<'_>, pair: &Pair<'_>) -> Report {
    Report {
        verdict: Verdict::Pass,
        checks: Vec::new(),
        blame: Vec::new(),
        notes: Vec::new(),
        model: request.model.to_owned(),
        baseline: request.baseline.to_owned(),
        model_sha256: pair.model_sha256.clone(),
        baseline_sha256: pair.baseline_sha256.clone(),
        figures: None,
        tasks: Vec::new(),
        lock_updated: false,
    }
}

struct Run<'a> {
    pair: &'a Pair<'a>,
    report: Report,
    pinned: BTreeMap<String, String>,
    /// Figures of model and baseline, for the lock.
    figures: [BTreeMap<String, f64>; 2],
}

impl Run<'_> {
    fn resampling(&self) -> Resampling {
        let statistics = self.pair.request.file.statistics;
        Resampling {
            confidence: statistics.confidence,
            n_draws: statistics.resamplings,
            seed: statistics.seed,
        }
    }

    fn note(&mut self, name: &str, model: f64, baseline: Option<f64>) {
        self.figures[0].insert(name.to_owned(), model);
        if let Some(baseline) = baseline {
            self.figures[1].insert(name.to_owned(), baseline);
        }
    }

    /// Whether what is compared is what was pinned; tasks are looked at when they are read.
    fn holds(&mut self, lock: &Lock) -> bool {
        let mut pinned_now = lock.clone();
        pinned_now.pinned.retain(|name, _| !name.starts_with("tasks."));
        let differences = pinned_now.differences(&self.pinned);
        self.lock_check(differences)
    }

    fn lock_check(&mut self, differences: Vec<String>) -> bool {
        if differences.is_empty() {
            return true;
        }
        let path = self.pair.request.lock.display();
        let message = format!(
            "{path} is about another comparison: {}. If that is meant, run with --update-lock",
            differences.join("; ")
        );
        self.report.checks.push(Check::of_fact("lock", false, message));
        false
    }

    /// Bounds that need no run.
    fn facts(&mut self) -> Result<(), GateError> {
        let bounds = &self.pair.request.file.gate;
        let (model, baseline) = (&self.pair.model, &self.pair.baseline);
        let size = facts::bytes_on_disk(&model.artefact)? as f64;
        self.note("file_bytes", size, Some(facts::bytes_on_disk(&baseline.artefact)? as f64));
        if let Some(bound) = bounds.file_size {
            let bound = bound.at_most as f64;
            let claim = exact_claim("file_size.at_most", "file size", Side::AtMost, bound, Unit::Bytes);
            self.report.checks.push(claim.judge_exact(size));
        }
        let bits = facts::bits_per_weight(&model.checkpoint)?;
        self.note("bits_per_weight", bits, Some(facts::bits_per_weight(&baseline.checkpoint)?));
        if let Some(bound) = bounds.bits_per_weight {
            let claim = exact_claim(
                "bits_per_weight.at_most",
                "bits per weight",
                Side::AtMost,
                bound.at_most,
                Unit::Plain,
            );
            self.report.checks.push(claim.judge_exact(bits));
        }
        let fallbacks = facts::fallbacks(&model.checkpoint, &baseline.checkpoint);
        match bounds.fallbacks {
            Some(Permit::Forbid) => {
                let message = if !fallbacks.is_empty() {
                    format!("{} fallbacks, none is allowed: {}", fallbacks.len(), fallbacks.join("; "))
                } else if model.checkpoint.lineage.steps.is_empty() {
                    "the model's history is not recorded: no fallback is known of".to_owned()
                } else {
                    "no fallback".to_owned()
                };
                self.report.checks.push(Check::of_fact("fallbacks", fallbacks.is_empty(), message));
            }
            Some(Permit::Allow) | None => self.report.notes.extend(fallbacks),
        }
        Ok(())
    }

    /// Compares the weights, where damaged tensors are a matter of the gate.
    fn weights(&mut self) -> Result<Option<Weights>, GateError> {
        let Some(permit) = self.pair.request.file.gate.damaged else { return Ok(None) };
        if !self.have_one_shape() {
            let message =
                "gate.damaged compares tensor by tensor, and the model has another shape than the baseline";
            return Err(GateError::Input(message.to_owned()));
        }
        let weights = Weights::compare(self.pair)?;
        let damaged = weights.damaged();
        match permit {
            Permit::Allow => self.report.notes.extend(damaged),
            Permit::Forbid => {
                let message = match damaged.len() {
                    0 => "no tensor is damaged".to_owned(),
                    n => format!("{n} tensors are not the baseline's, rounded: {}", damaged.join("; ")),
                };
                self.report.checks.push(Check::of_fact("damaged", damaged.is_empty(), message));
            }
        }
        Ok(Some(weights))
    }

    fn have_one_shape(&self) -> bool {
        let [model, baseline] =
            [&self.pair.model, &self.pair.baseline].map(|opened| opened.checkpoint.spec());
        model.n_parameters() == baseline.n_parameters() && model.n_layers == baseline.n_layers
    }

    fn text_is_bounded(&self) -> bool {
        let bounds = &self.pair.request.file.gate;
        bounds.perplexity.is_some() || bounds.kld.is_some() || bounds.same_top.is_some()
    }

    fn on_text(
        &mut self,
        (_, text): (&DataSection, &GateText),
    ) -> Result<(slmc_eval::Paired, slmc_eval::Baseline), GateError> {
        let recorded = self.pair.recorded(text)?;
        let paired = self.pair.on_text(text, &recorded)?;
        let figures = paired.figures(self.resampling());
        let bounds = &self.pair.request.file.gate;
        let (ppl, ppl_base) = (figures.ppl, figures.ppl_base);
        let mut checks = Vec::new();
        if let Some(bound) = bounds.perplexity {
            if let Some(most) = bound.increase_at_most {
                let claim = exact_claim(
                    "perplexity.increase_at_most",
                    "perplexity's increase",
                    Side::AtMost,
                    most,
                    Unit::Percent,
                );
                let claim = Claim { judge: bound.judge, baseline: Some(ppl_base), model: Some(ppl), ..claim };
                checks.push(claim.judge(figures.ppl_increase));
            }
            if let Some(most) = bound.at_most {
                let claim = exact_claim("perplexity.at_most", "perplexity", Side::AtMost, most, Unit::Plain);
                checks.push(Claim { baseline: Some(ppl_base), ..claim }.judge_exact(ppl));
            }
        }
        if let Some(bound) = bounds.kld {
            if let Some(most) = bound.at_most {
                let claim = exact_claim("kld.at_most", "KL divergence", Side::AtMost, most, Unit::Plain);
                checks.push(Claim { judge: bound.judge, ..claim }.judge(figures.kld));
            }
            if let Some(most) = bound.p99_at_most {
                let claim = exact_claim(
                    "kld.p99_at_most",
                    "KL divergence, 99th percentile",
                    Side::AtMost,
                    most,
                    Unit::Plain,
                );
                checks.push(claim.judge_exact(figures.kld_p99));
            }
        }
        if let Some(bound) = bounds.same_top {
            let claim = exact_claim(
                "same_top.at_least",
                "same likeliest token",
                Side::AtLeast,
                bound.at_least,
                Unit::Percent,
            );
            checks.push(Claim { judge: bound.judge, ..claim }.judge(figures.same_top));
        }
        self.report.checks.extend(checks);
        self.note("ppl", ppl, Some(ppl_base));
        self.note("kld", figures.kld.estimate, None);
        self.report.figures = Some(figures);
        Ok((paired, recorded))
    }

    fn tasks(&mut self, lock: Option<&Lock>) -> Result<(), GateError> {
        let request = self.pair.request;
        for (name, bound) in &request.file.gate.tasks {
            let (model, baseline, hash) = self.pair.on_task(name, bound)?;
            let pin = format!("tasks.{name}");
            let pinned = lock.and_then(|lock| lock.pinned.get(&pin));
            if lock.is_some() && pinned != Some(&hash) {
                let known = pinned.map_or("not in the lock", |_| "another in the lock");
                self.lock_check(vec![format!("task `{name}` is {known}")]);
            }
            self.pinned.insert(pin, hash);
            let different = || {
                GateError::Failed(format!("task `{name}`: the baseline's kept results are of other items"))
            };
            let compared = compare(&baseline, &model, self.resampling()).ok_or_else(different)?;
            if let Some(least) = bound.recovery_at_least {
                if compared.first == 0.0 {
                    let message =
                        format!("{name}: the baseline has no item right, so there is nothing to recover");
                    self.report.checks.push(Check::of_fact(
                        &format!("tasks.{name}.recovery_at_least"),
                        true,
                        message,
                    ));
                } else {
                    let what = format!("{name}, share of the baseline's {}", compared.metric.name());
                    let claim = exact_claim(
                        &format!("tasks.{name}.recovery_at_least"),
                        &what,
                        Side::AtLeast,
                        least,
                        Unit::Percent,
                    );
                    let claim = Claim {
                        judge: bound.judge,
                        baseline: Some(compared.first),
                        model: Some(compared.second),
                        ..claim
                    };
                    self.report.checks.push(claim.judge(compared.ratio));
                }
            }
            if let Some(least) = bound.at_least {
                let what = format!("{name}, {}", compared.metric.name());
                let claim = exact_claim(
                    &format!("tasks.{name}.at_least"),
                    &what,
                    Side::AtLeast,
                    least,
                    Unit::Percent,
                );
                self.report
                    .checks
                    .push(Claim { baseline: Some(compared.first), ..claim }.judge_exact(compared.second));
            }
            self.writing(name, bound, [&baseline, &model].map(|result| result.figures.writing))?;
            self.note(&format!("tasks.{name}"), compared.second, Some(compared.first));
            self.report.tasks.push(compared);
        }
        Ok(())
    }

    /// How the texts that a task asks for fail; the baseline's figures and the model's.
    fn writing(
        &mut self,
        name: &str,
        bound: &TaskBound,
        figures: [Option<WritingFigures>; 2],
    ) -> Result<(), GateError> {
        for WritingBound { key, what, share, at_most } in bound.writing() {
            let key = format!("tasks.{name}.{key}");
            let [Some(baseline), Some(model)] = figures else {
                return Err(GateError::Input(format!("{key}: nothing is written in this task: take it out")));
            };
            let what = format!("{name}, {what}");
            let claim = exact_claim(&key, &what, Side::AtMost, at_most, Unit::Percent);
            let claim = Claim { baseline: Some(share(&baseline)), ..claim };
            self.report.checks.push(claim.judge_exact(share(&model)));
        }
        Ok(())
    }

    /// Speed and memory.
    fn resources(&mut self) -> Result<(), GateError> {
        let bounds = &self.pair.request.file.gate;
        if let Some(bound) = bounds.tokens_per_second {
            let baseline = self.pair.baseline_engine()?;
            let (model, base) =
                speed::tokens_per_second(self.pair.model_engine()?, &baseline, self.pair.request.host)?;
            if let Some(least) = bound.ratio_at_least {
                let claim = exact_claim(
                    "tokens_per_second.ratio_at_least",
                    "speed beside the baseline",
                    Side::AtLeast,
                    least,
                    Unit::Plain,
                );
                let claim = Claim { baseline: Some(base), model: Some(model), ..claim };
                self.report.checks.push(claim.judge_exact(model / base));
            }
            if let Some(least) = bound.at_least {
                let claim = exact_claim(
                    "tokens_per_second.at_least",
                    "tokens a second",
                    Side::AtLeast,
                    least,
                    Unit::Plain,
                );
                self.report.checks.push(Claim { baseline: Some(base), ..claim }.judge_exact(model));
            }
            self.note("tokens_per_second", model, Some(base));
        }
        if let Some(bound) = bounds.peak_memory {
            let peak =
                (self.pair.request.peak_memory)(self.pair.request.model).map_err(GateError::Failed)? as f64;
            let claim = exact_claim(
                "peak_memory.at_most",
                "peak memory",
                Side::AtMost,
                bound.at_most as f64,
                Unit::Bytes,
            );
            self.report.checks.push(claim.judge_exact(peak));
            self.note("peak_memory", peak, None);
        }
        Ok(())
    }

    /// Whether a check failed that better weights would have kept.
    fn quality_was_lost(&self) -> bool {
        let about_quality = |check: &&Check| {
            ["perplexity", "kld", "same_top", "tasks", "damaged"]
                .iter()
                .any(|name| check.name.starts_with(name))
        };
        self.report.checks.iter().filter(about_quality).any(Check::failed)
    }

    fn blame(&mut self, evidence: Option<Evidence<'_>>, weights: Option<Weights>) -> Result<(), GateError> {
        if !self.have_one_shape() {
            self.report.notes.push("the model has another shape than the baseline: no tensor can be put back to find who is to blame".to_owned());
            return Ok(());
        }
        let weights = weights.map_or_else(|| Weights::compare(self.pair), Ok)?;
        let found = blame::find(self.pair, &weights, evidence, self.pair.request.file.blame)?;
        self.report.blame = found.blame;
        self.report.notes.extend(found.notes);
        Ok(())
    }

    fn write_lock(&mut self) -> Result<(), GateError> {
        let [model, baseline] = self.figures.clone();
        let lock = Lock {
            pinned: self.pinned.clone(),
            baseline,
            model_sha256: self.pair.model_sha256.clone(),
            model,
        };
        lock.write(self.pair.request.lock)?;
        self.report.lock_updated = true;
        Ok(())
    }

    fn finish(mut self) -> Report {
        let failed = self.report.checks.iter().any(Check::failed);
        self.report.verdict = if failed { Verdict::Fail } else { Verdict::Pass };
        self.report
    }
}

fn exact_claim<'a>(name: &str, what: &'a str, side: Side, bound: f64, unit: Unit) -> Claim<'a> {
    Claim {
        name: name.to_owned(),
        what,
        side,
        bound,
        judge: Judge::Estimate,
        unit,
        baseline: None,
        model: None,
    }
}
