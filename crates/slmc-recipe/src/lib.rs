//! Recipes: what a user asks for, the plan proved from it, and the run that carries it out.
//!
//! A recipe is TOML data ([`Recipe`]); a [`Plan`] is a recipe whose every stage accepts what the one before it
//! leaves; [`run`] carries a plan out in a run folder, where finished stages are kept and never run again.
//! What a stage does is not known here: stages implement [`Stage`] in `slmc-stages`.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod config;
mod fallbacks;
mod folder;
mod plan;
mod recipe;
mod runner;
mod stage;
mod suggest;
mod sweep;

pub use config::{
    Budget, CarveConfig, DistillConfig, EvalConfig, ExportConfig, FreshConfig, LoraConfig, QuantizeConfig,
    RotateConfig, ScaleConfig, StageConfig, TrainConfig,
};
pub use fallbacks::summarized;
pub use folder::{FinishedStage, RunFolder};
pub use plan::{Plan, PlanError, PlannedStage};
pub use recipe::{Recipe, RecipeError, StageEntry};
pub use runner::{Environment, Evaluation, RunError, RunSummary, StageOutcome, run};
pub use stage::{Finished, Rejection, Stage, StageContext, StageError};
pub use suggest::explain;
pub use sweep::{Point, Sweep, SweepBudget};
