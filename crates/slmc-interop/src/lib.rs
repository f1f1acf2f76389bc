//! The foreign world's edge: Hugging Face folders and GGUF files in and out, ONNX out.
//!
//! The only tables of foreign names are here. What these files say and slmc does not use travels along in
//! [`slmc_ir::Checkpoint::extras`], so that a model comes out as it went in: GGUF to folder to GGUF gives the same
//! tensors bit for bit and the same metadata. What may change what a model computes is understood or refused by
//! name; nothing is guessed.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod encoded;
mod error;
mod family;
mod files;
mod fingerprint;
mod finite;
mod gguf;
mod hex;
mod hf;
mod names;
mod numbers;
mod onnx;
mod open;
mod rotary;
mod source;
mod tokenizer;
mod write;

pub use encoded::Encoded;
pub use error::{FieldError, OpenError, OpenFault, TensorError, TokenizerError, WriteError};
pub use fingerprint::{FileSummary, fingerprint, summarize};
pub use finite::check_finite;
pub use gguf::write_gguf;
pub use hf::{open_config, write_hf_folder};
pub use onnx::{CheckModel, OnnxOptions, OnnxPlan, OnnxPrecision, write_onnx_file, write_onnx_folder};
pub use open::open;
pub use write::{WriteOptions, Written};
