//! safetensors, Hugging Face's format (<https://github.com/huggingface/safetensors>, section *Format*):
//! header length, JSON header, tensor data without gaps; and the index of a checkpoint in several files.
//!
//! The `safetensors` crate is not used for reading, because it keeps the last of two tensors of one name
//! and its errors for damaged entries name no tensor. The tests hold it beside this parser: what is
//! accepted here is accepted there, with the same ranges.

mod dtype;
mod error;
mod header;
mod shard_index;
mod writer;

pub use dtype::{Dtype, FloatType};
pub use error::{DataFault, SafetensorsError, ShardIndexError};
pub use header::{SafeTensorInfo, SafetensorsHeader, TypedHeader, TypedTensorInfo};
pub use shard_index::ShardIndex;
pub use writer::{PlannedSafeTensor, PlannedTypedTensor, SafetensorsWriter};

/// The reference implementation's limit on the JSON header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The index of a model of 100 000 tensors takes about 10 MB.
const MAX_INDEX_BYTES: usize = 32 << 20;
const MAX_NAME_BYTES: usize = 1024;
const MAX_DIMS: usize = 8;
const LENGTH_BYTES: usize = 8;
const METADATA_KEY: &str = "__metadata__";
