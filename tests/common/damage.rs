//! Models with something wrong in one tensor.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use slmc_interop::{Encoded, WriteOptions, write_gguf};
use slmc_ir::{Format, ModelSpec, Role, SilentHost, SourceError, TensorKey, Weight, WeightSource};

/// What is wrong.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// All weights times this.
    Scale(f32),
    /// Two rows in each other's place.
    SwapRows(usize, usize),
    /// Rounded to so many bits in groups of 32, then stored as the others are.
    Bits(u32),
}

struct Damaged {
    inner: Arc<dyn WeightSource>,
    keys: Vec<TensorKey>,
    damage: Damage,
}

impl WeightSource for Damaged {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }
    fn keys(&self) -> &[TensorKey] {
        self.inner.keys()
    }
    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let weight = self.inner.read(key)?;
        if !self.keys.contains(&key) {
            return Ok(weight);
        }
        let n_columns = weight.n_columns();
        let mut numbers = floats(&weight);
        match self.damage {
            Damage::Scale(factor) => numbers.iter_mut().for_each(|x| *x *= factor),
            Damage::SwapRows(a, b) => {
                (0..n_columns).for_each(|c| numbers.swap(a * n_columns + c, b * n_columns + c))
            }
            Damage::Bits(bits) => numbers.chunks_mut(32).for_each(|group| round(group, bits)),
        }
        Weight::from_f32(weight.shape().to_vec(), &numbers)
            .map_err(|source| SourceError::Weight { key, source })
    }
    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        if self.keys.contains(&key) { Ok(Format::F32) } else { self.inner.format(key) }
    }
}

/// A tensor's numbers.
fn floats(weight: &Weight) -> Vec<f32> {
    slmc_blocks::decode_weight(weight).unwrap()
}

fn round(group: &mut [f32], bits: u32) {
    let largest = group.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let step = largest / ((1 << (bits - 1)) as f32 - 0.5);
    if step > 0.0 {
        group.iter_mut().for_each(|x| *x = ((*x / step - 0.5).round() + 0.5) * step);
    }
}

/// Writes a model in 8 bits with damaged tensors.
pub fn damaged_gguf(model: &Path, keys: &[TensorKey], damage: Damage, out: &Path) {
    let checkpoint = slmc_interop::open(model).unwrap();
    let spec = checkpoint.spec().clone();
    let inner = Arc::clone(&checkpoint.weights);
    let damaged: Arc<dyn WeightSource> = Arc::new(Damaged { inner, keys: keys.to_vec(), damage });
    let is_matrix = |key: &TensorKey| key.shape(&spec).len() == 2 && key.role != Role::FinalNorm;
    let plan: BTreeMap<TensorKey, Format> =
        TensorKey::all(&spec).into_iter().filter(is_matrix).map(|key| (key, Format::Q8_0)).collect();
    let encoded = Encoded::new(damaged, plan).unwrap();
    let written = checkpoint.with_weights(Arc::new(encoded));
    write_gguf(&written, out, &WriteOptions::default(), &SilentHost).unwrap();
}
