//! What a baseline predicted, kept on disk: named by what it follows from, so that nothing in it can be out of date.
//!
//! `KEY.base` holds predictions on a text ([`Baseline`]), `KEY.task.json` a task's results; KEY is the SHA-256 of the
//! baseline's hash, the text's or items' hash, the settings and the release line of slmc. Any file may be deleted; one that is
//! damaged is made again, with a warning.

use std::{
    fs,
    path::{Path, PathBuf},
};

use slmc_data::sha256_bytes;
use slmc_eval::tasks::TaskResult;
use slmc_formats::AtomicFile;
use slmc_ir::Host;

use crate::GateError;

/// Largest file of a task's results.
const MAX_RESULT_BYTES: u64 = 1 << 30;

/// A folder of predictions.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in a folder, which is made when something is put there.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A task's results, if they are there.
    pub(crate) fn task(&self, key: &str, host: &dyn Host) -> Option<TaskResult> {
        let path = self.task_path(key);
        let n_bytes = fs::metadata(&path).ok()?.len();
        let text = (n_bytes <= MAX_RESULT_BYTES).then(|| fs::read_to_string(&path).ok()).flatten();
        // The first line is the checksum of the rest.
        let checked = text.as_deref().and_then(|text| text.split_once('\n'));
        let whole = checked.filter(|(digest, rest)| *digest == sha256_bytes(rest.as_bytes()));
        let result = whole.and_then(|(_, rest)| serde_json::from_str(rest).ok());
        if result.is_none() {
            host.warn(&format!("{}: it is damaged: the baseline is run again", path.display()));
        }
        result
    }

    /// Keeps a task's results.
    pub(crate) fn keep_task(&self, key: &str, result: &TaskResult) -> Result<(), GateError> {
        self.make_folder()?;
        let text = serde_json::to_string(result).map_err(|e| GateError::Failed(e.to_string()))?;
        let mut file = AtomicFile::create(&self.task_path(key))?;
        file.put(format!("{}\n{text}", sha256_bytes(text.as_bytes())).as_bytes())?;
        Ok(file.commit()?)
    }

    fn task_path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.task.json"))
    }

    fn make_folder(&self) -> Result<(), GateError> {
        let failed = |e| GateError::Failed(format!("cannot make the cache {}: {e}", self.folder.display()));
        fs::create_dir_all(&self.folder).map_err(failed)
    }
}
