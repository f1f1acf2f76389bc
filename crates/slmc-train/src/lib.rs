//! Training and distillation: one loop for next-token learning and for learning from a teacher.
//!
//! [`train`] takes a student, batches and settings, and leaves a log and checkpoints in a folder. A run that was
//! interrupted at any moment goes on from its newest checkpoint and ends in the same bytes as an unbroken one.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapter_learner;
mod batches;
mod clock;
mod error;
mod learn;
mod learner;
mod metrics;
mod packed;
mod plan;
mod run_folder;
mod scale_learner;
mod settings;
mod teacher;
mod tensor_file;
mod train;

pub use batches::BatchSource;
pub use error::TrainError;
pub use metrics::{EvalFigures, LossFigures, MetricsLine};
pub use plan::{Plan, TIMED_STEPS};
pub use run_folder::{RunState, discard};
pub use settings::{Budget, DistillSettings, Precision, TrainSettings};
pub use teacher::Teacher;
pub use train::{
    AdapterInputs, Outcome, ScaleInputs, Stopped, TrainInputs, train, train_adapter, train_scales,
};
