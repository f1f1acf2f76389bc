//! What a training leaves: the student as it was stored before, and the report.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use serde_json::json;
use slmc_interop::{WriteOptions, write_gguf, write_hf_folder};
use slmc_ir::{Checkpoint, Format, MemorySource, Outline, TensorKey, Weight};
use slmc_recipe::{Finished, StageContext, StageError};
use slmc_train::{Outcome, Stopped};

use super::{Training, fit};
use crate::open::outline_of;

/// That the loop came to its end, or says why it did not.
pub(crate) fn check_stopped<S>(
    outcome: &Outcome<S>,
    context: &StageContext<'_>,
    fallbacks: &mut Vec<String>,
) -> Result<(), StageError> {
    match outcome.stopped {
        Stopped::Completed => Ok(()),
        Stopped::Interrupted => {
            Err(StageError::Interrupted(format!("after step {}; everything is saved", outcome.steps)))
        }
        Stopped::OutOfTime => {
            let message = format!(
                "out of time after step {}: the machine slowed down; the last steps are missing",
                outcome.steps
            );
            context.host.warn(&message);
            fallbacks.push(message);
            Ok(())
        }
    }
}

/// The float format of a model's matrices; f16 where they are packed.
pub(crate) fn float_of(outline: &Outline) -> Format {
    let matrix = outline.formats.iter().find(|(key, _)| key.role.is_matrix());
    matrix.map(|&(_, format)| format).filter(|format| format.is_float()).unwrap_or(Format::F16)
}

impl Training {
    /// Stores the student in the float format that went in.
    pub(super) fn finish(
        &self,
        input: &Checkpoint,
        outcome: Outcome,
        prepared: &serde_json::Value,
        fallbacks: Vec<String>,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let float = float_of(&outline_of(input).map_err(StageError::Failed)?);
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let checkpoint =
            Checkpoint { weights: Arc::new(outcome.student.to_source()), lineage, ..input.clone() };
        let artefact = context.folder.join("model");
        let options = WriteOptions { float: Some(float), ..WriteOptions::default() };
        write_hf_folder(&checkpoint, &artefact, &options, context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        // The artefact is complete: what training would resume from is of no more use.
        let checkpoints = context.folder.join("checkpoints");
        std::fs::remove_dir_all(checkpoints).map_err(|e| StageError::Failed(e.to_string()))?;
        fit::remove(context.folder)?;
        Ok(Finished { artefact, report: report(&outcome, prepared), fallbacks })
    }

    /// Stores the packed student with its new scales.
    pub(super) fn finish_scales(
        &self,
        input: &Checkpoint,
        outcome: Outcome<BTreeMap<TensorKey, Weight>>,
        prepared: &serde_json::Value,
        fallbacks: Vec<String>,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let report = report(&outcome, prepared);
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let mut weights = outcome.student;
        for &key in input.weights.keys() {
            if let Entry::Vacant(place) = weights.entry(key) {
                place.insert(input.weights.read(key).map_err(|e| StageError::Failed(e.to_string()))?);
            }
        }
        let weights = MemorySource::new(input.spec().clone(), weights);
        let weights = weights.map_err(|e| StageError::Failed(e.to_string()))?;
        let checkpoint = Checkpoint { lineage, ..input.with_weights(Arc::new(weights)) };
        let artefact = context.folder.join("model.gguf");
        write_gguf(&checkpoint, &artefact, &WriteOptions::default(), context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        let checkpoints = context.folder.join("checkpoints");
        std::fs::remove_dir_all(checkpoints).map_err(|e| StageError::Failed(e.to_string()))?;
        Ok(Finished { artefact, report, fallbacks })
    }
}

fn report<S>(outcome: &Outcome<S>, prepared: &serde_json::Value) -> serde_json::Value {
    json!({
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "prepared": prepared,
        "final_loss": outcome.final_loss,
        "final_eval": outcome.eval,
    })
}
