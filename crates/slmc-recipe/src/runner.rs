//! Carries a plan out: stage by stage, keeping what is finished.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slmc_ir::{Checkpoint, Host, Input};

use crate::{
    FinishedStage, Plan, PlannedStage, RunFolder, StageContext, StageEntry, StageError, folder::size_of,
};

/// What the runner needs of the world around it and must not know itself.
pub struct Environment<'a> {
    /// Opens an artefact.
    pub open: &'a dyn Fn(&Path) -> Result<Checkpoint, String>,
    /// Measures an opened artefact on the recipe's text.
    pub evaluate: &'a dyn Fn(&Checkpoint) -> Result<Evaluation, StageError>,
    /// Hash of a model or dataset that the recipe names.
    pub fingerprint: &'a dyn Fn(&str) -> Result<String, String>,
    /// Progress, warnings, clock.
    pub host: &'a dyn Host,
    /// Version of slmc.
    pub version: &'a str,
}

/// How good a model is on the recipe's text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Perplexity.
    pub ppl: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Tokens scored.
    pub tokens: u64,
}

/// A line of the table at the end of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageOutcome {
    /// The stage's name; `input` for the model that went in.
    pub name: String,
    /// What it left.
    pub artefact: PathBuf,
    /// Weights of the model.
    pub n_parameters: u64,
    /// Bytes of the artefact.
    pub file_bytes: u64,
    /// Stored bits of all tensors over all weights.
    pub bits_per_weight: f64,
    /// How good it is, where the recipe asks.
    pub evaluation: Option<Evaluation>,
    /// What was done other than asked.
    pub fallbacks: Vec<String>,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Whether an earlier run had finished it.
    pub kept: bool,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSummary {
    /// The recipe's name.
    pub name: String,
    /// The input, then each stage.
    pub stages: Vec<StageOutcome>,
}

/// A run that did not finish.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The run folder cannot be used.
    #[error("the run folder {folder}: {error}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// A model that was there when the plan was made cannot be opened.
    #[error("cannot open {path}: {message}")]
    Open {
        /// The artefact.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A stage did not finish.
    #[error("stage `{name}`: {error}")]
    Stage {
        /// The stage's name; `input` while the input is measured.
        name: String,
        /// What happened.
        error: StageError,
    },
}

/// Runs a plan in `folder`. Stages that an earlier run finished with the same settings and inputs are kept.
pub fn run(plan: &Plan, folder: &RunFolder, environment: &Environment<'_>) -> Result<RunSummary, RunError> {
    let in_folder = |error| RunError::Folder { folder: folder.root().to_owned(), error };
    folder.write("plan.json", &plan.recipe).map_err(in_folder)?;
    let mut runner = Runner { plan, folder, environment, outcomes: Vec::new(), hashes: BTreeMap::new() };
    let summary = runner.run()?;
    folder.write("summary.json", &summary).map_err(in_folder)?;
    Ok(summary)
}

struct Runner<'a> {
    plan: &'a Plan,
    folder: &'a RunFolder,
    environment: &'a Environment<'a>,
    outcomes: Vec<StageOutcome>,
    /// SHA-256 of each file that the recipe names, by its path.
    hashes: BTreeMap<String, String>,
}

impl Runner<'_> {
    fn run(&mut self) -> Result<RunSummary, RunError> {
        let recipe = &self.plan.recipe;
        let model = match (&self.plan.model, &recipe.model) {
            (Some(opened), _) => Some(opened.clone()),
            (None, Some(path)) => Some(self.open(Path::new(path))?),
            (None, None) => None,
        };
        self.hash_inputs()?;
        let mut key = digest(&[release_line(self.environment.version), &self.inputs_key()]);
        if let (Some(model), Some(path)) = (&model, &recipe.model) {
            self.measure_input(model, path, &key)?;
        }
        let mut current = model.clone();
        for (index, planned) in self.plan.stages.iter().enumerate() {
            let settings = serde_json::to_string(&planned.entry).unwrap_or_default();
            key = digest(&[&key, &settings, &recipe.seed.to_string()]);
            current = Some(self.stage(index, planned, &key, current.take(), model.as_ref())?);
        }
        Ok(RunSummary { name: recipe.name.clone(), stages: std::mem::take(&mut self.outcomes) })
    }

    /// Hashes every file that the recipe names.
    fn hash_inputs(&mut self) -> Result<(), RunError> {
        let recipe = &self.plan.recipe;
        let mut paths: Vec<String> = recipe.model.iter().cloned().collect();
        paths.extend(recipe.eval.iter().map(|eval| eval.data.clone()));
        paths.extend(recipe.stages.iter().flat_map(named_paths).map(|(_, path)| path));
        for path in paths {
            if !self.hashes.contains_key(&path) {
                let open = |message| RunError::Open { path: path.clone().into(), message };
                let hash = (self.environment.fingerprint)(&path).map_err(open)?;
                self.hashes.insert(path, hash);
            }
        }
        Ok(())
    }

    /// One hash for all of them: a changed input makes a new run of the stages.
    fn inputs_key(&self) -> String {
        digest(&self.hashes.values().map(String::as_str).collect::<Vec<_>>())
    }

    /// The files that go into a stage besides what the one before it left.
    fn inputs(&self, entry: &StageEntry, is_first: bool) -> Vec<Input> {
        let model = self.plan.recipe.model.iter().filter(|_| is_first).map(|path| ("model", path.clone()));
        let input = |(role, path): (&str, String)| {
            let sha256 = self.hashes.get(&path).cloned().unwrap_or_default();
            Input { role: role.to_owned(), path, sha256 }
        };
        model.chain(named_paths(entry)).map(input).collect()
    }

    fn measure_input(&mut self, model: &Checkpoint, path: &str, key: &str) -> Result<(), RunError> {
        let started = self.environment.host.elapsed();
        let folder = self.folder.stage_zero(key).map_err(|error| self.folder_error(error))?;
        let known = self.folder.finished(&folder).filter(|result| result.key == key);
        let kept = known.is_some();
        let evaluation = match known {
            Some(result) => result.evaluation,
            None => self.evaluate("input", model)?,
        };
        let seconds = (self.environment.host.elapsed() - started).as_secs_f64();
        let artefact_bytes = size_of(Path::new(path)).map_err(|error| self.folder_error(error))?;
        if !kept {
            let result = FinishedStage {
                key: key.to_owned(),
                name: "input".to_owned(),
                artefact: PathBuf::from("."),
                artefact_bytes,
                report: serde_json::Value::Null,
                fallbacks: Vec::new(),
                evaluation: evaluation.clone(),
                seconds,
            };
            self.folder.finish(&folder, &result).map_err(|error| self.folder_error(error))?;
        }
        self.outcomes.push(outcome("input", model, path.into(), artefact_bytes, evaluation, seconds, kept)?);
        Ok(())
    }

    /// Runs one stage, or finds it finished; returns its artefact, opened.
    fn stage(
        &mut self,
        index: usize,
        planned: &PlannedStage,
        key: &str,
        input: Option<Checkpoint>,
        model: Option<&Checkpoint>,
    ) -> Result<Checkpoint, RunError> {
        let name = &planned.entry.name;
        let folder = self.folder.stage(index, name, key).map_err(|error| self.folder_error(error))?;
        let known = self.folder.finished(&folder).filter(|result| result.key == key);
        let kept = known.is_some();
        let result = match known {
            Some(result) => result,
            None => {
                let inputs = self.inputs(&planned.entry, index == 0);
                self.carry_out(planned, &folder, key, input, model, &inputs)?
            }
        };
        let artefact = folder.join(&result.artefact);
        let opened = self.open(&artefact)?;
        let FinishedStage { artefact_bytes, evaluation, seconds, fallbacks, .. } = result;
        let line = outcome(name, &opened, artefact, artefact_bytes, evaluation, seconds, kept)?;
        self.outcomes.push(StageOutcome { fallbacks, ..line });
        Ok(opened)
    }

    fn carry_out(
        &self,
        planned: &PlannedStage,
        folder: &Path,
        key: &str,
        input: Option<Checkpoint>,
        model: Option<&Checkpoint>,
        inputs: &[Input],
    ) -> Result<FinishedStage, RunError> {
        let Environment { host, version, .. } = *self.environment;
        let name = &planned.entry.name;
        // Work begun with other settings or inputs is of no use.
        if self.folder.begun(folder).is_some_and(|begun| begun != key) {
            host.warn(&format!("stage `{name}`: settings or inputs changed, it starts afresh"));
            self.folder.clear(folder).map_err(|error| self.folder_error(error))?;
        }
        self.folder.begin(folder, key).map_err(|error| self.folder_error(error))?;
        let started = host.elapsed();
        let settings = &serde_json::to_value(&planned.entry.config).unwrap_or_default();
        let seed = self.plan.recipe.seed;
        let context = StageContext { folder, seed, host, model, version, settings, inputs };
        let failed = |error| RunError::Stage { name: name.clone(), error };
        let finished = planned.stage.run(input, &context).map_err(failed)?;
        let seconds = (host.elapsed() - started).as_secs_f64();
        let evaluation = match &self.plan.recipe.eval {
            Some(_) => self.evaluate(name, &self.open(&finished.artefact)?)?,
            None => None,
        };
        let relative = finished.artefact.strip_prefix(folder).unwrap_or(&finished.artefact).to_owned();
        let result = FinishedStage {
            key: key.to_owned(),
            name: name.clone(),
            artefact: relative,
            artefact_bytes: size_of(&finished.artefact).map_err(|error| self.folder_error(error))?,
            report: finished.report,
            fallbacks: finished.fallbacks,
            evaluation,
            seconds,
        };
        self.folder.finish(folder, &result).map_err(|error| self.folder_error(error))?;
        Ok(result)
    }

    fn evaluate(&self, name: &str, checkpoint: &Checkpoint) -> Result<Option<Evaluation>, RunError> {
        if self.plan.recipe.eval.is_none() {
            return Ok(None);
        }
        let failed = |error| RunError::Stage { name: name.to_owned(), error };
        (self.environment.evaluate)(checkpoint).map(Some).map_err(failed)
    }

    fn open(&self, path: &Path) -> Result<Checkpoint, RunError> {
        (self.environment.open)(path).map_err(|message| RunError::Open { path: path.to_owned(), message })
    }

    fn folder_error(&self, error: std::io::Error) -> RunError {
        RunError::Folder { folder: self.folder.root().to_owned(), error }
    }
}

fn outcome(
    name: &str,
    checkpoint: &Checkpoint,
    artefact: PathBuf,
    file_bytes: u64,
    evaluation: Option<Evaluation>,
    seconds: f64,
    kept: bool,
) -> Result<StageOutcome, RunError> {
    let n_parameters = checkpoint.spec().n_parameters();
    let unreadable =
        |e: slmc_ir::SourceError| RunError::Open { path: artefact.clone(), message: e.to_string() };
    let mut n_bits = 0.0;
    for &key in checkpoint.weights.keys() {
        let n_weights: usize = key.shape(checkpoint.spec()).iter().product();
        n_bits += checkpoint.weights.format(key).map_err(unreadable)?.bits_per_weight() * n_weights as f64;
    }
    Ok(StageOutcome {
        name: name.to_owned(),
        artefact,
        n_parameters,
        file_bytes,
        bits_per_weight: n_bits / n_parameters as f64,
        evaluation,
        fallbacks: Vec::new(),
        seconds,
        kept,
    })
}

/// The paths in a stage's settings, and what each is for.
fn named_paths(entry: &StageEntry) -> Vec<(&'static str, String)> {
    entry.clone().config.paths_mut().into_iter().map(|(role, path)| (role, path.clone())).collect()
}

/// A patch release changes no result: major and minor version alone decide whether old work is good.
fn release_line(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(minor, _)| minor)
}

fn digest(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
