//! Packed weight layouts bit for bit, with scalar encode and decode.
//!
//! The layouts are ggml's (`ggml-common.h`); decoding gives the same f32 bits as its reference
//! `dequantize_row_*`, and encoding the same bytes as `quantize_row_*_ref`. Large inputs are spread over the
//! rayon pool in pieces of a fixed size, each piece on its own, so the result does not depend on the number of
//! threads.
//!
//! Rounding to nearest with the plain scale of the block ([`encode`], RTN) is the baseline to beat;
//! [`encode_weighted`] searches the scales for the least squared error. Solvers that choose levels themselves take a
//! block apart into [`Parts`], look for the weights that its scales allow in a [`Grid`], and [`pack`] what they chose.
//!
//! What this crate refuses: it chooses no format, and never looks beyond one block of one row.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod block;
mod codec;
mod error;
mod fit;
mod float;
mod halves;
mod iq4;
mod k_scales;
mod mxfp4;
mod nbits;
mod nf4;
mod parts;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q6_k;
mod q8;
mod quantized;
mod range;
mod steps;
mod widest;

pub use block::{BlockFormat, EncodeBlock};
pub use codec::{decode, decode_weight, encode, encode_weight, encode_weighted, first_non_finite, fit};
pub use error::BlockError;
pub use float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use halves::BlockHalves;
pub use iq4::{Iq4Nl, Iq4Xs};
pub use mxfp4::Mxfp4;
pub use nbits::{NBits, has_nbits};
pub use nf4::Nf4;
pub use parts::{Grid, MAX_BLOCK, MAX_GROUPS, Parts, PartsLayout, pack, unpack};
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4::{Q4_0, Q4_1};
pub use q4_k::{Q4K, Q5K};
pub use q5::{Q5_0, Q5_1};
pub use q6_k::Q6K;
pub use q8::Q8_0;
pub use quantized::{exact_format, from_quantized, to_quantized};
pub use widest::widest;
