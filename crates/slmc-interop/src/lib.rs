//! The foreign world's edge: Hugging Face folders and GGUF files in and out.
#![deny(missing_docs)]
