//! The decoder in Burn: weights to modules and back, block by block.
#![deny(missing_docs)]
