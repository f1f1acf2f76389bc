//! What can be said of a model without running it.

use std::path::Path;

use slmc_ir::Checkpoint;

use crate::GateError;

/// Deepest folder that is counted.
const MAX_DEPTH: usize = 16;

/// Bytes of a file, or of all files of a folder.
pub(crate) fn bytes_on_disk(path: &Path) -> Result<u64, GateError> {
    size(path, 0).map_err(|e| GateError::Failed(format!("{}: {e}", path.display())))
}

fn size(path: &Path, depth: usize) -> std::io::Result<u64> {
    let about = std::fs::metadata(path)?;
    if !about.is_dir() {
        return Ok(about.len());
    }
    if depth > MAX_DEPTH {
        return Err(std::io::Error::other(format!("folders nest deeper than {MAX_DEPTH}")));
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        sum += size(&entry?.path(), depth + 1)?;
    }
    Ok(sum)
}

/// All stored bits over all weights.
pub(crate) fn bits_per_weight(checkpoint: &Checkpoint) -> Result<f64, GateError> {
    let spec = checkpoint.spec();
    let mut n_bits = 0.0;
    let mut n_weights = 0.0;
    for &key in checkpoint.weights.keys() {
        let format = checkpoint.weights.format(key).map_err(|e| GateError::input(e.to_string()))?;
        let n = key.shape(spec).iter().map(|&n| n as f64).product::<f64>();
        n_bits += n * format.bits_per_weight();
        n_weights += n;
    }
    Ok(n_bits / n_weights)
}

/// What was done other than asked between baseline and model, as the model's history records it:
/// `quantize: block 0 down: f16 instead …`. Steps that the two share made the baseline: they are not judged.
pub(crate) fn fallbacks(model: &Checkpoint, baseline: &Checkpoint) -> Vec<String> {
    let (steps, before) = (&model.lineage.steps, &baseline.lineage.steps);
    let n_shared = steps.iter().zip(before).take_while(|(ours, theirs)| ours == theirs).count();
    steps[n_shared..]
        .iter()
        .flat_map(|step| step.fallbacks.iter().map(|what| format!("{}: {what}", step.stage)))
        .collect()
}
