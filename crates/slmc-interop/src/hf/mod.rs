//! Hugging Face folders: `config.json`, safetensors, `tokenizer.json`.

mod config_read;
mod config_write;
pub(crate) mod fields;
mod read;
mod shards;
mod sidecar;
mod tokenizer_read;
mod tokenizer_write;
mod weights;
mod write;

pub use read::open_config;
pub(crate) use read::{CONFIG_FILE, open_folder};
pub(crate) use tokenizer_read::read_tokenizer;
pub(crate) use tokenizer_write::tokenizer_configs;
pub use write::{PackedMatrices, write_hf_folder, write_packed_folder};

/// Entries of [`slmc_ir::Extras`] that have files of their own in a folder.
pub(crate) const CONFIG_EXTRA: &str = "config.json";
pub(crate) const TOKENIZER_CONFIG_EXTRA: &str = "tokenizer_config.json";
