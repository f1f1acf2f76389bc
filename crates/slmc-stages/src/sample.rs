//! Text that a model itself writes: calibration and training data where no other is at hand, or none may be used.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use slmc_engine::{Crowd, EngineError};
use slmc_interop::Encoded;
use slmc_ir::{Checkpoint, Format, Host, SourceError, TokenId};
use slmc_recipe::StageError;

use crate::{
    calibration::tokenizer_of,
    evaluate::{Exactness, engine_of},
};

/// Sequences that are written side by side.
const N_SIDE_BY_SIDE: usize = 32;

/// What to sample.
#[derive(Clone, Copy, Debug)]
pub struct SampleSettings {
    /// Tokens in all; the last documents may be cut short.
    pub n_tokens: usize,
    /// Tokens of the longest document.
    pub document_len: usize,
    /// Softens (above 1) or sharpens (below 1) the model's distribution.
    pub temperature: f64,
    /// Seed of the choices.
    pub seed: u64,
    /// Ends the writing early.
    pub at_most: Option<Duration>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct WrittenText {
    /// The documents, in the order in which they were finished, without the token that ended them.
    pub documents: Vec<String>,
    /// The same as the model wrote them, one behind the other, each with a token that ends it: encoded anew, text becomes other tokens
    /// than those that were drawn, and special ones become their names.
    pub tokens: Vec<TokenId>,
    /// Tokens of all of them; fewer than asked for where the time was over before.
    pub n_tokens: usize,
}

/// Documents that the model writes, each from a token of the vocabulary that is drawn at random (LLM-QAT,
/// arXiv:2305.17888, section 2.1): from its beginning-of-text token alone, a model that was taught to chat writes
/// little but its system prompt.
pub fn sample_documents(
    checkpoint: &Checkpoint,
    settings: SampleSettings,
    host: &dyn Host,
) -> Result<WrittenText, StageError> {
    let tokenizer = tokenizer_of(checkpoint)?;
    let engine =
        engine_of(&in_bytes(checkpoint).map_err(|e| StageError::Failed(e.to_string()))?, Exactness::FAST)?;
    let begun = host.elapsed();
    let document_len = settings.document_len.clamp(1, engine.spec().context_len);
    let n_sequences = N_SIDE_BY_SIDE.min(settings.n_tokens.div_ceil(document_len).max(1));
    let crowd = engine.crowd(n_sequences, document_len).map_err(failed)?;
    // What decodes to nothing says nothing: special tokens, and ids that the vocabulary leaves out.
    let is_text = |token: &TokenId| tokenizer.decode(&[*token]).is_ok_and(|text| !text.trim().is_empty());
    let beginnings: Vec<TokenId> = (0..engine.spec().vocab_size as TokenId).filter(is_text).collect();
    if beginnings.is_empty() {
        return Err(StageError::Input(
            "no token of the vocabulary is text: nothing can be written".to_owned(),
        ));
    }
    let mut writer = Writer {
        crowd,
        random: ChaCha8Rng::seed_from_u64(settings.seed),
        temperature: settings.temperature,
        beginnings: &beginnings,
        end: tokenizer.special().eos,
        document_len,
        texts: vec![Vec::new(); n_sequences],
        finished: Vec::new(),
    };
    host.begin("sample", settings.n_tokens as u64, "tokens");
    let mut n_tokens = 0;
    while n_tokens < settings.n_tokens {
        if settings.at_most.is_some_and(|at_most| host.elapsed() - begun > at_most) {
            break;
        }
        if host.stop_requested() {
            return Err(StageError::Interrupted("while sampling".to_owned()));
        }
        n_tokens += writer.step().map_err(failed)?;
        host.advance_to(n_tokens.min(settings.n_tokens) as u64, "");
    }
    host.end();
    let Writer { texts, mut finished, .. } = writer;
    finished.extend(texts.into_iter().filter(|text| !text.is_empty()));
    let end = tokenizer.special().eos;
    for text in &mut finished {
        text.pop_if(|token| end == Some(*token));
    }
    let decode = |text: &Vec<TokenId>| tokenizer.decode(text).map_err(|e| StageError::Failed(e.to_string()));
    let documents = finished.iter().map(decode).collect::<Result<_, _>>()?;
    let tokens = finished.into_iter().flat_map(|text| text.into_iter().chain(end)).collect();
    Ok(WrittenText { documents, tokens, n_tokens })
}

/// The model with its float matrices in bytes, which writes half as fast again. What its distribution loses by that (SmolLM2: KL
/// 0.004, with activations in bytes) is little beside what drawing from it adds.
pub(crate) fn in_bytes(checkpoint: &Checkpoint) -> Result<Checkpoint, SourceError> {
    let weights = &checkpoint.weights;
    let mut plan = BTreeMap::new();
    for &key in weights.keys() {
        let whole_blocks =
            key.shape(weights.spec()).last().is_some_and(|n| n % Format::Q8_0.block_weights() == 0);
        if key.role.is_matrix() && whole_blocks && weights.format(key)?.is_float() {
            plan.insert(key, Format::Q8_0);
        }
    }
    let weights = Arc::new(Encoded::new(Arc::clone(weights), plan)?);
    Ok(Checkpoint { weights, ..checkpoint.clone() })
}

fn failed(error: EngineError) -> StageError {
    StageError::Failed(error.to_string())
}

struct Writer<'e> {
    crowd: Crowd<'e>,
    random: ChaCha8Rng,
    temperature: f64,
    beginnings: &'e [TokenId],
    end: Option<TokenId>,
    document_len: usize,
    /// What each sequence has written of its document.
    texts: Vec<Vec<TokenId>>,
    finished: Vec<Vec<TokenId>>,
}

impl Writer<'_> {
    /// Adds a token to each document; how many.
    fn step(&mut self) -> Result<usize, EngineError> {
        for (sequence, text) in self.texts.iter_mut().enumerate() {
            let ended = text.last().is_some_and(|&token| Some(token) == self.end);
            if ended || text.len() == self.document_len {
                self.finished.push(std::mem::take(text));
                self.crowd.clear(sequence);
            }
            if text.is_empty() {
                text.push(self.beginnings[self.random.random_range(0..self.beginnings.len())]);
            }
        }
        let last: Vec<TokenId> = self.texts.iter().filter_map(|text| text.last().copied()).collect();
        // In the order of the sequences, whatever thread chooses.
        let drawn: Vec<f64> = self.texts.iter().map(|_| self.random.random()).collect();
        let (temperature, logits) = (self.temperature, self.crowd.step(&last)?);
        let rows = logits.par_chunks_exact(logits.len() / last.len());
        let chosen: Vec<TokenId> = rows.zip(drawn).map(|(row, at)| choose(row, temperature, at)).collect();
        self.texts.iter_mut().zip(chosen).for_each(|(text, token)| text.push(token));
        Ok(last.len())
    }
}

/// The token at which the cumulative probability passes `at`, in `0..1`.
fn choose(logits: &[f32], temperature: f64, at: f64) -> TokenId {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (1.0 / temperature) as f32;
    let weights: Vec<f32> = logits.iter().map(|x| ((x - largest) * scale).exp()).collect();
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let mut left = at * total;
    let chosen = weights.iter().position(|&weight| {
        left -= f64::from(weight);
        left < 0.0
    });
    // Rounding can leave a little: it is the last possible token's.
    let last = || weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0);
    chosen.unwrap_or_else(last) as TokenId
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
