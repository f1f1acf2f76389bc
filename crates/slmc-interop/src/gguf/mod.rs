//! GGUF files.

mod kept;
mod metadata;
mod read;
mod rope;
mod spec_read;
mod typed;
mod write;

pub(crate) use read::open_gguf;
pub use write::write_gguf;

/// Entry of [`slmc_ir::Extras`] with what a GGUF says and slmc does not use.
pub(crate) const EXTRA: &str = "gguf";

/// Family of the model where the architecture's name leaves it open.
pub(crate) const FAMILY_KEY: &str = "slmc.family";
/// Lineage, as JSON.
pub(crate) const LINEAGE_KEY: &str = "slmc.lineage";
const ARCHITECTURE_KEY: &str = "general.architecture";
const FILE_TYPE_KEY: &str = "general.file_type";
const NAME_KEY: &str = "general.name";

/// Llama 3's smoothed factors, the one tensor that is no weight.
const ROPE_FREQS: &str = "rope_freqs.weight";
