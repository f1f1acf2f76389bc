//! A model with an adapter's change added to its matrices.

use std::sync::Arc;

use slmc_ir::{Adapter, Format, ModelSpec, SourceError, TensorKey, Weight, WeightSource};

/// `W + scale · B · A`, computed in f32 when a tensor is read; matrices without factors pass as they are. Holds no
/// weights but the adapter's.
pub struct Merged {
    inner: Arc<dyn WeightSource>,
    adapter: Adapter,
}

impl Merged {
    /// Adds the adapter to the source's matrices; packed ones are decoded first.
    ///
    /// # Errors
    /// When the adapter is another model's.
    pub fn new(inner: Arc<dyn WeightSource>, adapter: Adapter) -> Result<Self, slmc_ir::AdapterError> {
        adapter.check(inner.spec())?;
        Ok(Self { inner, adapter })
    }
}

impl WeightSource for Merged {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }
    fn keys(&self) -> &[TensorKey] {
        self.inner.keys()
    }
    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let weight = self.inner.read(key)?;
        let Some(factors) = self.adapter.factors.get(&key) else { return Ok(weight) };
        let other = |e: slmc_blocks::BlockError| SourceError::Other { key, message: e.to_string() };
        let mut numbers = slmc_blocks::decode_weight(&weight).map_err(other)?;
        let (rank, scale, d_in) = (self.adapter.rank, self.adapter.scale(), weight.n_columns());
        for (row, b) in numbers.chunks_exact_mut(d_in).zip(factors.b.chunks_exact(rank)) {
            for (&b, a) in b.iter().zip(factors.a.chunks_exact(d_in)) {
                let b = b * scale;
                row.iter_mut().zip(a).for_each(|(w, a)| *w += b * a);
            }
        }
        Weight::from_f32(weight.shape().to_vec(), &numbers)
            .map_err(|source| SourceError::Weight { key, source })
    }
    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        match self.adapter.factors.contains_key(&key) {
            true => Ok(Format::F32),
            false => self.inner.format(key),
        }
    }
}
