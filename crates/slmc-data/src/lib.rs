//! Text, JSONL and chat data to token batches.
#![deny(missing_docs)]
