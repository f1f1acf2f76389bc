//! Weights to modules and back: any source, a seed, and a source in memory.

use std::collections::BTreeMap;

use burn::{
    module::Param,
    tensor::{Device, Tensor, TensorData},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use slmc_ir::{MemorySource, ModelSpec, Role, SourceError, SpecError, TensorKey, Weight, WeightSource};
use slmc_kernels::Products;

use crate::{
    decoder::{Block, Decoder, Projection},
    rope::RopeCache,
};

/// Standard deviation of fresh weights (GPT-2's, also Llama's `initializer_range`).
const FRESH_STANDARD_DEVIATION: f64 = 0.02;

/// Weights that make no decoder.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The spec describes no possible model.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A tensor could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A tensor's packed numbers could not be decoded.
    #[error("tensor `{key}`: {source}")]
    Decode {
        /// The tensor.
        key: TensorKey,
        /// What is wrong with them.
        source: slmc_blocks::BlockError,
    },
}

impl Decoder {
    /// Reads every tensor of the source, decoded to f32, onto the device. With autodiff on the device the
    /// parameters are tracked.
    pub fn load(source: &dyn WeightSource, device: &Device) -> Result<Self, LoadError> {
        let spec = source.spec();
        spec.validate()?;
        build(spec, device, &mut |key| numbers_of(source, key))
    }

    /// A model to train from nothing: normal weights of standard deviation 0.02, projections onto the
    /// residual stream scaled by `1 / sqrt(2 n_layers)` (GPT-2, section 2.3), gains 1, biases 0. The same
    /// seed gives the same bytes.
    pub fn fresh(spec: &ModelSpec, seed: u64, device: &Device) -> Self {
        let order: BTreeMap<TensorKey, u64> = TensorKey::all(spec).into_iter().zip(0..).collect();
        let residual_scale = 1.0 / (2.0 * spec.n_layers as f64).sqrt();
        let built = build::<std::convert::Infallible>(spec, device, &mut |key| {
            let shape = key.shape(spec);
            let n: usize = shape.iter().product();
            if shape.len() == 1 {
                return Ok(vec![if key.role.is_matrix() { 0.0 } else { 1.0 }; n]);
            }
            let is_residual = matches!(key.role, Role::AttnOutput | Role::Down);
            let scale = FRESH_STANDARD_DEVIATION * if is_residual { residual_scale } else { 1.0 };
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(order[&key]);
            Ok(normal_numbers(&mut random, n, scale))
        });
        match built {
            Ok(decoder) => decoder,
            Err(never) => match never {},
        }
    }

    /// Copies the weights, as f32, into a source.
    ///
    /// # Panics
    /// When the device cannot be read.
    pub fn to_source(&self) -> MemorySource {
        let weights = self.keys().into_iter().map(|key| {
            let parameter = self.parameter(key).expect("a decoder has every tensor of its spec");
            let values = read_back(parameter.flat());
            let weight = Weight::from_f32(key.shape(&self.spec), &values).expect("the shape is the spec's");
            (key, weight)
        });
        let weights = weights.collect();
        MemorySource::new(self.spec.clone(), weights).expect("every tensor has the spec's shape")
    }
}

/// A matrix of the source, decoded to f32, on the device.
pub fn read_matrix(
    source: &dyn WeightSource,
    key: TensorKey,
    device: &Device,
) -> Result<Tensor<2>, LoadError> {
    let (numbers, shape) = (numbers_of(source, key)?, key.shape(source.spec()));
    Ok(Tensor::from_data(TensorData::new(numbers, shape), device))
}

/// A tensor's numbers, decoded to f32, in row order.
pub(crate) fn numbers_of(source: &dyn WeightSource, key: TensorKey) -> Result<Vec<f32>, LoadError> {
    let weight = shaped(source, key)?;
    let values = slmc_blocks::decode_weight(&weight).map_err(|source| LoadError::Decode { key, source })?;
    match values.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(SourceError::NotFinite { key, index, value: values[index] }.into()),
        None => Ok(values),
    }
}

/// A tensor as it is stored, of the shape that the spec gives, all of it finite: for who decodes it a part at a time.
pub(crate) fn weight_of(source: &dyn WeightSource, key: TensorKey) -> Result<Weight, LoadError> {
    let weight = shaped(source, key)?;
    match slmc_blocks::first_non_finite(&weight) {
        Some((index, value)) => Err(SourceError::NotFinite { key, index, value }.into()),
        None => Ok(weight),
    }
}

fn shaped(source: &dyn WeightSource, key: TensorKey) -> Result<Weight, LoadError> {
    let weight = source.read(key)?;
    let expected = key.shape(source.spec());
    if weight.shape() == expected {
        return Ok(weight);
    }
    Err(SourceError::Shape { key, expected, found: weight.shape().to_vec() }.into())
}

/// The numbers of a tensor, from whatever device.
pub(crate) fn read_back<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.without_autodiff().into_data_as::<f32>();
    data.as_slice::<f32>().expect("converted to f32").to_vec()
}

/// Normal numbers by Box and Muller's method, in f64 and rounded once.
fn normal_numbers(random: &mut ChaCha8Rng, n: usize, standard_deviation: f64) -> Vec<f32> {
    let mut uniform = || (random.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64);
    let mut numbers = Vec::with_capacity(n + 1);
    while numbers.len() < n {
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt() * standard_deviation;
        let angle = std::f64::consts::TAU * uniform();
        numbers.push((radius * angle.cos()) as f32);
        numbers.push((radius * angle.sin()) as f32);
    }
    numbers.truncate(n);
    numbers
}

fn build<E>(
    spec: &ModelSpec,
    device: &Device,
    values: &mut dyn FnMut(TensorKey) -> Result<Vec<f32>, E>,
) -> Result<Decoder, E> {
    let mut maker = Maker { spec, device, values };
    let embedding = maker.matrix(TensorKey::model(Role::Embedding))?;
    let blocks = (0..spec.n_layers).map(|index| maker.block(index)).collect::<Result<_, E>>()?;
    let final_norm = maker.vector(TensorKey::model(Role::FinalNorm))?;
    let untied_head = match spec.tied_head {
        true => None,
        false => Some(maker.matrix(TensorKey::model(Role::Head))?),
    };
    Ok(Decoder {
        embedding,
        blocks,
        final_norm,
        untied_head,
        spec: spec.clone(),
        rope: RopeCache::default(),
        products: Products::default(),
    })
}

/// Makes parameters out of numbers that come key by key.
struct Maker<'a, E> {
    spec: &'a ModelSpec,
    device: &'a Device,
    values: &'a mut dyn FnMut(TensorKey) -> Result<Vec<f32>, E>,
}

impl<E> Maker<'_, E> {
    fn tensor<const D: usize>(&mut self, key: TensorKey) -> Result<Param<Tensor<D>>, E> {
        let data = TensorData::new((self.values)(key)?, key.shape(self.spec));
        Ok(Param::from_tensor(Tensor::from_data(data, self.device)))
    }

    fn matrix(&mut self, key: TensorKey) -> Result<Param<Tensor<2>>, E> {
        self.tensor(key)
    }

    fn vector(&mut self, key: TensorKey) -> Result<Param<Tensor<1>>, E> {
        self.tensor(key)
    }

    fn optional_norm(&mut self, key: TensorKey) -> Result<Option<Param<Tensor<1>>>, E> {
        if self.spec.qk_norm { self.vector(key).map(Some) } else { Ok(None) }
    }

    fn projection(&mut self, key: TensorKey) -> Result<Projection, E> {
        let weight = self.matrix(key)?;
        let bias = match self.spec.biases.has(key.role) {
            true => Some(self.vector(key.bias())?),
            false => None,
        };
        Ok(Projection { weight, bias })
    }

    fn block(&mut self, index: usize) -> Result<Block, E> {
        let key = |role| TensorKey::block(index, role);
        Ok(Block {
            attn_norm: self.vector(key(Role::AttnNorm))?,
            query: self.projection(key(Role::Query))?,
            key: self.projection(key(Role::Key))?,
            value: self.projection(key(Role::Value))?,
            query_norm: self.optional_norm(key(Role::QueryNorm))?,
            key_norm: self.optional_norm(key(Role::KeyNorm))?,
            attn_output: self.projection(key(Role::AttnOutput))?,
            ffn_norm: self.vector(key(Role::FfnNorm))?,
            gate: self.projection(key(Role::Gate))?,
            up: self.projection(key(Role::Up))?,
            down: self.projection(key(Role::Down))?,
        })
    }
}
