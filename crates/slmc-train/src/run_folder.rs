//! The run's folder: checkpoints that are whole or not there.
//!
//! ```text
//! RUN/metrics.jsonl
//! RUN/checkpoints/step-0000000200/{model.safetensors, optimizer.safetensors, state.json}
//! ```
//! A checkpoint is written into a folder of another name, forced to the disk, and renamed; only then are older
//! ones deleted. So whenever the program dies, the newest folder of the final name is a checkpoint to go on from.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use slmc_ir::Host;

use crate::{EvalFigures, LossFigures, Plan, TrainError, TrainSettings};

/// The layout of `state.json` and the files beside it.
const VERSION: u32 = 1;
const FINAL_PREFIX: &str = "step-";
const UNFINISHED_PREFIX: &str = ".unfinished-";
const STATE_FILE: &str = "state.json";

/// The student's weights in a checkpoint.
pub(crate) const MODEL_FILE: &str = "model.safetensors";
/// The optimizer's moments in a checkpoint.
pub(crate) const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// A file of a checkpoint and its length: what tells a whole checkpoint from a damaged one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedFile {
    pub(crate) name: String,
    pub(crate) n_bytes: u64,
}

/// Where a run stands: all of it but the tensors. Nothing random is in it, since batches follow from the seed
/// and the step alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    version: u32,
    /// Steps done.
    pub step: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Seconds of training so far, over all sessions.
    pub seconds: f64,
    /// The resolved budget.
    pub plan: Plan,
    /// The run's settings.
    pub settings: TrainSettings,
    /// Hash of data, student and teacher, as the caller gave it.
    pub inputs_hash: String,
    /// The last step's loss.
    pub losses: LossFigures,
    /// The last evaluation, and the step after which it was made.
    pub eval: Option<(u64, EvalFigures)>,
    pub(crate) files: Vec<SavedFile>,
}

impl RunState {
    /// Before the first step.
    pub(crate) fn new(settings: &TrainSettings, inputs_hash: &str) -> Self {
        Self {
            version: VERSION,
            step: 0,
            tokens: 0,
            seconds: 0.0,
            plan: Plan::new(settings),
            settings: settings.clone(),
            inputs_hash: inputs_hash.to_owned(),
            losses: LossFigures::default(),
            eval: None,
            files: Vec::new(),
        }
    }

    /// The newest whole checkpoint of a run's folder; `None` when nothing was saved there.
    pub fn latest(run_dir: &Path, host: &dyn Host) -> Result<Option<Self>, TrainError> {
        Ok(RunFolder::at(run_dir).latest(host)?.map(|saved| saved.state))
    }

    /// Whether all steps are done.
    pub fn is_complete(&self) -> bool {
        self.plan.total_steps.is_some_and(|total| self.step >= total)
    }

    /// Refuses to go on with other settings or inputs than the run was begun with.
    pub(crate) fn check_same_run(
        &self,
        run_dir: &Path,
        settings: &TrainSettings,
        inputs_hash: &str,
    ) -> Result<(), TrainError> {
        let other = |what: &str, there: String, here: String| {
            Err(TrainError::OtherRun { run_dir: run_dir.to_owned(), what: what.to_owned(), there, here })
        };
        // Through text and back, as what the file says has gone: JSON's parser may be off by a last bit, and both
        // sides must be off by the same.
        let fields = |settings: &TrainSettings| -> serde_json::Result<serde_json::Value> {
            serde_json::from_str(&serde_json::to_string(settings)?)
        };
        let ours = fields(settings).map_err(|e| TrainError::checkpoint(run_dir, e))?;
        let theirs = serde_json::to_value(&self.settings).map_err(|e| TrainError::checkpoint(run_dir, e))?;
        for (field, here) in ours.as_object().into_iter().flatten() {
            // How often and how many checkpoints are kept changes no result.
            let is_free = matches!(field.as_str(), "checkpoint_every" | "keep_checkpoints");
            let there = &theirs[field];
            if !is_free && there != here {
                return other(field, there.to_string(), here.to_string());
            }
        }
        if self.inputs_hash != inputs_hash {
            return other(
                "the hash of data, student and teacher",
                self.inputs_hash.clone(),
                inputs_hash.to_owned(),
            );
        }
        Ok(())
    }
}

/// A checkpoint on the disk.
pub(crate) struct Saved {
    pub(crate) path: PathBuf,
    pub(crate) state: RunState,
}

/// Deletes a run's checkpoints and its log, so that the next training in this folder starts anew.
pub fn discard(run_dir: &Path) -> Result<(), TrainError> {
    let folder = RunFolder::at(run_dir);
    for path in [folder.checkpoints.clone(), folder.metrics()] {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(TrainError::io(&path)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// The folder, and what is done in it.
pub(crate) struct RunFolder {
    root: PathBuf,
    checkpoints: PathBuf,
}

impl RunFolder {
    fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), checkpoints: root.join("checkpoints") }
    }

    /// Makes the folder if need be, and clears away what an earlier session left unfinished.
    pub(crate) fn open(root: &Path) -> Result<Self, TrainError> {
        let folder = Self::at(root);
        std::fs::create_dir_all(&folder.checkpoints).map_err(TrainError::io(&folder.checkpoints))?;
        for name in folder.names()?.iter().filter(|name| name.starts_with(UNFINISHED_PREFIX)) {
            remove(&folder.checkpoints.join(name))?;
        }
        Ok(folder)
    }

    /// The run's log.
    pub(crate) fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The newest whole checkpoint. A damaged one is passed over with a warning.
    pub(crate) fn latest(&self, host: &dyn Host) -> Result<Option<Saved>, TrainError> {
        let mut steps = self.steps()?;
        while let Some(step) = steps.pop() {
            let path = self.checkpoints.join(folder_name(step));
            match read_state(&path, step) {
                Ok(state) => return Ok(Some(Saved { path, state })),
                Err(error) => host.warn(&format!("passed over a damaged checkpoint: {error}")),
            }
        }
        Ok(None)
    }

    /// Saves a checkpoint under its step; `write_tensors` puts the tensor files into the folder it is given and
    /// says what it wrote. Older checkpoints beyond `keep` are deleted afterwards.
    pub(crate) fn save(
        &self,
        state: &mut RunState,
        keep: usize,
        write_tensors: impl FnOnce(&Path) -> Result<Vec<SavedFile>, TrainError>,
    ) -> Result<(), TrainError> {
        let name = folder_name(state.step);
        let unfinished = self.checkpoints.join(format!("{UNFINISHED_PREFIX}{name}"));
        let path = self.checkpoints.join(&name);
        remove(&unfinished)?;
        std::fs::create_dir(&unfinished).map_err(TrainError::io(&unfinished))?;
        state.files = write_tensors(&unfinished)?;
        write_state(&unfinished.join(STATE_FILE), state)?;
        sync_folder(&unfinished)?;
        remove(&path)?; // a damaged checkpoint of the same step
        std::fs::rename(&unfinished, &path).map_err(TrainError::io(&path))?;
        sync_folder(&self.checkpoints)?;
        self.keep_newest(state.step, keep)
    }

    /// Deletes what the newest checkpoint, that of `newest` steps, makes useless: all but `keep`, and damaged ones
    /// of later steps that were passed over.
    fn keep_newest(&self, newest: u64, keep: usize) -> Result<(), TrainError> {
        let steps = self.steps()?;
        let n_later = steps.iter().filter(|&&step| step > newest).count();
        let kept = steps.len().saturating_sub(n_later + keep)..steps.len() - n_later;
        for (index, &step) in steps.iter().enumerate() {
            if !kept.contains(&index) {
                remove(&self.checkpoints.join(folder_name(step)))?;
            }
        }
        Ok(())
    }

    /// Steps of the checkpoints that are there, rising.
    fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let names = self.names()?;
        let step = |name: &String| name.strip_prefix(FINAL_PREFIX)?.parse().ok();
        let mut steps: Vec<u64> = names.iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn names(&self) -> Result<Vec<String>, TrainError> {
        let folder = &self.checkpoints;
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(folder).map_err(TrainError::io(folder))?;
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(TrainError::io(folder))
        };
        entries.map(name).collect()
    }
}

fn folder_name(step: u64) -> String {
    format!("{FINAL_PREFIX}{step:010}")
}

/// Removes a folder that may not be there.
fn remove(path: &Path) -> Result<(), TrainError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io(path)(e)),
        _ => Ok(()),
    }
}

fn write_state(path: &Path, state: &RunState) -> Result<(), TrainError> {
    let json = serde_json::to_vec_pretty(state).map_err(|e| TrainError::checkpoint(path, e))?;
    std::fs::write(path, json).map_err(TrainError::io(path))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(TrainError::io(path))
}

fn read_state(folder: &Path, step: u64) -> Result<RunState, TrainError> {
    let path = folder.join(STATE_FILE);
    let json = std::fs::read(&path).map_err(TrainError::io(&path))?;
    let state: RunState = serde_json::from_slice(&json).map_err(|e| TrainError::checkpoint(&path, e))?;
    if state.version != VERSION || state.step != step {
        let message =
            format!("version {} of step {} where {VERSION} of {step} belongs", state.version, state.step);
        return Err(TrainError::checkpoint(&path, message));
    }
    for SavedFile { name, n_bytes } in &state.files {
        let path = folder.join(name);
        let found = std::fs::metadata(&path).map_err(TrainError::io(&path))?.len();
        if found != *n_bytes {
            return Err(TrainError::checkpoint(&path, format!("{found} bytes where {n_bytes} were written")));
        }
    }
    Ok(state)
}

/// Waits until a folder's list of names is on the disk. Elsewhere than on Unix a folder cannot be opened as a
/// file, and the system orders the rename itself.
fn sync_folder(path: &Path) -> Result<(), TrainError> {
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(TrainError::io(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    /// Remembers what it was warned of.
    #[derive(Default)]
    struct Warned(Mutex<Vec<String>>);

    impl Host for Warned {
        fn begin(&self, _: &str, _: u64, _: &str) {}
        fn advance_to(&self, _: u64, _: &str) {}
        fn end(&self) {}
        fn warn(&self, message: &str) {
            self.0.lock().unwrap().push(message.to_owned());
        }
        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }
        fn stop_requested(&self) -> bool {
            false
        }
    }

    fn save(folder: &RunFolder, step: u64, keep: usize) {
        let mut state = RunState { step, ..RunState::new(&TrainSettings::default(), "inputs") };
        let write = |path: &Path| {
            std::fs::write(path.join(MODEL_FILE), b"weights").unwrap();
            Ok(vec![SavedFile { name: MODEL_FILE.to_owned(), n_bytes: 7 }])
        };
        folder.save(&mut state, keep, write).unwrap();
    }

    fn latest_step(folder: &RunFolder, host: &Warned) -> Option<u64> {
        folder.latest(host).unwrap().map(|saved| saved.state.step)
    }

    #[test]
    fn the_newest_are_kept() {
        let (root, host) = (tempfile::tempdir().unwrap(), Warned::default());
        let folder = RunFolder::open(root.path()).unwrap();
        assert_eq!(latest_step(&folder, &host), None);
        [9, 10, 100].into_iter().for_each(|step| save(&folder, step, 2));
        assert_eq!(folder.steps().unwrap(), [10, 100]);
        assert_eq!(latest_step(&folder, &host), Some(100));
        discard(root.path()).unwrap();
        assert_eq!(latest_step(&folder, &host), None);
    }

    #[test]
    fn a_checkpoint_that_was_never_finished_does_not_count() {
        let (root, host) = (tempfile::tempdir().unwrap(), Warned::default());
        let folder = RunFolder::open(root.path()).unwrap();
        save(&folder, 1, 1);
        let mut state = RunState { step: 2, ..RunState::new(&TrainSettings::default(), "inputs") };
        let dies = folder.save(&mut state, 1, |path| {
            std::fs::write(path.join(MODEL_FILE), b"half").unwrap();
            Err(TrainError::Teacher("died"))
        });
        assert!(dies.is_err());
        assert_eq!(latest_step(&folder, &host), Some(1));
        let folder = RunFolder::open(root.path()).unwrap();
        assert_eq!(folder.names().unwrap(), ["step-0000000001"]);
        assert!(host.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_aloud() {
        let (root, host) = (tempfile::tempdir().unwrap(), Warned::default());
        let folder = RunFolder::open(root.path()).unwrap();
        [1, 2].into_iter().for_each(|step| save(&folder, step, 2));
        std::fs::write(folder.checkpoints.join(folder_name(2)).join(MODEL_FILE), b"weig").unwrap();
        assert_eq!(latest_step(&folder, &host), Some(1));
        assert!(host.0.lock().unwrap()[0].contains("4 bytes where 7 were written"));
    }

    #[test]
    fn a_damaged_checkpoint_does_not_crowd_out_a_whole_one() {
        let (root, host) = (tempfile::tempdir().unwrap(), Warned::default());
        let folder = RunFolder::open(root.path()).unwrap();
        [4, 9].into_iter().for_each(|step| save(&folder, step, 2));
        std::fs::remove_file(folder.checkpoints.join(folder_name(9)).join(MODEL_FILE)).unwrap();
        assert_eq!(latest_step(&folder, &host), Some(4));
        save(&folder, 8, 1);
        assert_eq!(folder.steps().unwrap(), [8]);
    }

    #[test]
    fn the_same_settings_are_known_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(root.path()).unwrap();
        let mut rate: f64 = 1e-3;
        for step in 0..200 {
            rate *= 1.0 + 1.0 / 7.0_f64.powi(3);
            let settings = TrainSettings { learning_rate: rate, epsilon: rate * 1e-7, ..Default::default() };
            let mut state = RunState { step, ..RunState::new(&settings, "inputs") };
            folder.save(&mut state, 1, |_| Ok(Vec::new())).unwrap();
            let saved = folder.latest(&Warned::default()).unwrap().unwrap().state;
            saved.check_same_run(root.path(), &settings, "inputs").unwrap();
        }
    }

    #[test]
    fn another_run_is_refused_by_name() {
        let settings = TrainSettings::default();
        let state = RunState::new(&settings, "a");
        let check = |settings: &TrainSettings, hash| state.check_same_run(Path::new("run"), settings, hash);
        assert!(check(&settings, "a").is_ok());
        assert!(check(&TrainSettings { keep_checkpoints: 3, ..settings.clone() }, "a").is_ok());
        let error = check(&TrainSettings { learning_rate: 1e-3, ..settings.clone() }, "a").unwrap_err();
        assert!(error.to_string().contains("learning_rate is 0.0003, not 0.001"), "{error}");
        assert!(matches!(check(&settings, "b"), Err(TrainError::OtherRun { .. })));
    }
}
