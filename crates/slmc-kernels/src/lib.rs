//! Inner loops for the CPU: the only unsafe arithmetic.
#![deny(missing_docs)]
