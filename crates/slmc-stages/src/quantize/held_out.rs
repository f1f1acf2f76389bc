//! Text that was not calibrated on, and what the model before makes of it: ways to round are measured there.

use slmc_ir::{Checkpoint, Host, TokenId};
use slmc_model::{BlockPass, LastHidden, Products, divergences};
use slmc_recipe::StageError;

use super::solved::failed;
use crate::embedding::Embedding;

/// The text, and the model's last hidden states on it.
pub struct HeldOut<'a> {
    model: &'a Checkpoint,
    sequences: &'a [Vec<TokenId>],
    hidden: Vec<f32>,
}

/// Sequences that run through a block at once.
const BATCH: usize = 4;

impl<'a> HeldOut<'a> {
    /// Runs the model over sequences of one length.
    pub fn of(
        model: &'a Checkpoint,
        sequences: &'a [Vec<TokenId>],
        host: &dyn Host,
    ) -> Result<Self, StageError> {
        Ok(Self { model, sequences, hidden: later_hidden(model, sequences, host)? })
    }

    /// KL(before || after) a token, in nats, of each sequence's later half: as `eval kld` has it. Products are in bf16 where
    /// calibration's are.
    pub fn divergences(&self, after: &Checkpoint, host: &dyn Host) -> Result<Vec<f64>, StageError> {
        let hidden = later_hidden(after, self.sequences, host)?;
        let base = LastHidden { source: &*self.model.weights, hidden: &self.hidden };
        let model = LastHidden { source: &*after.weights, hidden: &hidden };
        let tokens = divergences(base, model, products()).map_err(failed)?;
        slmc_formats::release_all();
        let n = tokens.len() / self.sequences.len();
        let means: Vec<f64> =
            tokens.chunks_exact(n).map(|tokens| tokens.iter().sum::<f64>() / n as f64).collect();
        match means.iter().all(|mean| mean.is_finite()) {
            true => Ok(means),
            false => Err(failed("the rounded model's predictions are not finite")),
        }
    }
}

fn products() -> Products {
    Products::half().unwrap_or_default()
}

/// Hidden states after the last block, of each sequence's later half: a block of weights at a time.
fn later_hidden(
    model: &Checkpoint,
    sequences: &[Vec<TokenId>],
    host: &dyn Host,
) -> Result<Vec<f32>, StageError> {
    let (d, seq) = (model.spec().d_model, sequences[0].len());
    let mut hidden = Embedding::of(model)
        .and_then(|embedding| embedding.rows(sequences.iter().flatten()))
        .map_err(StageError::Input)?;
    host.begin("measure", model.spec().n_layers as u64, "blocks");
    for index in 0..model.spec().n_layers {
        if host.stop_requested() {
            host.end();
            return Err(StageError::Interrupted("while measuring ways to round".to_owned()));
        }
        let block = BlockPass::load(&*model.weights, index, seq, products()).map_err(failed)?;
        slmc_formats::release_all();
        for batch in hidden.chunks_mut(BATCH * seq * d) {
            let out = block.forward(batch, [batch.len() / (seq * d), seq]);
            batch.copy_from_slice(&out);
        }
        host.advance_to(index as u64 + 1, "");
    }
    host.end();
    // The last token predicts what lies beyond the sequence.
    let later = |sequence: &[f32]| sequence[(seq / 2) * d..(seq - 1) * d].to_vec();
    Ok(hidden.chunks_exact(seq * d).flat_map(later).collect())
}
