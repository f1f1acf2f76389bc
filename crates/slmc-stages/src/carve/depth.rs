//! Which blocks go.

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
use slmc_compress::{BlockInfluence, Candidates, ChooseError, LayerChoice, choose_layers};
use slmc_recipe::StageError;

use super::surgeon::{Surgeon, TokenBatch, failed, rows};

/// Blocks that are tried in each round of removal: those of least influence.
const CANDIDATES: usize = 8;

impl Surgeon<'_> {
    pub(super) fn blocks_to_remove(&self, n_removed: usize) -> Result<LayerChoice, StageError> {
        let n_layers = self.decoder.spec().n_layers;
        if n_removed == 0 {
            return Ok(LayerChoice { removed: Vec::new(), losses: Vec::new(), trials: Vec::new() });
        }
        let influences = self.influences()?;
        let host = self.context.host;
        host.begin("carve: blocks", (n_removed * CANDIDATES) as u64, "trials");
        let mut n_trials = 0;
        let candidates = Candidates::LeastInfluential { influences: &influences, n: CANDIDATES };
        let choice = choose_layers(n_layers, n_removed, candidates, |removed: &[usize]| {
            if host.stop_requested() {
                return Err(StageError::Interrupted(
                    "nothing is lost but this stage's measurements".to_owned(),
                ));
            }
            let loss = self.loss_without(removed);
            n_trials += 1;
            host.advance_to(n_trials, &format!("loss {loss:.3}"));
            Ok(loss)
        });
        host.end();
        choice.map_err(|error| match error {
            ChooseError::Loss { source, .. } => source,
            other => StageError::Failed(other.to_string()),
        })
    }

    /// How much each block changes the residual stream.
    fn influences(&self) -> Result<Vec<f64>, StageError> {
        let n_layers = self.decoder.spec().n_layers;
        let mut stats: Vec<BlockInfluence> = (0..n_layers).map(|_| BlockInfluence::empty()).collect();
        for batch in &self.batches {
            let mut hidden = self.decoder.embed(batch.tensor(&self.device));
            for (index, stats) in stats.iter_mut().enumerate() {
                let after = self.decoder.block(index, hidden.clone());
                stats.observe(rows(hidden)?.view(), rows(after.clone())?.view());
                hidden = after;
            }
        }
        stats.iter().map(BlockInfluence::score).collect::<Result<_, _>>().map_err(failed)
    }

    /// Mean next-token loss on the calibration set without some blocks.
    fn loss_without(&self, removed: &[usize]) -> f64 {
        let mut sum = 0.0;
        for batch in &self.batches {
            let mut hidden = self.decoder.embed(batch.tensor(&self.device));
            for index in (0..self.decoder.spec().n_layers).filter(|index| !removed.contains(index)) {
                hidden = self.decoder.block(index, hidden);
            }
            sum += self.nll(self.decoder.final_norm(hidden), batch);
        }
        sum / (self.config.n_sequences * (self.config.seq_len - 1)) as f64
    }

    /// Sum of the negative log-likelihoods of each sequence's tokens but the first; a sequence's logits at a time.
    fn nll(&self, hidden: Tensor<3>, batch: &TokenBatch) -> f64 {
        let head = self.decoder.head().transpose();
        let n_scored = batch.seq_len - 1;
        let mut sum = 0.0;
        for (index, tokens) in batch.tokens.chunks_exact(batch.seq_len).enumerate() {
            let rows = hidden.clone().narrow(0, index, 1).squeeze_dim::<2>(0).narrow(0, 0, n_scored);
            let targets: Vec<i32> = tokens[1..].iter().map(|&token| token.cast_signed()).collect();
            let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [n_scored, 1]), &self.device);
            let likelihoods = log_softmax(rows.matmul(head.clone()), 1).gather(1, targets);
            sum -= f64::from(likelihoods.sum().into_scalar::<f32>());
        }
        sum
    }
}
