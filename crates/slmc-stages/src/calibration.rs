//! From a dataset's path to what stages take: texts, documents of a split, token sequences.

use std::path::Path;

use serde::Serialize;
use slmc_data::{ChatTemplate, Content, Document, Documents, PackedTokens, Shares, Split, Tokenizer};
use slmc_ir::{Checkpoint, TokenId};
use slmc_recipe::StageError;

use crate::Surroundings;

/// Fewer documents than this are all for training, unless a manifest says otherwise: one of a handful is too much
/// to lose and too little to measure on.
const MIN_TO_SPLIT: usize = 50;

/// Documents of a thousand that are held out of a dataset that does not say itself.
const HELD_OUT_PER_MILLE: u32 = 20;

/// The model's own tokenizer.
pub fn tokenizer_of(checkpoint: &Checkpoint) -> Result<Tokenizer, StageError> {
    let none = || StageError::Input("the model has no tokenizer: text cannot be read with it".to_owned());
    let files = checkpoint.tokenizer.as_ref().ok_or_else(none)?;
    Tokenizer::from_files(files).map_err(|e| StageError::Input(e.to_string()))
}

/// Whether two tokenizers give the same id to the same token.
pub fn same_vocabulary(one: &Tokenizer, other: &Tokenizer) -> bool {
    let same = |id: usize| one.token_content(id as TokenId) == other.token_content(id as TokenId);
    one.vocab_size() == other.vocab_size() && (0..one.vocab_size()).all(same)
}

/// A dataset's documents, told apart by what they are for.
pub struct Dataset {
    documents: Vec<Document>,
    shares: Shares,
}

impl Dataset {
    /// Reads all documents of a dataset.
    pub fn open(data: &str, surroundings: &Surroundings) -> Result<Self, StageError> {
        let wrong = |e: slmc_data::DataError| StageError::Input(e.to_string());
        let documents = Documents::open(Path::new(data), surroundings.data_root.as_deref()).map_err(wrong)?;
        let documents = all_or_every_fault(documents.iter().map(|d| d.map_err(|e| e.to_string())))?;
        let shares = if documents.len() < MIN_TO_SPLIT {
            Shares::ALL_TRAIN
        } else {
            Shares { valid_per_mille: HELD_OUT_PER_MILLE, test_per_mille: 0 }
        };
        Ok(Self { documents, shares })
    }

    /// The documents of one split.
    pub fn of(&self, split: Split) -> impl Iterator<Item = &Document> {
        self.documents.iter().filter(move |document| document.split(self.shares) == split)
    }

    /// What statistics are taken on: the documents for training; where there are none, those that are looked at while
    /// learning. Never those that models are measured on.
    pub fn to_calibrate_on(&self) -> Vec<&Document> {
        let train: Vec<&Document> = self.of(Split::Train).collect();
        if train.is_empty() { self.of(Split::Valid).collect() } else { train }
    }

    /// What a model is measured on: the documents that the dataset holds out for tests; all when it holds out none.
    pub fn to_measure_on(&self) -> Vec<&Document> {
        let held_out: Vec<&Document> = self.of(Split::Test).collect();
        if held_out.is_empty() { self.documents.iter().collect() } else { held_out }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Document> {
        self.documents.iter()
    }
}

/// Faults that are told one by one.
const MAX_FAULTS: usize = 20;

/// Everything, or every fault in it, one a line.
pub fn all_or_every_fault<T>(found: impl Iterator<Item = Result<T, String>>) -> Result<Vec<T>, StageError> {
    let (mut good, mut faults, mut n_faults) = (Vec::new(), Vec::new(), 0_usize);
    for one in found {
        match one {
            Ok(one) => good.push(one),
            Err(fault) => {
                n_faults += 1;
                if faults.len() < MAX_FAULTS {
                    faults.push(fault);
                }
            }
        }
    }
    if n_faults == 0 {
        return Ok(good);
    }
    if n_faults > faults.len() {
        faults.push(format!("and {} more", n_faults - faults.len()));
    }
    Err(StageError::Input(faults.join("\n")))
}

/// What a dataset holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Survey {
    /// Documents in all.
    pub documents: u64,
    /// Those that are learnt from.
    pub train: u64,
    /// Those that are looked at while learning.
    pub valid: u64,
    /// Those that are measured on at the end.
    pub test: u64,
    /// Bytes of plain text.
    pub bytes: u64,
    /// Tokens, separators included, where a model was given to count with.
    pub tokens: Option<u64>,
}

/// Counts what a dataset holds; with a model, in its tokens too.
pub fn survey(
    data: &str,
    model: Option<&Checkpoint>,
    surroundings: &Surroundings,
) -> Result<Survey, StageError> {
    let dataset = Dataset::open(data, surroundings)?;
    let count = |split| dataset.of(split).count() as u64;
    let bytes = |document: &Document| match &document.content {
        Content::Text(text) => text.len(),
        Content::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
        Content::Completion { prompt, completion } => prompt.len() + completion.len(),
    };
    let tokens = match model {
        Some(model) => Some(pack(dataset.all(), model, &tokenizer_of(model)?)?.tokens().len() as u64),
        None => None,
    };
    Ok(Survey {
        documents: dataset.documents.len() as u64,
        train: count(Split::Train),
        valid: count(Split::Valid),
        test: count(Split::Test),
        bytes: dataset.all().map(|document| bytes(document) as u64).sum(),
        tokens,
    })
}

/// Documents end to end as tokens; chats are written out with the model's own template.
pub fn pack<'a>(
    documents: impl Iterator<Item = &'a Document>,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
) -> Result<PackedTokens, StageError> {
    let template = match &checkpoint.tokenizer {
        Some(files) => {
            ChatTemplate::from_files(files, tokenizer).map_err(|e| StageError::Input(e.to_string()))?
        }
        None => None,
    };
    let mut packed = PackedTokens::from_tokens(Vec::new());
    for document in documents {
        packed.push(document, tokenizer, template.as_ref()).map_err(|e| StageError::Input(e.to_string()))?;
    }
    Ok(packed)
}

/// The text of a document that is plain text.
pub fn text_of_document(document: &Document) -> Result<&str, StageError> {
    match &document.content {
        Content::Text(text) => Ok(text),
        _ => Err(StageError::Input(format!("{}: plain text is needed here, not a chat", document.id))),
    }
}

/// `n_sequences` sequences of `seq_len` tokens, spread evenly over the dataset's documents to calibrate on.
pub fn sequences(
    data: &str,
    n_sequences: usize,
    seq_len: usize,
    checkpoint: &Checkpoint,
    surroundings: &Surroundings,
) -> Result<Vec<Vec<TokenId>>, StageError> {
    let dataset = Dataset::open(data, surroundings)?;
    let packed = pack(dataset.to_calibrate_on().into_iter(), checkpoint, &tokenizer_of(checkpoint)?)?;
    let tokens = packed.tokens();
    let n_windows = tokens.len() / seq_len.max(1);
    if n_windows < n_sequences || n_sequences == 0 {
        let message = format!("{data}: {} tokens are not {n_sequences} sequences of {seq_len}", tokens.len());
        return Err(StageError::Input(message));
    }
    let start = |i: usize| i * n_windows / n_sequences * seq_len;
    Ok((0..n_sequences).map(|i| tokens[start(i)..start(i) + seq_len].to_vec()).collect())
}
