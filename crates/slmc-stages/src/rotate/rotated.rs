//! A model's weights in rotated coordinates, computed when a tensor is read.

use std::sync::Arc;

use slmc_compress::Rotation;
use slmc_ir::{Format, ModelSpec, Part, Role, SourceError, TensorKey, Weight, WeightSource};

/// The same function: what writes the residual stream `x` writes `x Q`, and what reads it reads that. Norms are the same of both
/// once their gains are in the matrices behind them. A head's values `v` become `v R`, which attention mixes as it mixes `v`, and the output
/// projection reads them so.
pub struct Rotated {
    inner: Arc<dyn WeightSource>,
    spec: ModelSpec,
    keys: Vec<TensorKey>,
    stream: Option<Rotation>,
    heads: Option<Rotation>,
}

impl Rotated {
    /// `spec` is that of the rotated model: with a head of its own where the stream is rotated.
    pub fn new(inner: Arc<dyn WeightSource>, spec: ModelSpec, stream: bool, heads: bool, seed: u64) -> Self {
        Self {
            stream: stream.then(|| Rotation::new(spec.d_model, seed)),
            heads: heads.then(|| Rotation::new(spec.d_head, seed.wrapping_add(1))),
            keys: TensorKey::all(&spec),
            inner,
            spec,
        }
    }

    fn numbers(&self, key: TensorKey) -> Result<Vec<f32>, SourceError> {
        let weight = self.inner.read(key)?;
        slmc_blocks::decode_weight(&weight).map_err(|e| SourceError::Other { key, message: e.to_string() })
    }

    /// Matrices that read the stream take the norm's gains before them and the rotation.
    fn read_stream(&self, numbers: &mut [f32], norm: TensorKey) -> Result<(), SourceError> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let gains = self.numbers(norm)?;
        for row in numbers.chunks_exact_mut(gains.len()) {
            row.iter_mut().zip(&gains).for_each(|(w, gain)| *w *= gain);
        }
        stream.rotate_rows(numbers);
        Ok(())
    }
}

impl WeightSource for Rotated {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn keys(&self) -> &[TensorKey] {
        &self.keys
    }

    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let of_block = |role| TensorKey { block: key.block, role, part: Part::Weight };
        let tied = self.inner.spec().tied_head && key.role == Role::Head;
        let mut numbers = self.numbers(if tied { TensorKey::model(Role::Embedding) } else { key })?;
        let is_bias = key.part == Part::Bias;
        match key.role {
            Role::AttnNorm | Role::FfnNorm | Role::FinalNorm if self.stream.is_some() => numbers.fill(1.0),
            Role::Embedding => self.stream.iter().for_each(|q| q.rotate_rows(&mut numbers)),
            Role::Head => self.read_stream(&mut numbers, TensorKey::model(Role::FinalNorm))?,
            Role::Gate | Role::Up if !is_bias => self.read_stream(&mut numbers, of_block(Role::FfnNorm))?,
            Role::Query | Role::Key if !is_bias => {
                self.read_stream(&mut numbers, of_block(Role::AttnNorm))?;
            }
            Role::Value if is_bias => self.heads.iter().for_each(|r| r.rotate_rows(&mut numbers)),
            Role::Value => {
                self.read_stream(&mut numbers, of_block(Role::AttnNorm))?;
                self.heads.iter().for_each(|r| r.rotate_columns(&mut numbers, self.spec.d_model));
            }
            // A bias is a row of the stream.
            Role::AttnOutput | Role::Down if is_bias => {
                self.stream.iter().for_each(|q| q.rotate_rows(&mut numbers));
            }
            Role::AttnOutput | Role::Down => {
                if key.role == Role::AttnOutput {
                    self.heads.iter().for_each(|r| r.rotate_rows(&mut numbers));
                }
                let n_columns = numbers.len() / self.spec.d_model;
                self.stream.iter().for_each(|q| q.rotate_columns(&mut numbers, n_columns));
            }
            _ => {}
        }
        Weight::from_f32(key.shape(&self.spec), &numbers)
            .map_err(|source| SourceError::Weight { key, source })
    }

    fn format(&self, _key: TensorKey) -> Result<Format, SourceError> {
        Ok(Format::F32)
    }
}
