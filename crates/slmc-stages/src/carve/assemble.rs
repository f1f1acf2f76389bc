//! The student from its parts.

use std::collections::BTreeMap;

use slmc_ir::{Checkpoint, Format, MemorySource, ModelSpec, Role, TensorKey, Weight};
use slmc_recipe::StageError;

use super::width::Narrowed;

/// The student's weights: kept blocks renumbered, MLPs narrowed, everything else as it is in the teacher.
pub(super) fn assemble(
    teacher: &Checkpoint,
    spec: &ModelSpec,
    kept_blocks: &[usize],
    narrowed: &[Narrowed],
) -> Result<MemorySource, StageError> {
    let failed = |e: slmc_ir::SourceError| StageError::Failed(e.to_string());
    let mut weights = BTreeMap::new();
    for key in TensorKey::all(spec) {
        let source = TensorKey { block: key.block.map(|index| kept_blocks[index]), ..key };
        let weight = teacher.weights.read(source).map_err(failed)?;
        let weight = match key.block.and_then(|index| narrowed.get(index)) {
            Some(narrow) => narrowed_weight(key, &weight, narrow)?,
            None => weight,
        };
        weights.insert(key, weight);
    }
    MemorySource::new(spec.clone(), weights).map_err(failed)
}

fn narrowed_weight(key: TensorKey, weight: &Weight, narrow: &Narrowed) -> Result<Weight, StageError> {
    let bad = |e: slmc_ir::WeightError| StageError::Failed(format!("{key}: {e}"));
    match (key.role, weight.shape().len()) {
        (Role::Gate | Role::Up, 2) => Ok(weight.with_rows(&narrow.kept)),
        (Role::Gate | Role::Up, _) => {
            let numbers =
                slmc_blocks::decode_weight(weight).map_err(|e| StageError::Failed(format!("{key}: {e}")))?;
            let kept: Vec<f32> = narrow.kept.iter().map(|&channel| numbers[channel]).collect();
            Weight::from_f32(vec![kept.len()], &kept).map_err(bad)
        }
        (Role::Down, 2) => {
            let numbers: Vec<f32> = narrow.down.iter().copied().collect();
            let float = if weight.format().is_float() { weight.format() } else { Format::F16 };
            let exact = Weight::from_f32(narrow.down.shape().to_vec(), &numbers).map_err(bad)?;
            slmc_blocks::encode_weight(&exact, float).map_err(|e| StageError::Failed(format!("{key}: {e}")))
        }
        _ => Ok(weight.clone()),
    }
}
