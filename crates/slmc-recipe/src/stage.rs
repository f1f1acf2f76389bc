//! What a stage promises: to say beforehand what it will leave, and then to leave it.

use std::path::{Path, PathBuf};

use slmc_ir::{Checkpoint, Host, Input, Lineage, Outline, Step};

/// One step of a run.
pub trait Stage {
    /// Name of the stage's kind: `distill`.
    fn name(&self) -> &'static str;
    /// Proves from outlines alone that the stage can do its work, and says what it will leave. Reads no weight.
    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection>;
    /// Does the work. What it makes lies under `context.folder`.
    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError>;
}

/// What a stage is given besides its input.
pub struct StageContext<'a> {
    /// The stage's own folder; exists, and may hold the work of an interrupted run.
    pub folder: &'a Path,
    /// The seed of everything random in this stage.
    pub seed: u64,
    /// Progress, warnings, the clock, and the user's wish to stop.
    pub host: &'a dyn Host,
    /// The recipe's own model, for stages that compare with it.
    pub model: Option<&'a Checkpoint>,
    /// Version of slmc, for the lineage.
    pub version: &'a str,
    /// The stage's settings, defaults filled in, for the lineage.
    pub settings: &'a serde_json::Value,
    /// The files that went in besides what the stage before left, for the lineage.
    pub inputs: &'a [Input],
}

impl StageContext<'_> {
    /// A history with the stage as its last step.
    pub fn history(&self, before: &Lineage, stage: &dyn Stage, fallbacks: &[String]) -> Lineage {
        let mut lineage = before.clone();
        lineage.steps.push(Step {
            stage: stage.name().to_owned(),
            slmc_version: self.version.to_owned(),
            settings: self.settings.clone(),
            seed: self.seed,
            inputs: self.inputs.to_vec(),
            fallbacks: fallbacks.to_vec(),
            channel_order: None,
            channel_scales: None,
        });
        lineage
    }
}

/// What a stage made.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The artefact: a file or a folder that can be opened as a checkpoint.
    pub artefact: PathBuf,
    /// What is worth knowing of how it went.
    pub report: serde_json::Value,
    /// What was done other than asked, in words.
    pub fallbacks: Vec<String>,
}

/// Why a stage cannot take its input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);

/// A stage that did not finish.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The user asked to stop; what was done is saved.
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// Settings or input are wrong.
    #[error("{0}")]
    Input(String),
    /// The work failed.
    #[error("{0}")]
    Failed(String),
}
