//! An adapter becomes part of its model: in the ways that there are, the better one kept.

use std::sync::Arc;

use serde::Serialize;
use slmc_data::Batch;
use slmc_interop::{AdapterAbout, Encoded, Merged};
use slmc_ir::{Adapter, Checkpoint, Format, TensorKey, WeightSource};
use slmc_model::{Frozen, RowLoss, Rows};
use slmc_recipe::StageError;

use crate::open::outline_of;

/// Which base the adapter was added to, and how good the results were.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergeReport {
    /// The base that was kept: `as stored`, or the format that it was rounded to first, as `q4_0`.
    pub kept: String,
    /// Held-out loss of the base without the adapter, nats a token; absent where nothing was measured.
    pub base_nll: Option<f64>,
    /// Held-out loss after merging into the base as it is stored.
    pub stored_nll: Option<f64>,
    /// Held-out loss after merging into the base as the adapter knew it: rounded, and decoded again.
    pub rounded_nll: Option<f64>,
    /// Tokens that the losses are means over.
    pub tokens: u64,
}

/// Adds an adapter to its base. If it learned beside a rounded base, both bases are tried where there is something to
/// measure on, and the better is kept; without, the stored one is.
pub fn merge_adapter(
    base: &Checkpoint,
    adapter: &Adapter,
    about: &AdapterAbout,
    held_out: &[Batch],
) -> Result<(Checkpoint, MergeReport), StageError> {
    let failed = |e: String| StageError::Failed(e);
    let merged = |source: Arc<dyn WeightSource>| -> Result<Arc<dyn WeightSource>, StageError> {
        Ok(Arc::new(Merged::new(source, adapter.clone()).map_err(|e| StageError::Input(e.to_string()))?))
    };
    let measure = |source: &dyn WeightSource| -> Result<Option<f64>, StageError> {
        if held_out.is_empty() {
            return Ok(None);
        }
        // Half of the memory of the sums in f32, and what will be written in most cases.
        let model = Frozen::load(source, Some(Format::F16)).map_err(|e| failed(e.to_string()))?;
        Ok(Some(mean(&losses(&model, None, held_out))))
    };
    let stored = merged(Arc::clone(&base.weights))?;
    let rounded = match about.base_format {
        Some(format) => Some((format, merged(rounded_base(base, format)?)?)),
        None => None,
    };
    let base_nll = measure(&*base.weights)?;
    let stored_nll = measure(&*stored)?;
    let rounded_nll = match &rounded {
        Some((_, source)) => measure(&**source)?,
        None => None,
    };
    let is_better = matches!((stored_nll, rounded_nll), (Some(stored), Some(rounded)) if rounded < stored);
    let (kept, weights) = match rounded {
        Some((format, source)) if is_better => (format.name().to_owned(), source),
        _ => ("as stored".to_owned(), stored),
    };
    let tokens = held_out.iter().map(crate::lora::n_targets).sum();
    let report = MergeReport { kept, base_nll, stored_nll, rounded_nll, tokens };
    Ok((base.with_weights(weights), report))
}

/// The base with its projections rounded as the adapter knew them.
fn rounded_base(base: &Checkpoint, format: Format) -> Result<Arc<dyn WeightSource>, StageError> {
    let outline = outline_of(base).map_err(StageError::Failed)?;
    let is_projection =
        |key: &TensorKey| Adapter::ROLES.contains(&key.role) && key.part == slmc_ir::Part::Weight;
    let plan = outline.formats.into_iter().filter(|(key, stored)| is_projection(key) && stored.is_float());
    let plan = plan.map(|(key, _)| (key, format)).collect();
    let encoded = Encoded::new(Arc::clone(&base.weights), plan);
    Ok(Arc::new(encoded.map_err(|e| StageError::Input(e.to_string()))?))
}

/// The loss of each row of some batches.
pub(super) fn losses(model: &Frozen, adapter: Option<&Adapter>, batches: &[Batch]) -> Vec<RowLoss> {
    let of = |batch: &Batch| {
        let rows = Rows {
            inputs: &batch.inputs,
            targets: &batch.targets,
            mask: batch.loss_mask.as_deref(),
            starts: batch.starts.as_deref(),
            seq: batch.seq_len,
        };
        model.row_losses(adapter, rows)
    };
    batches.iter().flat_map(of).collect()
}

/// Nats a token.
pub(super) fn mean(rows: &[RowLoss]) -> f64 {
    rows.iter().map(|row| row.nll).sum::<f64>()
        / rows.iter().map(|row| row.n_targets).sum::<u64>().max(1) as f64
}
