//! Text, JSONL and chat data to token batches.
//!
//! The way through the crate: [`Documents`] reads what lies at a path, [`Tokenizer`] turns text into tokens,
//! [`PackedTokens`] puts the documents end to end, [`Batches`] cuts that stream into training batches.
//! Everything here is a pure function of its inputs and a seed; nothing reads the environment.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cuts;
mod tokenizer;

pub use tokenizer::{DecodeStream, Special, TokenizeError, Tokenizer};
