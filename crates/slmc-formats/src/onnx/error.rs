//! What can be wrong with an ONNX file, or with a request to write one.

use crate::FileError;

/// A file that is not sound ONNX, or tensors that would not make one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum OnnxError {
    #[error("the model has {found} bytes; the limit is {limit}: keep tensors in external data")]
    TooLong { found: usize, limit: usize },
    #[error("byte {at}: {why}; this is no ONNX model, or it is damaged: fetch it again")]
    Wire { at: usize, why: &'static str },
    #[error("the model has more than {limit} fields; this is no language model")]
    TooManyFields { limit: usize },
    #[error("not an ONNX model: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the model has no graph")]
    NoGraph,
    #[error("tensor `{name}` {fault}")]
    Tensor { name: String, fault: TensorFault },
    #[error("a tensor has a name of {found} bytes; from 1 to {limit} are allowed")]
    NameLength { found: usize, limit: usize },
    #[error(transparent)]
    File(#[from] FileError),
}

/// What is wrong with one tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum TensorFault {
    #[error("is there twice; names must differ")]
    Duplicate,
    #[error("has {found} dimensions; the limit is {limit}")]
    Dimensions { found: usize, limit: usize },
    #[error("has data type {0}, which slmc does not read")]
    DataType(i32),
    #[error("has shape {0:?}: negative, or more bytes than a file can hold")]
    Shape(Vec<i64>),
    #[error("has {found} bytes of data where its shape and type call for {expected}")]
    WrongBytes { expected: u64, found: u64 },
    #[error("says of its external data `{key}` = `{value}`: {why}")]
    External { key: String, value: String, why: &'static str },
    #[error("begins at byte {offset} of its data and has {length}; the file has {data_bytes}: it is cut off")]
    OutsideFile { offset: u64, length: u64, data_bytes: u64 },
    #[error("shares the bytes of `{0}`, which is not there")]
    NothingToShare(String),
}
