//! Text, JSONL and chat data to token batches.
//!
//! The way through the crate: [`Documents`] reads what lies at a path, [`Tokenizer`] turns text into tokens,
//! [`PackedTokens`] puts the documents end to end, [`Batches`] cuts that stream into training batches, [`Mixture`] joins two.
//! Everything here is a pure function of its inputs and a seed; nothing reads the environment.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod batches;
mod bpe;
mod bpe_json;
mod chat;
mod cuts;
mod document;
mod documents;
mod guard;
mod hash;
mod jsonl;
mod manifest;
mod mixture;
mod overlap;
mod pack;
mod rows;
mod spelling;
mod tokenizer;
mod word_cache;

pub use batches::{Batch, BatchError, Batches};
pub use bpe::{TrainBpeError, train_bpe};
pub use chat::{ChatError, ChatTemplate, ChatTokens, ScoredChat, render_chat};
pub use document::{Content, Document, Message, Shares, Split};
pub use documents::{DataError, Documents, read_text};
pub use guard::panic_becomes_error;
pub use hash::{sha256_bytes, sha256_file, sha256_path};
pub use manifest::{Manifest, ManifestFile};
pub use mixture::{Mixture, MixtureError};
pub use overlap::overlap;
pub use pack::{PackError, PackedTokens};
pub use rows::{Example, PackedRows, RowCounts};
pub use tokenizer::{DecodeStream, Special, TokenizeError, Tokenizer};
