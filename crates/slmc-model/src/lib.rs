//! The decoder in Burn: weights to modules and back, block by block.
//!
//! One decoder for every family, described by [`slmc_ir::ModelSpec`]. Weight matrices are `[out, in]`, as
//! everywhere in slmc.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adamw;
mod by_hand;
mod composed;
mod decoder;
mod device;
mod evaluator;
mod forward;
#[cfg(feature = "flex")]
mod fused;
mod gradients;
mod load;
mod lora;
mod loss;
mod loss_composed;
mod rope;
mod slices;
#[cfg(all(test, feature = "flex"))]
mod test_support;

pub use adamw::{AdamW, AdamWHyper, Moment, MomentError};
pub use decoder::{Block, Decoder, Parameter, ParameterMut, Projection};
pub use device::{DeviceChoice, DeviceError};
pub use evaluator::Evaluator;
pub use forward::Captured;
pub use gradients::{Grads, gradients};
pub use load::{LoadError, read_matrix};
pub use lora::{AdapterAdamW, AdapterGrads, Frozen, RowLoss, Rows, fresh_adapter};
pub use loss::{DistillationLoss, distillation_loss, next_token_loss};
pub use slices::divergence::{LastHidden, divergences};
pub use slices::passes::{BlockPass, HeadPass, HeadSeen, Mixed, Seen};
pub use slmc_kernels::{Distillation, HalfUnits, Matrix, MatrixMut, Products, add_moments_half};
