//! Stages of a recipe: each wires pure crates together.
#![deny(missing_docs)]
