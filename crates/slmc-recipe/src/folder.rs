//! The run folder: the plan, and a folder for each stage with its result.
//!
//! ```text
//! plan.json            the recipe with its defaults filled in
//! 01-carve/            the stage's own files
//! 01-carve/result.json written last: the stage is finished when it is there
//! summary.json         the table at the end of the run
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use slmc_formats::AtomicFile;

use crate::Evaluation;

/// A run's folder.
pub struct RunFolder {
    root: PathBuf,
}

/// What a finished stage left, as `result.json` keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedStage {
    /// Hash of everything that decides the result: settings, seed, version, and the key of the stage before.
    pub key: String,
    /// The stage's name.
    pub name: String,
    /// The artefact, relative to the stage's folder.
    pub artefact: PathBuf,
    /// Bytes of the artefact.
    pub artefact_bytes: u64,
    /// What the stage reported.
    pub report: serde_json::Value,
    /// What was done other than asked.
    pub fallbacks: Vec<String>,
    /// How good the result is, where the recipe asks.
    pub evaluation: Option<Evaluation>,
    /// Wall-clock time in this and earlier sittings.
    pub seconds: f64,
}

impl RunFolder {
    /// Opens a run folder, making it when it is not there.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: root.to_owned() })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A stage's folder, made when it is not there.
    pub fn stage(&self, index: usize, name: &str) -> io::Result<PathBuf> {
        let folder = self.root.join(format!("{:02}-{name}", index + 1));
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Where the measures of the run's input are kept.
    pub(crate) fn stage_zero(&self) -> io::Result<PathBuf> {
        let folder = self.root.join("00-input");
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Forgets everything in a stage's folder.
    pub fn clear(&self, stage: &Path) -> io::Result<()> {
        fs::remove_dir_all(stage)?;
        fs::create_dir_all(stage)
    }

    /// The key under which unfinished work lies in a stage's folder.
    pub fn begun(&self, stage: &Path) -> Option<String> {
        fs::read_to_string(stage.join("begun")).ok()
    }

    /// Notes that the work in a stage's folder is for `key`.
    pub fn begin(&self, stage: &Path, key: &str) -> io::Result<()> {
        write_atomically(&stage.join("begun"), key.as_bytes())
    }

    /// A stage's result, when it is finished and its artefact is still there.
    pub fn finished(&self, stage: &Path) -> Option<FinishedStage> {
        let text = fs::read(stage.join("result.json")).ok()?;
        let result: FinishedStage = serde_json::from_slice(&text).ok()?;
        stage.join(&result.artefact).exists().then_some(result)
    }

    /// Marks a stage as finished.
    pub fn finish(&self, stage: &Path, result: &FinishedStage) -> io::Result<()> {
        write_atomically(&stage.join("result.json"), &to_json(result)?)
    }

    /// Writes one of the run's own files (`plan.json`, `summary.json`).
    pub fn write<T: Serialize>(&self, name: &str, content: &T) -> io::Result<()> {
        write_atomically(&self.root.join(name), &to_json(content)?)
    }
}

fn to_json<T: Serialize>(content: &T) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(content).map_err(io::Error::other)?;
    text.push(b'\n');
    Ok(text)
}

fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path).map_err(io::Error::other)?;
    file.put(content).map_err(io::Error::other)?;
    file.commit().map_err(io::Error::other)
}

/// Bytes of a file, or of all files in a folder.
pub(crate) fn size_of(path: &Path) -> io::Result<u64> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs::read_dir(path)?.map(|entry| size_of(&entry?.path())).sum()
}
