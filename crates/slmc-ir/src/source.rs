//! Where weights come from: lazily, one tensor at a time.

use std::collections::BTreeMap;

use crate::{Format, ModelSpec, TensorKey, Weight, WeightError};

/// A Hugging Face folder, a GGUF, a trained module: anything that can hand over a tensor by its key.
pub trait WeightSource: Send + Sync {
    /// The model these weights belong to.
    fn spec(&self) -> &ModelSpec;
    /// The tensors that are there, in the order of computation.
    fn keys(&self) -> &[TensorKey];
    /// Reads one tensor; its shape is `key.shape(self.spec())`.
    fn read(&self, key: TensorKey) -> Result<Weight, SourceError>;
    /// The format that [`WeightSource::read`] will hand over. A source whose reading costs work should say it
    /// without doing that work: writers need it for every tensor before the first byte.
    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        self.read(key).map(|weight| weight.format())
    }
}

/// A tensor that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source has no such tensor.
    #[error("there is no tensor `{0}`")]
    Missing(TensorKey),
    /// The tensor's shape is not what the spec says.
    #[error("tensor `{key}` has shape {found:?} where the model's dimensions call for {expected:?}")]
    Shape {
        /// The tensor.
        key: TensorKey,
        /// Shape by the spec.
        expected: Vec<usize>,
        /// Shape in the source.
        found: Vec<usize>,
    },
    /// Its bytes are not what they claim to be.
    #[error("tensor `{key}`: {source}")]
    Weight {
        /// The tensor.
        key: TensorKey,
        /// What is wrong with it.
        source: WeightError,
    },
    /// It holds a number that is not finite.
    #[error("tensor `{key}` holds {value} at weight {index}: the file is damaged or training diverged")]
    NotFinite {
        /// The tensor.
        key: TensorKey,
        /// Its first bad weight, counted from 0 in row order.
        index: usize,
        /// The number found there.
        value: f32,
    },
    /// Anything else, in the source's own words.
    #[error("tensor `{key}`: {message}")]
    Other {
        /// The tensor.
        key: TensorKey,
        /// What happened.
        message: String,
    },
}

/// Weights that are all in memory: tiny models, trained modules, tests.
pub struct MemorySource {
    spec: ModelSpec,
    keys: Vec<TensorKey>,
    weights: BTreeMap<TensorKey, Weight>,
}

impl MemorySource {
    /// Takes every tensor of the spec; each must be there with the right shape.
    pub fn new(spec: ModelSpec, weights: BTreeMap<TensorKey, Weight>) -> Result<Self, SourceError> {
        let keys = TensorKey::all(&spec);
        for &key in &keys {
            let weight = weights.get(&key).ok_or(SourceError::Missing(key))?;
            let expected = key.shape(&spec);
            if weight.shape() != expected {
                return Err(SourceError::Shape { key, expected, found: weight.shape().to_vec() });
            }
        }
        Ok(Self { spec, keys, weights })
    }
}

impl WeightSource for MemorySource {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn keys(&self) -> &[TensorKey] {
        &self.keys
    }
    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        self.weights.get(&key).cloned().ok_or(SourceError::Missing(key))
    }
}
