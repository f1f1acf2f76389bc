//! Weights in other formats than they are stored in, encoded when they are read.

use std::{collections::BTreeMap, sync::Arc};

use slmc_blocks::{BlockError, encode_weight, fit_weight};
use slmc_ir::{Format, ModelSpec, SourceError, TensorKey, Weight, WeightSource};

use crate::finite::fault;

/// A source whose tensors are re-encoded on the way out. Holds no weights: each [`WeightSource::read`] encodes anew, and only one
/// tensor's bytes are in memory at a time.
pub struct Encoded {
    inner: Arc<dyn WeightSource>,
    plan: BTreeMap<TensorKey, Format>,
    encode: fn(&Weight, Format) -> Result<Weight, BlockError>,
}

impl Encoded {
    /// Rounds to nearest (RTN), each block with its plain scale. `plan` says the format of each tensor that is to change; all others pass as they are.
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
        Ok(Self { inner, plan, encode: encode_weight })
    }

    /// As [`Encoded::new`], but scales are searched for the least squared error.
    ///
    /// # Errors
    /// As [`Encoded::new`].
    pub fn fitted(
        inner: Arc<dyn WeightSource>,
        plan: BTreeMap<TensorKey, Format>,
    ) -> Result<Self, SourceError> {
        Ok(Self { encode: fit_weight, ..Self::new(inner, plan)? })
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
            Some(&format) if format != weight.format() => {
                (self.encode)(&weight, format).map_err(|error| fault(key, error))
            }
            _ => Ok(weight),
        }
    }
    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        self.plan.get(&key).map_or_else(|| self.inner.format(key), |format| Ok(*format))
    }
}
