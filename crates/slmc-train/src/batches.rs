//! Where training tokens come from, as far as the loop cares: batch `index`, always the same one.

use slmc_data::{Batch, Batches};
use slmc_ir::TokenId;

use crate::{TrainError, TrainSettings};

/// Number of positions that are learned from.
pub(crate) fn n_targets(batch: &Batch) -> usize {
    match &batch.loss_mask {
        Some(mask) => mask.iter().filter(|&&counts| counts).count(),
        None => batch.targets.len(),
    }
}

/// The positions that are learned from.
pub(crate) fn target_positions(batch: &Batch) -> Vec<usize> {
    let counts = |&i: &usize| batch.loss_mask.as_ref().is_none_or(|mask| mask[i]);
    (0..batch.targets.len()).filter(counts).collect()
}

/// The mask as weights, or `None` when every position is learned from.
pub(crate) fn weights(batch: &Batch) -> Option<Vec<f32>> {
    let mask = batch.loss_mask.as_ref()?;
    mask.contains(&false).then(|| mask.iter().map(|&counts| f32::from(u8::from(counts))).collect())
}

/// A pure function from an index to a batch: so a resumed run sees what an unbroken one would have seen.
pub trait BatchSource {
    /// Batch `index`, counted from 0 without end.
    fn batch(&self, index: u64) -> Result<Batch, TrainError>;
}

impl BatchSource for Batches {
    fn batch(&self, index: u64) -> Result<Batch, TrainError> {
        Ok(Self::batch(self, index))
    }
}

/// Takes the batches of one step, and checks them against the settings and the vocabulary.
pub(crate) fn of_step(
    source: &dyn BatchSource,
    step: u64,
    settings: &TrainSettings,
    vocab_size: usize,
) -> Result<Vec<Batch>, TrainError> {
    let n = settings.accumulate as u64;
    let batches = (step * n..(step + 1) * n).map(|index| {
        let batch = source.batch(index)?;
        let (expected, found) = ([settings.batch_size, settings.seq_len], [batch.batch_size, batch.seq_len]);
        if found != expected {
            return Err(TrainError::BatchShape { expected, found });
        }
        check(&batch, index, vocab_size)?;
        Ok(batch)
    });
    let batches = batches.collect::<Result<Vec<_>, TrainError>>()?;
    if batches.iter().all(|batch| n_targets(batch) == 0) {
        let message = "no position is learned from: every one is masked".to_owned();
        return Err(TrainError::Data { index: step * n, message });
    }
    Ok(batches)
}

/// Checks the held-out batches: inside the vocabulary, with something to measure.
pub(crate) fn check_held_out(batches: &[Batch], vocab_size: usize) -> Result<(), TrainError> {
    for (index, batch) in (0..).zip(batches) {
        check(batch, index, vocab_size)?;
    }
    if !batches.is_empty() && batches.iter().all(|batch| n_targets(batch) == 0) {
        return Err(TrainError::Data { index: 0, message: "the held-out batches have no target".to_owned() });
    }
    Ok(())
}

fn check(batch: &Batch, index: u64, vocab_size: usize) -> Result<(), TrainError> {
    let n_masked = batch.loss_mask.as_ref().map_or(batch.inputs.len(), Vec::len);
    let lengths = [batch.inputs.len(), batch.targets.len(), n_masked];
    if lengths.iter().any(|&length| Some(length) != batch.batch_size.checked_mul(batch.seq_len)) {
        let (rows, columns) = (batch.batch_size, batch.seq_len);
        let message = format!("{lengths:?} inputs, targets and masks where {rows} rows of {columns} belong");
        return Err(TrainError::Data { index, message });
    }
    if let Some(starts) = &batch.starts {
        let is_before = |row: &[u32]| row.iter().enumerate().all(|(i, &start)| start as usize <= i);
        if starts.len() != batch.inputs.len() || !starts.chunks(batch.seq_len.max(1)).all(is_before) {
            let message = "a position's document begins after it".to_owned();
            return Err(TrainError::Data { index, message });
        }
    }
    let is_foreign = |token: &&TokenId| **token as usize >= vocab_size;
    if let Some(token) = batch.inputs.iter().chain(&batch.targets).find(is_foreign) {
        let message = format!(
            "token {token} is outside the vocabulary of {vocab_size}: is this the model's own tokenizer?"
        );
        return Err(TrainError::Data { index, message });
    }
    Ok(())
}
