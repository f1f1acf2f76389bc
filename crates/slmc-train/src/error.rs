//! What can go wrong in training.

use std::path::{Path, PathBuf};

/// A training run that could not be started, continued or finished.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A setting that no run can have.
    #[error("{field} = {value}: {why}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What it was set to.
        value: String,
        /// What it should be.
        why: &'static str,
    },
    /// Batches that do not have the shape the settings say.
    #[error(
        "the batches have {found:?} rows and tokens a row where the settings say {expected:?}: build them from the \
         same batch_size and seq_len"
    )]
    BatchShape {
        /// `[batch_size, seq_len]` by the settings.
        expected: [usize; 2],
        /// The same of a batch.
        found: [usize; 2],
    },
    /// The data could not be read.
    #[error("batch {index}: {message}")]
    Data {
        /// Which batch, counted from 0.
        index: u64,
        /// What happened.
        message: String,
    },
    /// A loss or gradient that is not a finite number: the run cannot go on from here.
    #[error(
        "step {step}: {what} is not finite. The last checkpoint is intact; a lower learning rate, a longer warm-up \
         or a smaller clip_norm usually helps"
    )]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// The loss, or the tensor whose gradient it is.
        what: String,
    },
    /// Distillation without a teacher, or the other way round.
    #[error("{0}")]
    Teacher(&'static str),
    /// The teacher could not be asked.
    #[error("the teacher: {0}")]
    Teaching(String),
    /// A packed model whose scales cannot learn.
    #[error("{0}")]
    Packed(String),
    /// An adapter that is none, or another model's.
    #[error("{0}")]
    Adapter(String),
    /// The folder holds a run with other settings or inputs.
    #[error(
        "{run_dir} holds a run where {what} is {there}, not {here}: give the run's own settings to resume it, or \
         another folder to start anew"
    )]
    OtherRun {
        /// The run's folder.
        run_dir: PathBuf,
        /// What differs.
        what: String,
        /// Its value in the folder.
        there: String,
        /// Its value now.
        here: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A checkpoint that is not what it should be.
    #[error("checkpoint {path}: {message}")]
    Checkpoint {
        /// Its file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The student cannot be built from its weights.
    #[error(transparent)]
    Source(#[from] slmc_ir::SourceError),
}

impl TrainError {
    /// Names the path in a system error: `.map_err(TrainError::io(path))`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// A damaged or foreign checkpoint.
    pub(crate) fn checkpoint(path: &Path, message: impl ToString) -> Self {
        Self::Checkpoint { path: path.to_owned(), message: message.to_string() }
    }
}
