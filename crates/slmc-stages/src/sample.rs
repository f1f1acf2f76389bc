//! Text that a model itself writes: calibration and training data where no other is at hand, or none may be used.

use burn::tensor::{Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slmc_ir::{Checkpoint, Host, TokenId};
use slmc_model::Decoder;
use slmc_recipe::StageError;

use crate::{Surroundings, calibration::tokenizer_of, open::open_device};

/// Sequences that are written side by side.
const N_SIDE_BY_SIDE: usize = 16;

/// What to sample.
#[derive(Clone, Copy, Debug)]
pub struct SampleSettings {
    /// Tokens in all, rounded up to whole documents.
    pub n_tokens: usize,
    /// Tokens of the longest document.
    pub document_len: usize,
    /// Softens (above 1) or sharpens (below 1) the model's distribution.
    pub temperature: f64,
    /// Seed of the choices.
    pub seed: u64,
}

/// Documents that the model writes from nothing but its end-of-text token. Each step runs the whole context
/// again: for small models and short documents.
pub fn sample_documents(
    checkpoint: &Checkpoint,
    settings: SampleSettings,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Vec<String>, StageError> {
    let tokenizer = tokenizer_of(checkpoint)?;
    let special = tokenizer.special();
    let none =
        || StageError::Input("the model has neither BOS nor EOS: nothing to begin a text with".to_owned());
    let first = special.bos.or(special.eos).ok_or_else(none)?;
    let device = open_device(surroundings)?;
    let decoder =
        Decoder::load(&*checkpoint.weights, &device).map_err(|e| StageError::Failed(e.to_string()))?;
    let document_len = settings.document_len.min(decoder.spec().context_len);
    let mut writer =
        Writer { decoder, rng: ChaCha8Rng::seed_from_u64(settings.seed), temperature: settings.temperature };
    let n_rounds = settings.n_tokens.div_ceil(N_SIDE_BY_SIDE * document_len.max(1));
    host.begin("sample", (n_rounds * document_len) as u64, "steps");
    let mut documents = Vec::new();
    for round in 0..n_rounds {
        let mut texts = vec![vec![first]; N_SIDE_BY_SIDE];
        for step in 1..document_len {
            if host.stop_requested() {
                return Err(StageError::Interrupted("while sampling".to_owned()));
            }
            writer.write_token(&mut texts)?;
            host.advance_to((round * document_len + step) as u64, "");
        }
        for text in &texts {
            let end = text[1..]
                .iter()
                .position(|&token| Some(token) == special.eos)
                .map_or(text.len(), |at| at + 1);
            let decoded = tokenizer.decode(&text[1..end]).map_err(|e| StageError::Failed(e.to_string()))?;
            documents.push(decoded);
        }
    }
    host.end();
    Ok(documents)
}

struct Writer {
    decoder: Decoder,
    rng: ChaCha8Rng,
    temperature: f64,
}

impl Writer {
    /// Adds one token to each text; all texts have the same length.
    fn write_token(&mut self, texts: &mut [Vec<TokenId>]) -> Result<(), StageError> {
        let (n_texts, len) = (texts.len(), texts[0].len());
        let ids: Vec<i32> = texts.concat().iter().map(|&token| token.cast_signed()).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n_texts, len]), &self.decoder.device());
        let last = self.decoder.hidden(ids).narrow(1, len - 1, 1);
        let d_model = self.decoder.spec().d_model;
        let logits = last.reshape([n_texts, d_model]).matmul(self.decoder.head().transpose());
        let logits =
            logits.into_data().try_into_vec::<f32>().map_err(|e| StageError::Failed(format!("{e:?}")))?;
        for (text, row) in texts.iter_mut().zip(logits.chunks_exact(self.decoder.spec().vocab_size)) {
            text.push(choose(row, self.temperature, self.rng.random()));
        }
        Ok(())
    }
}

/// The token at which the cumulative probability passes `at`, in `0..1`.
fn choose(logits: &[f32], temperature: f64, at: f64) -> TokenId {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - largest) / temperature).exp();
    let total: f64 = logits.iter().map(|&x| weight(x)).sum();
    let mut left = at * total;
    for (token, &x) in logits.iter().enumerate() {
        left -= weight(x);
        if left < 0.0 {
            return token as TokenId;
        }
    }
    logits.len().saturating_sub(1) as TokenId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let logits = [0.0, f32::NEG_INFINITY, 3_f32.ln()];
        let chosen: Vec<TokenId> = (0..100).map(|i| choose(&logits, 1.0, f64::from(i) / 100.0)).collect();
        assert_eq!(chosen.iter().filter(|&&token| token == 0).count(), 25);
        assert_eq!(chosen.iter().filter(|&&token| token == 2).count(), 75);
    }
}
