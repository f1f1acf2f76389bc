//! Writes a checkpoint as an ONNX decoder with a cache, in the layout of onnxruntime-genai (`builders/base.py`).
//!
//! Inputs `input_ids`, `attention_mask`, `position_ids` and `past_key_values.N.key` / `.value`; outputs `logits` and
//! `present.N.key` / `.value`. By default attention, rotation, norms and packed products are onnxruntime's own operators
//! (`com.microsoft`); with [`OnnxOptions::plain`] there are only standard ones of opset 21. Packed levels and scales are
//! the checkpoint's own wherever the runtime has such blocks.

mod attention;
mod decoder;
mod embedding;
mod genai;
mod graph;
mod linear;
mod norm;
mod plain_attention;
mod plan;
mod read;
mod write;

pub use plan::{OnnxOptions, OnnxPlan, OnnxPrecision};
pub use read::OnnxFolder;
pub use write::{CheckModel, write_onnx_file, write_onnx_folder};

/// The configuration that onnxruntime-genai opens a folder by.
const GENAI_CONFIG: &str = "genai_config.json";
