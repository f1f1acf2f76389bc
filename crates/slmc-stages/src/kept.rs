//! Files in a stage's folder that an interrupted run goes on from: there under their name only when they are complete.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};
use slmc_formats::AtomicFile;
use slmc_recipe::StageError;

/// Writes a file, or nothing.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StageError> {
    let write = || {
        let mut file = AtomicFile::create(path)?;
        file.put(bytes)?;
        file.commit()
    };
    write().map_err(|e| StageError::Failed(e.to_string()))
}

/// Writes a document as JSON.
pub fn write_json<T: Serialize>(path: &Path, document: &T) -> Result<(), StageError> {
    write(path, &serde_json::to_vec(document).map_err(|e| failed(path, e))?)
}

/// Reads what [`write_json`] wrote.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StageError> {
    let bytes = std::fs::read(path).map_err(|e| failed(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| failed(path, format!("{e}: delete the file, it is made anew")))
}

/// A failure that names its file or folder.
pub fn failed(path: &Path, error: impl std::fmt::Display) -> StageError {
    StageError::Failed(format!("{}: {error}", path.display()))
}
