//! ONNX (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>): a protobuf message that holds the graph, and a file
//! of tensor data beside it.
//!
//! The messages are declared by hand for prost's derive (`proto.rs`): about a dozen of onnx.proto's are needed, they have
//! kept their numbers since 2017, and no generator runs at build time. Fields that slmc does not use are skipped when
//! a file is read.

mod error;
pub mod proto;
mod read;
mod scan;
mod tensor;
mod writer;

pub use error::OnnxError;
pub use read::{OnnxFile, OnnxTensor};
pub use tensor::ElementType;
pub use writer::{GraphParts, OnnxWriter};

/// Version of the intermediate representation: the one of opset 21.
pub const IR_VERSION: i64 = 10;
/// The standard operators' version.
pub const OPSET: i64 = 21;
/// The domain of onnxruntime's own operators, version 1.
pub const CONTRIB_DOMAIN: &str = "com.microsoft";

/// Protobuf's own limit on a message.
const MAX_MODEL_BYTES: usize = i32::MAX as usize;
/// A decoder of 100 blocks has about 10 000 nodes, each of a dozen fields.
const MAX_FIELDS: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 1024;
const MAX_DIMS: usize = 8;
/// Smaller tensors lie in the graph itself.
const MIN_EXTERNAL_BYTES: usize = 1024;
/// Tensors of a page or more begin at one, so that they can be mapped; others at a cache line.
const PAGE_BYTES: u64 = 4096;
const LINE_BYTES: u64 = 64;
