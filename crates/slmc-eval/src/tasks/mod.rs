//! Tasks whose answers are chosen by likelihood or written, with lm-evaluation-harness's definitions.
//!
//! A task is data: a TOML file says how an item of a JSONL file becomes contexts and continuations ([`TaskFile`]). Nothing
//! here knows a task by name.

mod definition;
mod items;
mod result;
mod score;
mod template;
mod writing;

pub use definition::{Metric, TaskFile, TaskKind};
pub use items::{Item, read_items};
pub use result::{ItemResult, TaskComparison, TaskFigures, TaskResult, compare};
pub use score::{Asked, run_task};
pub use writing::{WritingFigures, WrittenAnswer};

use std::path::PathBuf;

/// A task that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The task's own file is wrong.
    #[error("task `{task}`: {message}")]
    Definition {
        /// The task, or its file.
        task: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An item is not what the task says.
    #[error("{path}, item {number}: {message}", path = path.display())]
    Item {
        /// The items' file.
        path: PathBuf,
        /// The item, from 1.
        number: usize,
        /// What is wrong with it.
        message: String,
    },
}
