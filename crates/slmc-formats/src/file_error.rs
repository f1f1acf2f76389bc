//! What the operating system refused, and on which file.

use std::{
    io,
    path::{Path, PathBuf},
};

/// An operation on a file or folder that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{path}`: {source}", path = path.display())]
pub struct FileError {
    /// What was tried: `open`, `write`, `rename to`.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl FileError {
    /// Makes a `map_err` closure for one action on one path.
    pub fn when(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}
