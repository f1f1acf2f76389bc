//! What can be wrong with a safetensors file, with a shard index, or with a request to write one.

use slmc_ir::Format;

use crate::FileError;

/// A file that is not sound safetensors, or tensors that would not make one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum SafetensorsError {
    #[error(
        "a safetensors file begins with 8 bytes of header length; this one has {0} bytes: fetch it again"
    )]
    TooShort(usize),
    #[error("the header claims {found} bytes; the limit is {limit}: this is no safetensors file")]
    HeaderTooLong { found: u64, limit: u64 },
    #[error(
        "the header claims {header_bytes} bytes of a file of {file_bytes}; the file is cut off: fetch it again"
    )]
    Truncated { header_bytes: u64, file_bytes: u64 },
    #[error("the header does not begin with `{{`; this is no safetensors file")]
    NotAnObject,
    #[error("header: {0}")]
    Json(#[source] serde_json::Error),
    #[error("a tensor has a name of {found} bytes; the limit is {limit}")]
    NameLength { found: usize, limit: usize },
    #[error(
        "tensor `{name}` has unsupported dtype {dtype}; F32, F16 and BF16 are read: convert it to one of them"
    )]
    UnsupportedDtype { name: String, dtype: String },
    #[error("tensor `{name}` {fault}")]
    Tensor { name: String, fault: DataFault },
    #[error("tensors end at data byte {end} of {data_bytes}; the file is cut off or has bytes of no tensor")]
    DataLength { end: u64, data_bytes: u64 },
    #[error(
        "tensor `{name}` is planned as {format}, which safetensors has no name for; write f32, f16 or bf16"
    )]
    NoDtype { name: String, format: Format },
    #[error("{written} of {planned} tensors were written; write the rest before finishing")]
    Unfinished { written: usize, planned: usize },
    #[error("all {planned} planned tensors are written already; plan every tensor before writing")]
    TooManyWritten { planned: usize },
    #[error(transparent)]
    File(#[from] FileError),
}

/// What is wrong with one tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum DataFault {
    #[error("is there twice; names must differ")]
    Duplicate,
    #[error("has {found} dimensions; the limit is {limit}")]
    Dimensions { found: usize, limit: usize },
    #[error("has shape {0:?}: more bytes than a file can hold")]
    TooLarge(Vec<u64>),
    #[error("has data offsets {start} to {end}, which run backwards")]
    Backwards { start: u64, end: u64 },
    #[error("has {found} bytes of data where its shape and dtype call for {expected}")]
    WrongBytes { expected: u64, found: u64 },
    #[error("begins at data byte {found}, not at {expected} where the one before ends: overlap or gap")]
    NotContiguous { expected: u64, found: u64 },
    #[error("ends at data byte {end} of {data_bytes}; the file is cut off: fetch it again")]
    OutsideFile { end: u64, data_bytes: u64 },
}

/// A `model.safetensors.index.json` that cannot be trusted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum ShardIndexError {
    #[error("the shard index has {found} bytes; the limit is {limit}")]
    TooLong { found: usize, limit: usize },
    #[error("shard index: {0}")]
    Json(#[source] serde_json::Error),
    #[error(
        "shard index: tensor `{tensor}` is said to be in `{shard}`, which is not a plain file name; refused"
    )]
    ShardName { tensor: String, shard: String },
    #[error("shard index: `weight_map` names no tensor; fetch the index again")]
    Empty,
    #[error("shard index: `total_size` is {found}; it must be a whole number of bytes")]
    TotalSize { found: String },
}
