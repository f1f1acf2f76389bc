//! Perplexity and its relatives, on anything that is a [`LanguageModel`](slmc_ir::LanguageModel).
//!
//! Logits of a whole text are never held: rows are scored as the model hands them over. Sums are f64 and in the
//! order of the text, so a figure depends on the model's logits alone.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod divergence;
mod error;
mod eval_text;
mod log_softmax;
mod perplexity;
pub mod stats;
mod windows;

pub use divergence::{Divergence, kl_divergence};
pub use error::EvalError;
pub use eval_text::EvalText;
pub use perplexity::{Chunk, Perplexity, perplexity};
pub use windows::{Protocol, Windowing};
