//! The foreign world's edge: Hugging Face folders and GGUF files in and out, ONNX out.
//!
//! The only tables of foreign names are here. What these files say and slmc does not use travels along in
//! [`slmc_ir::Checkpoint::extras`], so that a model comes out as it went in: GGUF to folder to GGUF gives the same
//! tensors bit for bit and the same metadata. What may change what a model computes is understood or refused by
//! name; nothing is guessed.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapter;
mod encoded;
mod error;
mod family;
mod files;
mod fingerprint;
mod finite;
mod gguf;
mod hex;
mod hf;
mod merged;
mod names;
mod numbers;
mod onnx;
mod open;
mod packed;
mod rearranged;
mod rotary;
mod source;
mod tokenizer;
mod write;

pub use adapter::{
    AdapterAbout, open_adapter, open_adapter_for, roles_of_targets, write_adapter_folder, write_adapter_gguf,
};
pub use encoded::Encoded;
pub use error::{FieldError, OpenError, OpenFault, TensorError, TokenizerError, WriteError};
pub use fingerprint::{FileSummary, fingerprint, summarize};
pub use finite::check_finite;
pub use gguf::write_gguf;
pub use hf::{PackedMatrices, open_config, write_hf_folder, write_packed_folder};
pub use merged::Merged;
pub use onnx::{
    CheckModel, OnnxFolder, OnnxOptions, OnnxPlan, OnnxPrecision, write_onnx_file, write_onnx_folder,
};
pub use open::{open, open_to_run};
pub use packed::{PackError, PackedLayout, PackedScheme, Runtime, runtime_limits};
pub use rearranged::{Rearranged, in_first_order, with_channels, with_channels_of};
pub use write::{WriteOptions, Written};
