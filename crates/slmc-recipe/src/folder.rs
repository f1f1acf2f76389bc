//! The run folder: the plan, and a folder for each stage with its result.
//!
//! ```text
//! plan.json            the recipe with its defaults filled in
//! 01-carve/            the stage's own files
//! 01-carve/result.json written last: the stage is finished when it is there
//! summary.json         the table at the end of the run
//! ```
//!
//! The points of a sweep share their stages: those lie under names that their keys are part of, beside the points.
//!
//! ```text
//! points/001-q4_0/plan.json, summary.json
//! stages/01-carve-3f9a0c41b2d7/
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
    /// Where the stages' folders are.
    stages: PathBuf,
    /// Whether stages have their keys in their folders' names.
    shared: bool,
}

/// Characters of a key that a shared stage's name has.
const KEY_LEN: usize = 12;

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
        Ok(Self { root: root.to_owned(), stages: root.to_owned(), shared: false })
    }

    /// Opens the folder of one point of the sweep in `sweep`: stages that points have in common are one folder.
    pub fn open_point(sweep: &Path, name: &str) -> io::Result<Self> {
        let (root, stages) = (sweep.join("points").join(name), sweep.join("stages"));
        fs::create_dir_all(&root)?;
        fs::create_dir_all(&stages)?;
        Ok(Self { root, stages, shared: true })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A stage's folder, made when it is not there. `key` decides the stage's result.
    pub fn stage(&self, index: usize, name: &str, key: &str) -> io::Result<PathBuf> {
        self.numbered(index + 1, name, key)
    }

    /// Where the measures of the run's input are kept.
    pub(crate) fn stage_zero(&self, key: &str) -> io::Result<PathBuf> {
        self.numbered(0, "input", key)
    }

    fn numbered(&self, number: usize, name: &str, key: &str) -> io::Result<PathBuf> {
        let key = key.get(..KEY_LEN).unwrap_or(key);
        let name =
            if self.shared { format!("{number:02}-{name}-{key}") } else { format!("{number:02}-{name}") };
        let folder = self.stages.join(name);
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
