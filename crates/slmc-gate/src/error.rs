//! Why a gate gave no verdict.

use slmc_engine::EngineError;
use slmc_eval::{EvalError, tasks::TaskError};
use slmc_formats::FileError;

/// A gate that could not be judged. A gate that was judged and failed is no error.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The gate file, a model, or the data is wrong.
    #[error("{0}")]
    Input(String),
    /// The measuring failed.
    #[error("{0}")]
    Failed(String),
    /// The user stopped it.
    #[error("{0}")]
    Stopped(String),
}

impl GateError {
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }
}

impl From<EvalError> for GateError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Stopped { .. } => Self::Stopped(error.to_string()),
            EvalError::Forward(_)
            | EvalError::NotFinite { .. }
            | EvalError::Row { .. }
            | EvalError::Cache(_)
            | EvalError::Baseline { .. } => Self::Failed(error.to_string()),
            _ => Self::Input(error.to_string()),
        }
    }
}

impl From<EngineError> for GateError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Setting { .. } | EngineError::Context { .. } | EngineError::Token { .. } => {
                Self::Input(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<TaskError> for GateError {
    fn from(error: TaskError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<FileError> for GateError {
    fn from(error: FileError) -> Self {
        Self::Failed(error.to_string())
    }
}
