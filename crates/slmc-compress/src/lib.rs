//! Pure compression algorithms: what to remove and how to make up for it.
//!
//! Statistics of activations come in, decisions and new weights go out; no IO, no model, no randomness. An
//! algorithm is *empty* / *observe* / *solve*: its statistics start empty, observe batches of activations, may be
//! merged, and are then solved together with the weights. Merging the same parts in the same order gives the same
//! bits, whatever the number of threads.
//!
//! A weight matrix is rows = output features, columns = input features; a batch of activations is
//! `[n_tokens, n_channels]`.
//!
//! To carve a smaller student out of a teacher: [`choose_layers`] drops whole blocks, prefiltered by
//! [`BlockInfluence`]; [`channel_scores`] and [`keep_top`] pick the MLP channels that stay; [`compensate`] refits
//! the down projection to the channels that are left. [`refit`] brings what a projection adds to the residual stream
//! nearer to a teacher's stream. [`Rotation`] changes coordinates and spreads what a few channels carry.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod channels;
mod compensate;
mod error;
mod gram;
mod influence;
mod layers;
mod least_squares;
pub mod quant;
mod refit;
mod rotation;
mod stats;

pub use channels::{ChannelStats, channel_scores, keep_top};
pub use compensate::{Compensated, compensate};
pub use error::{ChooseError, CompressError};
pub use gram::GramStats;
pub use influence::BlockInfluence;
pub use layers::{Candidates, LayerChoice, Trial, choose_layers};
pub use refit::{RefitStats, Refitted, refit};
pub use rotation::Rotation;
pub use stats::{LayerStats, MatRef};
