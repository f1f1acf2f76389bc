//! Where training tokens come from, as far as the loop cares: batch `index`, always the same one.

use slmc_ir::TokenId;

use crate::{TrainError, TrainSettings};

/// Sequences to learn from, one after another in each field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// What the model is given.
    pub inputs: Vec<TokenId>,
    /// What comes next at each position.
    pub targets: Vec<TokenId>,
    /// Which positions are learned from.
    pub loss_mask: Vec<bool>,
}

impl Batch {
    /// Number of positions that are learned from.
    pub fn n_targets(&self) -> usize {
        self.loss_mask.iter().filter(|&&learn| learn).count()
    }

    pub(crate) fn target_positions(&self) -> Vec<usize> {
        (0..self.loss_mask.len()).filter(|&i| self.loss_mask[i]).collect()
    }

    /// The mask as weights, or `None` when every position is learned from.
    pub(crate) fn weights(&self) -> Option<Vec<f32>> {
        let weights = || self.loss_mask.iter().map(|&learn| f32::from(u8::from(learn))).collect();
        self.loss_mask.contains(&false).then(weights)
    }
}

/// A pure function from an index to a batch: so a resumed run sees what an unbroken one would have seen.
pub trait BatchSource {
    /// Batch `index`, counted from 0 without end.
    fn batch(&self, index: u64) -> Result<Batch, TrainError>;
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
        check(&batch, index, settings.batch_size * settings.seq_len, vocab_size)?;
        Ok(batch)
    });
    let batches = batches.collect::<Result<Vec<_>, TrainError>>()?;
    if batches.iter().all(|batch| batch.n_targets() == 0) {
        let message = "no position is learned from: every one is masked".to_owned();
        return Err(TrainError::Data { index: step * n, message });
    }
    Ok(batches)
}

/// Checks the held-out batches: whole sequences, inside the vocabulary, with something to measure.
pub(crate) fn check_held_out(batches: &[Batch], settings: &TrainSettings, vocab_size: usize) -> Result<(), TrainError> {
    for (index, batch) in (0..).zip(batches) {
        let n_sequences = (batch.inputs.len() / settings.seq_len).max(1);
        check(batch, index, n_sequences * settings.seq_len, vocab_size)?;
    }
    if !batches.is_empty() && batches.iter().all(|batch| batch.n_targets() == 0) {
        return Err(TrainError::Data { index: 0, message: "the held-out batches have no target".to_owned() });
    }
    Ok(())
}

fn check(batch: &Batch, index: u64, expected: usize, vocab_size: usize) -> Result<(), TrainError> {
    let lengths = [batch.inputs.len(), batch.targets.len(), batch.loss_mask.len()];
    if let Some(&found) = lengths.iter().find(|&&length| length != expected) {
        return Err(TrainError::BatchShape { expected, found });
    }
    let is_foreign = |token: &&TokenId| **token as usize >= vocab_size;
    if let Some(token) = batch.inputs.iter().chain(&batch.targets).find(is_foreign) {
        let message = format!("token {token} is outside the vocabulary of {vocab_size}: is this the model's own tokenizer?");
        return Err(TrainError::Data { index, message });
    }
    Ok(())
}
