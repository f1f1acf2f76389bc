//! Runs checkpoints on the CPU, without Burn: what evaluates, generates and chats.
//!
//! [`Engine`] holds a model's weights as the kernels read them, [`Session`] a context and its cache. Everything that
//! is computed is the same, bit for bit, whatever the number of threads.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod attention;
mod cache;
mod crowd;
mod engine;
mod error;
mod generate;
mod input;
mod prompt;
mod sampling;
mod session;
mod share;
mod state;
mod stops;
mod weights;

pub use cache::KvType;
pub use crowd::Crowd;
pub use engine::{Engine, EngineOptions, Reading};
pub use error::EngineError;
pub use generate::{Generated, Request, StopReason, generate};
pub use prompt::{chat_prompt, stop_tokens, text_prompt};
pub use sampling::{Distribution, Sampler, Sampling};
pub use session::{BATCH_ROWS, Session};
pub use slmc_kernels::packed::{Precision, Sweep, byte_products, instruction_set};
