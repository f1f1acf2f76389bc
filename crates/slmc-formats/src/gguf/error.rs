//! What can be wrong with a GGUF file, or with a request to write one.

use slmc_ir::Format;

use crate::FileError;

/// A file that is not a sound GGUF, or tensors that would not make one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum GgufError {
    #[error("not a GGUF file: it begins with {found:02x?}, not `GGUF`; check that the download is complete")]
    NotGguf { found: Vec<u8> },
    #[error("GGUF version {0}: versions 2 and 3 are read; convert the file again with a current llama.cpp")]
    Version(u32),
    #[error("the GGUF is big-endian, which is not read; convert it to little-endian first")]
    BigEndian,
    #[error(
        "{what}: {needed} bytes needed at offset {offset}, {left} left; the file is cut off or its header is false"
    )]
    Truncated { what: String, offset: u64, needed: u64, left: u64 },
    #[error("{what}: the header goes on past {limit} bytes; no model's header is that long")]
    HeaderTooLong { what: String, limit: usize },
    #[error("{what} is {found}, more than the limit of {limit}; the header is damaged or not a model's")]
    TooLarge { what: String, found: u64, limit: u64 },
    #[error("{what} at offset {offset} is not UTF-8; the header is damaged")]
    NotUtf8 { what: String, offset: u64 },
    #[error("{what} at offset {offset} is empty; it needs a name")]
    EmptyName { what: String, offset: u64 },
    #[error("{what} at offset {offset} has value type {id}; the format has types 0 to 12")]
    ValueType { what: String, offset: u64, id: u32 },
    #[error("{what} at offset {offset} is a bool of value {found}; a bool is 0 or 1")]
    NotBool { what: String, offset: u64, found: u8 },
    #[error("metadata key `{key}` is there twice; the file must say one thing")]
    DuplicateKey { key: String },
    #[error(
        "`general.alignment` is {found}; it must be a u32, a power of two and at most {limit}",
        limit = super::MAX_ALIGNMENT
    )]
    Alignment { found: String },
    #[error("tensor `{name}` {fault}")]
    Tensor { name: String, fault: TensorFault },
    #[error("tensors `{first}` and `{second}` overlap in the file; the header is damaged")]
    Overlap { first: String, second: String },
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
pub enum TensorFault {
    #[error("is there twice; names must differ")]
    Duplicate,
    #[error("has a name of {0} bytes; llama.cpp loads names of at most 63")]
    NameTooLong(usize),
    #[error("has {0} dimensions; the format has 1 to 4")]
    Dimensions(u32),
    #[error("has dimensions {0:?}: none may be 0")]
    EmptyDimension(Vec<u64>),
    #[error("has dimensions {0:?}: more bytes than a file can hold")]
    TooLarge(Vec<u64>),
    #[error(
        "has ggml type {id} ({name}), which is not read; convert it to a type that is, such as Q8_0 or F16"
    )]
    Type { id: u32, name: &'static str },
    #[error("is in {0}, which no file holds; write it in another format, such as q8_0 or f16")]
    NotStored(Format),
    #[error("has rows of {columns} weights, not whole {format} blocks of {block}", block = format.block_weights())]
    PartialBlock { columns: u64, format: Format },
    #[error("begins at data offset {offset}, not a multiple of the alignment {alignment}")]
    Misaligned { offset: u64, alignment: u64 },
    #[error("ends at byte {end} of a file of {file_bytes}; the file is cut off: fetch it again")]
    OutsideFile { end: u128, file_bytes: u64 },
    #[error("is given {found} bytes where shape and type call for {expected}")]
    WrongBytes { expected: u64, found: u64 },
}
