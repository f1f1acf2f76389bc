//! What the loop asks of whatever learns: steps, evaluations, files to save.

use std::path::Path;

use slmc_data::Batch;

use crate::run_folder::SavedFile;
use crate::{EvalFigures, LossFigures, TrainError, TrainSettings};

/// What a step did.
pub(crate) struct StepFigures {
    pub(crate) losses: LossFigures,
    /// Norm of the gradient before clipping.
    pub(crate) grad_norm: f64,
}

/// Something that learns: all of a decoder, or an adapter of a frozen one.
pub(crate) trait Learn: Sized {
    /// What a run hands out at its end.
    type Student;

    /// One optimizer step over some micro-batches. Each target token weighs the same, whichever micro-batch it is in.
    /// `step` is the step's number, counted from 1.
    fn step(
        self,
        batches: &[Batch],
        step: u64,
        rate: f64,
        settings: &TrainSettings,
    ) -> Result<(Self, StepFigures), TrainError>;

    /// Mean negative log-likelihood over the target tokens of held-out batches.
    fn evaluate(&self, batches: &[Batch], step: u64) -> Result<EvalFigures, TrainError>;

    /// Writes all that goes on from here into a checkpoint's folder.
    fn save(&self, folder: &Path) -> Result<Vec<SavedFile>, TrainError>;

    /// What has learned so far.
    fn student(&self) -> Self::Student;
}
