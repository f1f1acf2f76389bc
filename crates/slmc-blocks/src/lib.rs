//! Packed weight layouts bit for bit, with scalar encode and decode.
#![deny(missing_docs)]
