//! Weights in other formats than they are stored in, encoded when they are read.

use std::{collections::BTreeMap, sync::Arc};

use slmc_ir::{Format, ModelSpec, SourceError, TensorKey, Weight, WeightSource};

use crate::finite::convert;

/// A source whose tensors are re-encoded on the way out, rounding to nearest (RTN). Holds no weights: each
/// [`WeightSource::read`] encodes anew, and only one tensor's bytes are in memory at a time.
pub struct Encoded {
    inner: Arc<dyn WeightSource>,
    plan: BTreeMap<TensorKey, Format>,
}

impl Encoded {
    /// `plan` says the format of each tensor that is to change; all others pass as they are.
    ///
    /// # Errors
    /// [`SourceError::Missing`] when the plan names a tensor that is not there, [`SourceError::Weight`] when its
    /// rows are not whole blocks of the format.
    pub fn new(inner: Arc<dyn WeightSource>, plan: BTreeMap<TensorKey, Format>) -> Result<Self, SourceError> {
        for (&key, &format) in &plan {
            if inner.format(key)? == format {
                continue;
            }
            let shape = key.shape(inner.spec());
            Weight::bytes_for(&shape, format).map_err(|source| SourceError::Weight { key, source })?;
        }
        Ok(Self { inner, plan })
    }
}

impl WeightSource for Encoded {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }
    fn keys(&self) -> &[TensorKey] {
        self.inner.keys()
    }
    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let weight = self.inner.read(key)?;
        match self.plan.get(&key) {
            Some(&format) if format != weight.format() => convert(key, &weight, format),
            _ => Ok(weight),
        }
    }
    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        self.plan.get(&key).map_or_else(|| self.inner.format(key), |format| Ok(*format))
    }
}
