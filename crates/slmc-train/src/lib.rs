//! Training and distillation: losses and one loop.
#![deny(missing_docs)]
