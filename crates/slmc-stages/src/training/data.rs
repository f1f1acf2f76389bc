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
pub(super) struct Writing {
    /// Name of what is kept of it in the stage's folder.
    pub file: &'static str,
    pub n_tokens: usize,
    /// Tokens of the longest document.
    pub document_len: usize,
    pub seed: u64,
    /// Ends the writing early.
    pub at_most: Option<Duration>,
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

impl Writing {
    /// The text: what an interrupted run had written, or a new one, kept in the stage's folder.
    pub fn text(self, teacher: &Checkpoint, context: &StageContext<'_>) -> Result<SampledText, StageError> {
        let Self { file, n_tokens, document_len, seed, at_most } = self;
        let path = context.folder.join(file);
        if path.is_file() {
            return kept::read_json(&path);
        }
        let settings = SampleSettings { n_tokens, document_len, temperature: TEMPERATURE, seed, at_most };
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
    /// Those of the data alone.
    pub fn of_data(&self) -> &Batches {
        match self {
            Self::Data(batches) => batches,
            Self::Mixed(mixture) => mixture.first(),
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
