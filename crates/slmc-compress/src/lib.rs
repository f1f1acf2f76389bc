//! Pure compression algorithms: what to remove and how to round.
#![deny(missing_docs)]
