//! What an adapter learns from: a dataset's documents as rows, none across a border.

use rayon::prelude::*;
use serde::Serialize;
use slmc_data::{Batch, Batches, ChatTemplate, Document, Example, PackedRows, RowCounts, Split, Tokenizer};
use slmc_ir::Checkpoint;
use slmc_recipe::{StageError, TrainConfig};

use crate::{
    Surroundings,
    calibration::{Dataset, all_or_every_fault, tokenizer_of},
};

/// Training rows, and those that are held out.
pub(super) struct LoraData {
    pub train: Batches,
    pub counts: RowCounts,
    /// Empty when too little is held out.
    pub held_out: Vec<Batch>,
}

/// What a model writes out documents with.
struct Writer {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Writer {
    fn of(checkpoint: &Checkpoint) -> Result<Self, StageError> {
        let tokenizer = tokenizer_of(checkpoint)?;
        let template = checkpoint.tokenizer.as_ref().map(|files| ChatTemplate::from_files(files, &tokenizer));
        let template = template.transpose().map_err(|e| StageError::Input(e.to_string()))?.flatten();
        Ok(Self { tokenizer, template })
    }

    /// Each document as tokens, or every document that cannot be written out.
    fn examples<'a>(
        &self,
        documents: impl Iterator<Item = &'a Document>,
    ) -> Result<Vec<Example>, StageError> {
        let documents: Vec<&Document> = documents.collect();
        let example = |document: &&Document| {
            Example::new(document, &self.tokenizer, self.template.as_ref()).map_err(|e| e.to_string())
        };
        let found: Vec<Result<Example, String>> = documents.par_iter().map(example).collect();
        all_or_every_fault(found.into_iter())
    }

    fn rows(&self, examples: &[Example], seq_len: usize) -> PackedRows {
        let special = self.tokenizer.special();
        let padding = special.pad.or(special.eos).or(special.bos).unwrap_or(0);
        PackedRows::pack(examples, seq_len, padding)
    }
}

impl LoraData {
    pub fn open(
        config: &TrainConfig,
        input: &Checkpoint,
        around: &Surroundings,
        seed: u64,
    ) -> Result<Self, StageError> {
        let writer = Writer::of(input)?;
        let dataset = Dataset::open(&config.data, around)?;
        let rows = writer.rows(&writer.examples(dataset.of(Split::Train))?, config.seq_len);
        let counts = rows.counts();
        let train =
            Batches::of_rows(rows, config.batch_size, seed).map_err(|e| StageError::Input(e.to_string()))?;
        let held_out = match &config.eval_data {
            Some(other) => writer.examples(Dataset::open(other, around)?.all())?,
            None => writer.examples(dataset.of(Split::Valid))?,
        };
        let rows = writer.rows(&held_out, config.seq_len);
        Ok(Self { train, counts, held_out: batches(rows, config.batch_size, config.eval_batches) })
    }
}

/// The first batches of an order that is the same whatever the run's seed: runs can be compared.
fn batches(rows: PackedRows, batch_size: usize, n_batches: usize) -> Vec<Batch> {
    let n_rows = rows.counts().rows;
    let batches = Batches::of_rows(rows, batch_size.min(n_rows.max(1) as usize), 0);
    let Ok(batches) = batches else { return Vec::new() };
    // A row twice would weigh twice.
    let n_whole = n_rows / batch_size.min(n_rows.max(1) as usize) as u64;
    (0..n_whole.min(n_batches as u64)).map(|index| batches.batch(index)).collect()
}

/// Held-out rows of a dataset in a model's own tokens and chat template: of the documents that it holds out, or of all.
pub fn held_out_batches(
    data: &str,
    checkpoint: &Checkpoint,
    seq_len: usize,
    batch_size: usize,
    n_batches: usize,
    around: &Surroundings,
) -> Result<Vec<Batch>, StageError> {
    let writer = Writer::of(checkpoint)?;
    let dataset = Dataset::open(data, around)?;
    let documents = dataset.to_measure_on();
    let rows = writer.rows(&writer.examples(documents.into_iter())?, seq_len);
    let found = batches(rows, batch_size, n_batches);
    if found.is_empty() {
        return Err(StageError::Input(format!(
            "{data}: nothing in it is learnt from, so nothing can be measured"
        )));
    }
    Ok(found)
}

/// What an adapter would learn from, before it does.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// Documents by what they are written out as, the tokens that are learnt from between ⟦ and ⟧.
    pub examples: Vec<PreviewExample>,
    /// What becomes of all documents.
    pub counts: RowCounts,
}

/// One document.
#[derive(Clone, Debug, Serialize)]
pub struct PreviewExample {
    /// File and line.
    pub id: String,
    /// Its tokens, written out.
    pub text: String,
    /// Tokens.
    pub tokens: usize,
    /// Tokens that are learnt from.
    pub targets: usize,
}

/// Writes out the first documents of a dataset as an adapter would see them, and counts all of them.
pub fn preview(
    data: &str,
    checkpoint: &Checkpoint,
    seq_len: usize,
    n_examples: usize,
    around: &Surroundings,
) -> Result<Preview, StageError> {
    let writer = Writer::of(checkpoint)?;
    let dataset = Dataset::open(data, around)?;
    let examples = writer.examples(dataset.of(Split::Train))?;
    let counts = writer.rows(&examples, seq_len).counts();
    let shown = examples.iter().take(n_examples).map(|example| PreviewExample {
        id: example.id.clone(),
        text: example.marked(&writer.tokenizer),
        tokens: example.tokens.len(),
        targets: example.scored.iter().filter(|&&scored| scored).count(),
    });
    Ok(Preview { examples: shown.collect(), counts })
}
