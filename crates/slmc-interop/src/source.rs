//! The weights of files: slices of the maps, one a tensor.

use std::collections::BTreeMap;

use slmc_ir::{Format, ModelSpec, SourceError, TensorKey, Weight, WeightSource};

use crate::{
    error::TensorError,
    rotary::{is_rotary, pairs_to_halves},
};

/// Tensors in mapped files. Reading one is a slice of the map, except where GGUF's row order must be undone.
pub(crate) struct MappedSource {
    spec: ModelSpec,
    keys: Vec<TensorKey>,
    tensors: BTreeMap<TensorKey, Weight>,
    /// Whether query and key lie in the file with their rows in pairs.
    rotary_pairs: bool,
}

impl MappedSource {
    /// Proves that every tensor of the spec is there with its shape; `name` is for messages.
    pub(crate) fn new(
        spec: ModelSpec,
        tensors: BTreeMap<TensorKey, Weight>,
        rotary_pairs: bool,
        name: impl Fn(TensorKey) -> String,
    ) -> Result<Self, TensorError> {
        let keys = TensorKey::all(&spec);
        for &key in &keys {
            let Some(weight) = tensors.get(&key) else {
                return Err(TensorError::Missing(name(key)));
            };
            let expected = key.shape(&spec);
            if weight.shape() != expected {
                let found = weight.shape().to_vec();
                return Err(TensorError::Shape { name: name(key), expected, found });
            }
        }
        let mut wanted = keys.clone();
        wanted.sort_unstable();
        if let Some(key) = tensors.keys().find(|key| wanted.binary_search(key).is_err()) {
            return Err(TensorError::Unknown(name(*key)));
        }
        Ok(Self { spec, keys, tensors, rotary_pairs })
    }

    /// The format of each tensor, in the order of keys.
    pub(crate) fn formats(&self) -> Vec<(TensorKey, Format)> {
        let stored = |&key: &TensorKey| Some((key, self.tensors.get(&key)?.format()));
        self.keys.iter().filter_map(stored).collect()
    }

    fn stored(&self, key: TensorKey) -> Result<&Weight, SourceError> {
        self.tensors.get(&key).ok_or(SourceError::Missing(key))
    }
}

impl WeightSource for MappedSource {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn keys(&self) -> &[TensorKey] {
        &self.keys
    }
    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let weight = self.stored(key)?;
        if self.rotary_pairs && is_rotary(key) {
            return pairs_to_halves(weight, self.spec.d_head)
                .map_err(|source| SourceError::Weight { key, source });
        }
        Ok(weight.clone())
    }
    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        self.stored(key).map(Weight::format)
    }
}
