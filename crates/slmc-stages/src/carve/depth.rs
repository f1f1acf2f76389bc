//! Which blocks go.

use burn::tensor::Tensor;
use slmc_compress::{BlockInfluence, Candidates, ChooseError, LayerChoice, choose_layers};
use slmc_ir::TokenId;
use slmc_model::next_token_loss;
use slmc_recipe::StageError;

use super::surgeon::{Surgeon, TokenBatch, failed, rows};

/// Blocks that are tried in each round of removal: those of least influence.
const CANDIDATES: usize = 8;

/// The first of the `n` blocks of least influence.
fn lowest(influences: &[f64], n: usize) -> usize {
    let mut blocks: Vec<usize> = (0..influences.len()).collect();
    blocks.sort_by(|&a, &b| influences[a].total_cmp(&influences[b]).then(a.cmp(&b)));
    blocks.into_iter().take(n).min().unwrap_or(0)
}

impl Surgeon<'_> {
    pub(super) fn blocks_to_remove(&self, n_removed: usize) -> Result<LayerChoice, StageError> {
        let n_layers = self.decoder.spec().n_layers;
        if n_removed == 0 {
            return Ok(LayerChoice { removed: Vec::new(), losses: Vec::new(), trials: Vec::new() });
        }
        let influences = self.influences()?;
        // What comes before every block that may be tried is the same in each trial.
        let first = lowest(&influences, CANDIDATES + n_removed - 1);
        let beginnings: Vec<Tensor<3>> =
            self.batches.iter().map(|batch| self.hidden_before(first, batch)).collect();
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
            let loss = self.loss_without(removed, first, &beginnings);
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

    /// The residual stream of a batch before a block.
    fn hidden_before(&self, block: usize, batch: &TokenBatch) -> Tensor<3> {
        let embedded = self.decoder.embed(batch.tensor(&self.device));
        (0..block).fold(embedded, |hidden, index| self.decoder.block(index, hidden))
    }

    /// Mean next-token loss on the calibration set without some blocks, from each batch's stream before block `first`.
    fn loss_without(&self, removed: &[usize], first: usize, beginnings: &[Tensor<3>]) -> f64 {
        let mut sum = 0.0;
        for (batch, beginning) in self.batches.iter().zip(beginnings) {
            let mut hidden = beginning.clone();
            for index in (first..self.decoder.spec().n_layers).filter(|index| !removed.contains(index)) {
                hidden = self.decoder.block(index, hidden);
            }
            sum += self.nll(self.decoder.final_norm(hidden), batch);
        }
        sum / (self.config.n_sequences * (self.config.seq_len - 1)) as f64
    }

    /// Sum of the negative log-likelihoods of each sequence's tokens but the first.
    fn nll(&self, hidden: Tensor<3>, batch: &TokenBatch) -> f64 {
        let n = batch.tokens.len();
        // Each position's target is the next token; what follows a sequence's last is of no weight.
        let targets: Vec<TokenId> = (1..=n).map(|next| batch.tokens[next % n]).collect();
        let weights: Vec<f32> =
            (1..=n).map(|next| if next.is_multiple_of(batch.seq_len) { 0.0 } else { 1.0 }).collect();
        let mean =
            next_token_loss(hidden, self.decoder.head(), &targets, Some(&weights), self.decoder.products());
        f64::from(mean.into_scalar::<f32>()) * (n - batch.n_sequences) as f64
    }
}
