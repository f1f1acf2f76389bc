//! File codecs: safetensors and GGUF, bytes to typed headers and back.
#![deny(missing_docs)]
