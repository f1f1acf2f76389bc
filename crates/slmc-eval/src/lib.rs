//! Perplexity and its relatives, on anything that is a [`LanguageModel`](slmc_ir::LanguageModel).
//!
//! Logits of a whole text are never held: rows are scored as the model hands them over. Sums are f64 and in the
//! order of the text, so a figure depends on the model's logits alone.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod baseline;
mod divergence;
mod error;
mod eval_text;
mod journal;
mod log_softmax;
mod paired;
mod perplexity;
pub mod stats;
pub mod tasks;
mod windows;

pub use baseline::{Baseline, BaselineError};
pub use divergence::{Divergence, kl_divergence};
pub use error::EvalError;
pub use eval_text::EvalText;
pub use journal::{Journal, key_of};
pub use paired::{Paired, PairedFigures, compare_pair, compare_with_baseline};
pub use perplexity::{Chunk, Perplexity, PositionStep, perplexity};
pub use windows::{Protocol, Windowing};
