//! The stages of a recipe: each wires pure crates together behind the one `Stage` contract.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod activations;
mod apart;
mod build;
mod calibration;
mod carve;
mod embedding;
mod estimate;
mod evaluate;
mod export;
mod fresh;
mod keeping;
mod kept;
mod lora;
mod onnx;
mod open;
mod quantize;
mod rotate;
mod sample;
mod training;

pub use activations::{Activations, activations};
pub use apart::check_apart;
pub use build::build;
pub use calibration::{Survey, same_vocabulary, survey, tokenizer_of};
pub use estimate::{Estimate, estimate};
pub use evaluate::{
    Exactness, KEPT, KeptBaseline, OnText, Subject, divergence_of, evaluate, evaluator_of, paired_on_text,
    perplexity_of,
};
pub use export::{Target, write_checkpoint};
pub use keeping::Keeping;
pub use lora::{MergeReport, Preview, held_out_batches, merge_adapter, preview};
pub use onnx::{Agreement, export_onnx};
pub use open::{artefact_of, fingerprint_of, open_model, open_to_run, outline_of};
pub use sample::{SampleSettings, WrittenText, sample_documents};

use std::path::PathBuf;

/// What stages need to know of the machine and the user's wishes.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Where tensors live: `flex`, `tch`, `cuda:0`, `wgpu`. When none is named, models learn on `flex` and are measured
    /// in the engine; when one is, both happen there.
    pub device: Option<String>,
    /// The folder that dataset manifests' paths are relative to.
    pub data_root: Option<PathBuf>,
}
