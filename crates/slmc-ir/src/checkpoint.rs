//! A model with its tokenizer and its history: what a stage takes and leaves.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Lineage, ModelSpec, TokenizerFiles, WeightSource};

/// Facts that slmc does not use but must not lose: foreign metadata, kept by its foreign name.
pub type Extras = BTreeMap<String, serde_json::Value>;

/// A model with tokenizer and lineage. Cloning shares the weights.
#[derive(Clone)]
pub struct Checkpoint {
    /// The weights, and the spec that describes them.
    pub weights: Arc<dyn WeightSource>,
    /// The tokenizer; absent in models made without one.
    pub tokenizer: Option<TokenizerFiles>,
    /// Defaults for sampling: the content of `generation_config.json`.
    pub generation: Option<serde_json::Value>,
    /// Foreign metadata carried along.
    pub extras: Extras,
    /// Where it came from and what was done to it.
    pub lineage: Lineage,
}

impl Checkpoint {
    /// The spec of the weights.
    pub fn spec(&self) -> &ModelSpec {
        self.weights.spec()
    }

    /// The same checkpoint with other weights.
    pub fn with_weights(&self, weights: Arc<dyn WeightSource>) -> Self {
        Self { weights, ..self.clone() }
    }
}
