//! Where a checkpoint came from: enough to make it again.

use serde::{Deserialize, Serialize};

use crate::{ChannelOrder, ChannelScales};

/// A file that went in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What it was for: `teacher`, `data`.
    pub role: String,
    /// The path as it was given.
    pub path: String,
    /// Of the file, or of the sorted list of the folder's files and their hashes; lower-case hex.
    pub sha256: String,
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The stage: `distill`, `quantize`.
    pub stage: String,
    /// The version of slmc that did it.
    pub slmc_version: String,
    /// The stage's settings, defaults filled in.
    pub settings: serde_json::Value,
    /// The seed of everything random in it.
    pub seed: u64,
    /// Files that went in besides the checkpoint itself.
    pub inputs: Vec<Input>,
    /// What was done other than asked, in words.
    pub fallbacks: Vec<String>,
    /// The order that it brought channels into; absent when they are as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_order: Option<ChannelOrder>,
    /// What it multiplied the weights that read each channel by, before that; absent when they are as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_scales: Option<ChannelScales>,
}

/// The steps from the imported files to this checkpoint, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// What was done, in order.
    pub steps: Vec<Step>,
}
