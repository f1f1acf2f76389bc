//! The model as data: what a checkpoint is, without saying how it is stored or computed.
//!
//! No IO, no Burn, no foreign tensor names. A weight matrix is rows = output features, columns = input
//! features; rotary weights are in the half-split ("rotate half") row order of Hugging Face.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapter;
mod channels;
mod checkpoint;
mod format;
mod host;
mod key;
mod language_model;
mod lineage;
mod order;
mod outline;
mod quantized;
mod scales;
mod source;
mod spec;
mod tokenizer;
mod weight;

pub use adapter::{Adapter, AdapterError, Factors};
pub use channels::Channels;
pub use checkpoint::{Checkpoint, Extras};
pub use format::{Format, UnknownFormat};
pub use host::{Host, SilentHost};
pub use key::{Part, Role, TensorKey};
pub use language_model::{ForwardError, LanguageModel, TokenId};
pub use lineage::{Input, Lineage, Step};
pub use order::{BlockOrder, ChannelOrder, OrderError, Reordering};
pub use outline::Outline;
pub use quantized::{Quantized, QuantizedError, QuantizedParts};
pub use scales::{BlockScales, BlockSteps, ChannelScales, ScaleError, ScaleSteps};
pub use source::{MemorySource, SourceError, WeightSource};
pub use spec::{Activation, Biases, Family, ModelSpec, RopeScaling, SpecError};
pub use tokenizer::{SpecialTokens, TokenizerFiles};
pub use weight::{Weight, WeightError};
