//! GGUF, llama.cpp's single-file format (ggml `docs/gguf.md`): version 3 read and written, version 2 read.
//!
//! ```text
//! magic, version, n_tensors, n_metadata | metadata | tensor infos | pad | tensor data, each padded
//! ```
//!
//! Little-endian only. Dimensions run fastest first, as in the file: a matrix is `[columns, rows]`.

mod cursor;
mod encode;
mod error;
mod header;
mod types;
mod value;
mod writer;

pub use error::{GgufError, TensorFault};
pub use header::{GgufHeader, TensorInfo};
pub use types::{file_type_of, format_of_file_type, format_of_ggml_type, ggml_type_of};
pub use value::{Array, Value};
pub use writer::{GgufWriter, PlannedTensor};

/// What every GGUF file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub const VERSION: u32 = 3;
/// Alignment of tensor data when the metadata does not say (`general.alignment`).
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Most bytes before the tensor data. Vocabularies of 262144 tokens with merges take about 20 MB, an
/// embedded `tokenizer.json` another 35.
const MAX_HEADER_BYTES: usize = 128 << 20;
const MAX_METADATA: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 17;
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
const MAX_NAME_BYTES: u64 = 64;
const MAX_DIMS: u32 = 4;
const MAX_ARRAY_DEPTH: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;
const ALIGNMENT_KEY: &str = "general.alignment";
