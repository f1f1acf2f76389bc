//! What slmc says of an adapter and PEFT has no field for: a file of its own beside PEFT's.

use serde::{Deserialize, Serialize};
use slmc_ir::{Format, Lineage};

/// The file.
pub(super) const SIDECAR_FILE: &str = "slmc_adapter.json";

/// How an adapter was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterAbout {
    /// The base, as it was named: a path or a hub's name. Not part of what the adapter is.
    pub base: Option<String>,
    /// The format that the base's projections were rounded to while the adapter learned; absent when they were as
    /// stored.
    pub base_format: Option<Format>,
    /// The base's steps and the adapter's own.
    pub lineage: Lineage,
}
