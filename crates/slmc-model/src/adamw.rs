//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).

use std::collections::BTreeMap;

use burn::{
    module::Param,
    tensor::{Tensor, TensorData},
};
use slmc_ir::TensorKey;

use crate::{
    decoder::{Decoder, ParameterMut},
    gradients::Grads,
    load::read_back,
};

/// What AdamW is told besides the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWHyper {
    /// Decay of the gradients' mean.
    pub beta1: f32,
    /// Decay of the squared gradients' mean.
    pub beta2: f32,
    /// Added to the root of the squares' mean.
    pub eps: f32,
    /// Part of a weight taken away at each step, times the learning rate; matrices only.
    pub weight_decay: f32,
}

impl Default for AdamWHyper {
    /// `0.9, 0.95, 1e-8, 0.1`: what Llama 2 was trained with (arXiv:2307.09288, section 2.1), with Adam's eps.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// One parameter's running means, as numbers: what a training checkpoint stores.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// The parameter.
    pub key: TensorKey,
    /// Mean of the gradients, in row order.
    pub first: Vec<f32>,
    /// Mean of the squared gradients, in row order.
    pub second: Vec<f32>,
}

/// Moments that do not belong to the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "optimizer state of `{key}` has {found} numbers where the tensor has {expected}: it belongs to another model"
)]
pub struct MomentError {
    /// The parameter.
    pub key: TensorKey,
    /// Weights of the tensor (0 when the model has none of that name).
    pub expected: usize,
    /// Numbers given.
    pub found: usize,
}

/// The optimizer's state: two f32 numbers a weight and the number of steps done.
#[derive(Clone, Debug, Default)]
pub struct AdamW {
    moments: BTreeMap<TensorKey, [Tensor<1>; 2]>,
    n_steps: u64,
}

impl AdamW {
    /// No steps done.
    pub fn new() -> Self {
        Self::default()
    }

    /// Steps done.
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Changes each parameter that has a gradient. Weights decay in matrices (the embedding among them), not
    /// in norms and biases.
    #[must_use]
    pub fn step(
        &mut self,
        mut decoder: Decoder,
        grads: Grads,
        learning_rate: f32,
        hyper: AdamWHyper,
    ) -> Decoder {
        self.n_steps += 1;
        for (key, gradient) in grads.by_key {
            match decoder.parameter_mut(key) {
                Some(ParameterMut::Matrix(matrix)) => {
                    let shape = matrix.dims();
                    self.update(key, matrix, gradient.reshape(shape), learning_rate, hyper);
                }
                Some(ParameterMut::Vector(vector)) => {
                    let hyper = AdamWHyper { weight_decay: 0.0, ..hyper };
                    self.update(key, vector, gradient, learning_rate, hyper);
                }
                None => {}
            }
        }
        decoder
    }

    fn update<const D: usize>(
        &mut self,
        key: TensorKey,
        parameter: &mut Param<Tensor<D>>,
        gradient: Tensor<D>,
        learning_rate: f32,
        hyper: AdamWHyper,
    ) {
        let shape = gradient.dims();
        let n = gradient.shape().num_elements();
        let [first, second] = self.moments.remove(&key).unwrap_or_else(|| {
            let zeros = Tensor::zeros([n], &gradient.device());
            [zeros.clone(), zeros]
        });
        let flat = gradient.reshape([n]);
        let first = first * hyper.beta1 + flat.clone() * (1.0 - hyper.beta1);
        let second = second * hyper.beta2 + flat.powi_scalar(2) * (1.0 - hyper.beta2);
        let exponent = i32::try_from(self.n_steps).unwrap_or(i32::MAX);
        let correction1 = 1.0 - hyper.beta1.powi(exponent);
        let correction2 = 1.0 - hyper.beta2.powi(exponent);
        let root = (second.clone() / correction2).sqrt() + hyper.eps;
        let change = (first.clone() / correction1 / root * learning_rate).reshape(shape);
        let keep = 1.0 - learning_rate * hyper.weight_decay;
        *parameter = parameter.clone().map(|old| {
            let new = old.without_autodiff() * keep - change;
            new.autodiff().require_grad()
        });
        self.moments.insert(key, [first, second]);
    }

    /// The state in numbers, in the order of the keys.
    pub fn moments(&self) -> Vec<Moment> {
        let export = |(&key, [first, second]): (&TensorKey, &[Tensor<1>; 2])| Moment {
            key,
            first: read_back(first.clone()),
            second: read_back(second.clone()),
        };
        self.moments.iter().map(export).collect()
    }

    /// The state as it was exported, bit for bit, on the decoder's device.
    pub fn restore(decoder: &Decoder, n_steps: u64, moments: Vec<Moment>) -> Result<Self, MomentError> {
        let device = decoder.device().inner();
        let mut restored = BTreeMap::new();
        for Moment { key, first, second } in moments {
            let has = decoder.parameter(key).is_some();
            let expected = if has { key.shape(&decoder.spec).iter().product() } else { 0 };
            if let Some(found) = [first.len(), second.len()].into_iter().find(|&n| n != expected || n == 0) {
                return Err(MomentError { key, expected, found });
            }
            let tensor = |numbers: Vec<f32>| Tensor::from_data(TensorData::new(numbers, [expected]), &device);
            restored.insert(key, [tensor(first), tensor(second)]);
        }
        Ok(Self { moments: restored, n_steps })
    }
}
