//! File codecs: safetensors, GGUF and ONNX, bytes to typed headers and back.
//!
//! This crate knows bytes, not models: names of tensors and keys of metadata are strings here. Every
//! parser takes bytes from anyone: it checks limits first, computes with checked arithmetic, allocates
//! in proportion to what the file really holds, and answers a crafted file with an error that names the
//! key or tensor at fault.
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod atomic;
mod file_error;
pub mod gguf;
mod json;
mod map;
pub mod onnx;
pub mod safetensors;
mod shown;

pub use atomic::{AtomicDir, AtomicFile, Existing};
pub use file_error::FileError;
pub use gguf::{GgufError, GgufHeader, GgufWriter, PlannedTensor, TensorInfo};
pub use map::{map_file, release, release_all};
pub use onnx::{ElementType, OnnxError, OnnxFile, OnnxWriter};
pub use safetensors::{
    Dtype, FloatType, PlannedSafeTensor, PlannedTypedTensor, SafeTensorInfo, SafetensorsError,
    SafetensorsHeader, SafetensorsWriter, ShardIndex, ShardIndexError, TypedHeader, TypedTensorInfo,
};
