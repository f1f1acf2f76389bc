//! The decoder on slices, by the kernels of `slmc-kernels`: what fused operations and adapters share.

pub(crate) mod block;
pub(crate) mod divergence;
pub(crate) mod inputs;
pub(crate) mod passes;
pub(crate) mod projection;
