//! A recipe proved: every stage accepts what the one before it leaves.

use slmc_ir::{Checkpoint, Outline};

use crate::{Recipe, Stage, StageEntry};

/// A recipe and its stages, with what each will leave.
pub struct Plan {
    /// The recipe, defaults filled in.
    pub recipe: Recipe,
    /// What goes in.
    pub input: Option<Outline>,
    /// The recipe's model where whoever planned has it open already; else the runner opens it.
    pub model: Option<Checkpoint>,
    /// The stages in order.
    pub stages: Vec<PlannedStage>,
}

/// A stage that accepted what it will be given.
pub struct PlannedStage {
    /// Name and settings.
    pub entry: StageEntry,
    /// What carries it out.
    pub stage: Box<dyn Stage>,
    /// What it will leave.
    pub outline: Outline,
}

/// A recipe that cannot work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlanError {
    /// A stage cannot take what the one before it leaves.
    #[error("stage {index} ({name}) cannot run: {reason}", index = .index + 1)]
    Rejected {
        /// Position from 0.
        index: usize,
        /// The stage's name.
        name: String,
        /// Why, and what would help.
        reason: String,
    },
    /// A transformation that nothing later makes use of.
    #[error(
        "stage {index} ({name}) changes weights for a later rounding, and none comes: add a `quantize` stage behind it",
        index = .index + 1
    )]
    Aimless {
        /// Position from 0.
        index: usize,
        /// The stage's name.
        name: String,
    },
    /// A rotation of channels that were scaled.
    #[error(
        "stage {index} ({name}) rotates channels that a stage before it has scaled: put the rotation first",
        index = .index + 1
    )]
    Unscaled {
        /// Position from 0.
        index: usize,
        /// The stage's name.
        name: String,
    },
    /// There is no model to begin with.
    #[error(
        "the recipe names no `model`, and its first stage makes none: add `model = \"…\"` or a `fresh` stage"
    )]
    NoModel,
}

impl Plan {
    /// Proves a recipe. `build` turns a stage's settings into the stage.
    pub fn new(
        recipe: Recipe,
        input: Option<Outline>,
        build: impl Fn(&StageEntry) -> Result<Box<dyn Stage>, String>,
    ) -> Result<Self, PlanError> {
        if input.is_none() && recipe.stages.first().is_some_and(|entry| entry.config.kind() != "fresh") {
            return Err(PlanError::NoModel);
        }
        if let Some((index, entry)) = aimless(&recipe.stages) {
            return Err(PlanError::Aimless { index, name: entry.name.clone() });
        }
        if let Some((index, entry)) = unscaled(&recipe.stages) {
            return Err(PlanError::Unscaled { index, name: entry.name.clone() });
        }
        let mut stages: Vec<PlannedStage> = Vec::new();
        for (index, entry) in recipe.stages.iter().enumerate() {
            let rejected = |reason: String| PlanError::Rejected { index, name: entry.name.clone(), reason };
            let stage = build(entry).map_err(rejected)?;
            let before = stages.last().map(|s| &s.outline).or(input.as_ref());
            let outline = stage.check(before).map_err(|e| rejected(e.to_string()))?;
            stages.push(PlannedStage { entry: entry.clone(), stage, outline });
        }
        Ok(Self { recipe, input, model: None, stages })
    }
}

/// The first stage that changes weights and not the function while nothing later rounds them.
fn aimless(stages: &[StageEntry]) -> Option<(usize, &StageEntry)> {
    let kind = |entry: &StageEntry| entry.config.kind();
    let rounded = stages.iter().rposition(|entry| kind(entry) == "quantize").unwrap_or(0);
    let is_transform = |entry: &StageEntry| ["rotate", "scale"].contains(&kind(entry));
    stages.iter().enumerate().find(|(index, entry)| is_transform(entry) && *index >= rounded)
}

/// The first rotation behind a search of scales: it would take them up again.
fn unscaled(stages: &[StageEntry]) -> Option<(usize, &StageEntry)> {
    let scaled = stages.iter().position(|entry| entry.config.kind() == "scale")?;
    stages.iter().enumerate().find(|(index, entry)| *index > scaled && entry.config.kind() == "rotate")
}
