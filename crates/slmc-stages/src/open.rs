//! From what a user calls a model to a checkpoint.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use slmc_ir::{Checkpoint, Outline};
use slmc_model::DeviceChoice;
use slmc_recipe::StageError;

use crate::Surroundings;

/// Where models learn when the user names no device.
const DEFAULT_DEVICE: &str = "flex";

/// Opens a Hugging Face folder, a GGUF, or the folder of a run (its last finished stage).
pub fn open_model(path: &str) -> Result<Checkpoint, String> {
    slmc_interop::open(&artefact_of(path)?).map_err(|e| e.to_string())
}

/// As [`open_model`], sooner, for a model that is run and not written again.
pub fn open_to_run(path: &str) -> Result<Checkpoint, String> {
    slmc_interop::open_to_run(&artefact_of(path)?).map_err(|e| e.to_string())
}

/// The file or folder that a model's weights lie in: of a run, its last stage's artefact.
pub fn artefact_of(path: &str) -> Result<PathBuf, String> {
    if path.starts_with("hf:") {
        return Err(format!(
            "{path}: slmc does not download models yet: fetch it yourself and give its folder"
        ));
    }
    let path = Path::new(path);
    if path.join("plan.json").is_file() { last_artefact(path) } else { Ok(path.to_owned()) }
}

/// The artefact of the last stage of a run.
fn last_artefact(run: &Path) -> Result<PathBuf, String> {
    let unfinished =
        || format!("{}: the run is not finished: run its recipe to the end first", run.display());
    let text = std::fs::read(run.join("summary.json")).map_err(|_| unfinished())?;
    let summary: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", run.display()))?;
    let stages = summary["stages"].as_array().map_or(&[][..], Vec::as_slice);
    let artefact = stages.last().and_then(|stage| stage["artefact"].as_str()).ok_or_else(unfinished)?;
    Ok(PathBuf::from(artefact))
}

/// A checkpoint without its numbers.
pub fn outline_of(checkpoint: &Checkpoint) -> Result<Outline, String> {
    let mut formats = Vec::new();
    for &key in checkpoint.weights.keys() {
        formats.push((key, checkpoint.weights.format(key).map_err(|e| e.to_string())?));
    }
    Ok(Outline { spec: checkpoint.spec().clone(), has_tokenizer: checkpoint.tokenizer.is_some(), formats })
}

/// Hash of a file or folder: what makes an input the same input.
pub fn fingerprint_of(path: &str) -> Result<String, String> {
    slmc_interop::fingerprint(Path::new(path)).map_err(|e| e.to_string())
}

/// The device that tensors live on.
pub(crate) fn open_device(surroundings: &Surroundings) -> Result<Device, StageError> {
    let device = surroundings.device.as_deref().unwrap_or(DEFAULT_DEVICE);
    let choice: Result<DeviceChoice, _> = device.parse();
    choice.and_then(DeviceChoice::open).map_err(|e| StageError::Input(e.to_string()))
}
