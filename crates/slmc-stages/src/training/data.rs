//! What is learnt from: a dataset, and beside it text that the teacher writes itself.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use slmc_data::{Batch, Batches, Document, Mixture, PackedTokens, Split};
use slmc_ir::{Checkpoint, TokenId};
use slmc_recipe::{StageContext, StageError, TrainConfig};
use slmc_train::{BatchSource, TrainError};

use super::Training;
use crate::{
    calibration::{Dataset, pack, tokenizer_of},
    kept,
    sample::{SampleSettings, WrittenText, sample_documents},
};

/// The teacher's own distribution. At 0.9 its text reads better and says less: students won back 45 instead of 48 % of
/// what they had lost on an encyclopaedia.
const TEMPERATURE: f64 = 1.0;

/// Text that the teacher is to write.
#[derive(Clone, Copy)]
pub(super) struct Sampled {
    pub n_tokens: usize,
    /// Tokens of the longest document: a row of the training.
    pub document_len: usize,
    /// Share of its sequences among all.
    pub share: f64,
}

/// Text that the teacher has written.
#[derive(Serialize, Deserialize)]
pub(super) struct SampledText {
    pub n_documents: usize,
    /// One document behind the other, as they were written.
    pub tokens: Vec<TokenId>,
    /// Tokens that were written.
    pub n_tokens: usize,
    /// How long the writing took.
    pub seconds: f64,
}

impl Sampled {
    /// The text: what an interrupted run had written, or a new one, kept in the stage's folder.
    pub fn text(
        self,
        teacher: &Checkpoint,
        at_most: Option<Duration>,
        context: &StageContext<'_>,
    ) -> Result<SampledText, StageError> {
        let path = context.folder.join("sampled.json");
        if path.is_file() {
            return kept::read_json(&path);
        }
        let settings = SampleSettings {
            n_tokens: self.n_tokens,
            document_len: self.document_len,
            temperature: TEMPERATURE,
            seed: context.seed,
            at_most,
        };
        let begun = context.host.elapsed();
        let WrittenText { documents, tokens, n_tokens } = sample_documents(teacher, settings, context.host)?;
        let seconds = (context.host.elapsed() - begun).as_secs_f64();
        let text = SampledText { n_documents: documents.len(), tokens, n_tokens, seconds };
        kept::write_json(&path, &text)?;
        // As it will be read by whoever goes on with this run.
        kept::read_json(&path)
    }
}

/// Training batches.
pub(super) enum Learnt {
    Data(Batches),
    Mixed(Mixture),
}

impl BatchSource for Learnt {
    fn batch(&self, index: u64) -> Result<Batch, TrainError> {
        Ok(match self {
            Self::Data(batches) => batches.batch(index),
            Self::Mixed(mixture) => mixture.batch(index),
        })
    }
}

impl Learnt {
    /// Batch number `index` of what the training comes to last, with a share of its own of the teacher's text, where there is any
    /// of it.
    pub fn batch_from_the_end(&self, index: u64, share: f64) -> Batch {
        match self {
            Self::Data(batches) => batches.batch_from_the_end(index),
            Self::Mixed(mixture) => mixture.batch_from_the_end(index, share),
        }
    }
}

impl Training {
    /// Training batches, with sampled text and its share among them, and the fixed batches that are held out.
    pub(super) fn batches(
        &self,
        input: &Checkpoint,
        sampled: Option<(&SampledText, f64)>,
        seed: u64,
    ) -> Result<(Learnt, Option<Batches>), StageError> {
        let TrainConfig { data, eval_data, seq_len, batch_size, .. } = &self.config;
        let tokenizer = tokenizer_of(input)?;
        let dataset = Dataset::open(data, &self.around)?;
        let batches = |tokens: PackedTokens, seed| {
            Batches::new(Arc::new(tokens), *seq_len, *batch_size, seed)
                .map_err(|e| StageError::Input(e.to_string()))
        };
        // Scales learn on calibration text.
        let learnt: Vec<&Document> =
            if self.learns_scales() { dataset.to_calibrate_on() } else { dataset.of(Split::Train).collect() };
        let train = batches(pack(learnt.into_iter(), input, &tokenizer)?, seed)?;
        let train = match sampled {
            None => Learnt::Data(train),
            Some((text, share)) => {
                let sampled = batches(PackedTokens::from_tokens(text.tokens.clone()), seed)?;
                let mixture = Mixture::new(train, sampled, share);
                Learnt::Mixed(mixture.map_err(|e| StageError::Input(e.to_string()))?)
            }
        };
        let held_out = match eval_data {
            Some(other) => pack(Dataset::open(other, &self.around)?.all(), input, &tokenizer)?,
            None => pack(dataset.of(Split::Valid), input, &tokenizer)?,
        };
        if held_out.tokens().len() <= *seq_len * *batch_size {
            return Ok((train, None));
        }
        // The held-out batches are the same whatever the run's seed: runs can be compared.
        Ok((train, Some(batches(held_out, 0)?)))
    }
}
