//! Low-rank adapters in files: PEFT's folders in and out, GGUF for llama.cpp out.

mod config;
mod gguf;
mod peft;
mod sidecar;

pub use config::roles_of_targets;
pub use gguf::write_adapter_gguf;
pub use peft::{open_adapter, open_adapter_for, write_adapter_folder};
pub use sidecar::AdapterAbout;
