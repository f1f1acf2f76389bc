//! Options of `slmc quantize`.

use std::path::PathBuf;

use clap::ArgGroup;

use super::parse_size;

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("goal").args(["format", "target_size", "target_bpw"]).required(true))]
pub struct QuantizeArgs {
    /// The model
    pub model: String,
    /// How levels are chosen. rtn: to the nearest, without calibration. awq: the same, after channels that carry much on
    /// a calibration text were made larger. gptq: errors are made up for by the weights not rounded yet. auto: these and what
    /// they make together are tried and measured on text that is kept aside, and the best is taken
    #[arg(long, default_value = "rtn", value_parser = ["rtn", "awq", "gptq", "auto"], value_name = "M")]
    pub method: String,
    /// Format of the projections: q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl mxfp4 q2_k q3_k q4_k q5_k q6_k iq4_xs (f16 bf16 f32); or a scheme
    /// of whole levels, w4g128 (4 bits, a scale for 128 columns) or w4g128-asym (with zero points)
    #[arg(long, value_name = "F")]
    pub format: Option<String>,
    /// The best mixture of formats in a file of at most this size: 92MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub target_size: Option<u64>,
    /// The best mixture of formats in at most so many stored bits a weight: 4.5
    #[arg(long, value_name = "BITS")]
    pub target_bpw: Option<f64>,
    /// Format of the embedding and of an untied head beside --format; q8_0 when absent
    #[arg(long, value_name = "F")]
    pub embedding_format: Option<String>,
    /// Of --method auto, the time that it may take; it calibrates on as much text as that allows
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Text to calibrate on: text, JSONL, a folder of texts or a dataset manifest; written by the model itself when absent
    #[arg(long, value_name = "D")]
    pub calibration: Option<String>,
    /// Tokens of --calibration on which the scales learn from the model itself once the levels are chosen, while formats
    /// and size stay; none when absent
    #[arg(long, value_name = "N")]
    pub tune_tokens: Option<u64>,
    /// Of a folder, the layout of the packed matrices: gptq gptq_v2 awq compressed-tensors; gptq when absent
    #[arg(long, value_name = "L")]
    pub layout: Option<String>,
    /// A .gguf file; with a scheme, a Hugging Face folder as well
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Go on with unfinished work
    #[arg(long)]
    pub resume: bool,
    /// Throw unfinished work away and start again
    #[arg(long, conflicts_with = "resume")]
    pub fresh: bool,
    /// Any other setting of the stage: n_sequences=64, seq_len=256, damping=0.02
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}
