//! Perplexity and its relatives, on anything that is a LanguageModel.
#![deny(missing_docs)]
