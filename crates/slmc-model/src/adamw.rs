//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).

use std::collections::BTreeMap;

use burn::{
    module::Param,
    tensor::{Device, Tensor, TensorData},
};
use slmc_ir::TensorKey;
use slmc_kernels::AdamWStep;

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
        let step = AdamWStep {
            learning_rate,
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.eps,
            weight_decay: hyper.weight_decay,
            gradient_scale: grads.factor,
            n: self.n_steps,
        };
        for (key, gradient) in grads.by_key {
            match decoder.parameter_mut(key) {
                Some(ParameterMut::Matrix(matrix)) => self.update(key, matrix, gradient, step),
                Some(ParameterMut::Vector(vector)) => {
                    self.update(key, vector, gradient, AdamWStep { weight_decay: 0.0, ..step });
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
        gradient: Tensor<1>,
        step: AdamWStep,
    ) {
        let device = gradient.device();
        let step_device = step_device(&device);
        let moments = self.moments.remove(&key).unwrap_or_else(|| {
            let zeros = || Tensor::zeros(gradient.dims(), &step_device);
            [zeros(), zeros()]
        });
        // The parameter is moved out, not cloned: what nothing else holds can be changed in its place.
        let placeholder = Param::initialized(parameter.id, Tensor::zeros([1; D], &device));
        let owned = std::mem::replace(parameter, placeholder);
        let mut kept = None;
        *parameter = owned.map(|weights| {
            let weights = moved(weights.without_autodiff(), &step_device);
            let (weights, moments) = change(step, weights, moved(gradient, &step_device), moments);
            kept = Some(moments);
            moved(weights, &device).autodiff().require_grad()
        });
        if let Some(moments) = kept {
            self.moments.insert(key, moments);
        }
    }

    /// The parameters that have been changed, in order.
    pub fn keys(&self) -> impl Iterator<Item = TensorKey> + '_ {
        self.moments.keys().copied()
    }

    /// A parameter's state in numbers, copied: a caller that stores them asks for one at a time.
    pub fn moment(&self, key: TensorKey) -> Option<Moment> {
        let [first, second] = self.moments.get(&key)?;
        Some(Moment { key, first: read_back(first.clone()), second: read_back(second.clone()) })
    }

    /// The state as it was exported, bit for bit, on the decoder's device.
    pub fn restore(
        decoder: &Decoder,
        n_steps: u64,
        moments: impl IntoIterator<Item = Moment>,
    ) -> Result<Self, MomentError> {
        let device = step_device(&decoder.device().inner());
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

/// Where moments live and weights are changed: on flex for a device that computes in host memory, too. Two copies and
/// the fused step cost less than fourteen passes, one for each operation of the formula.
fn step_device(device: &Device) -> Device {
    #[cfg(all(feature = "flex", feature = "tch"))]
    if crate::DeviceChoice::Tch.open().is_ok_and(|host| host == *device) {
        return Device::flex();
    }
    device.clone()
}

fn moved<const D: usize>(tensor: Tensor<D>, device: &Device) -> Tensor<D> {
    if tensor.device() == *device { tensor } else { tensor.to_device(device) }
}

/// New weights and moments.
fn change<const D: usize>(
    step: AdamWStep,
    weights: Tensor<D>,
    gradient: Tensor<1>,
    moments: [Tensor<1>; 2],
) -> (Tensor<D>, [Tensor<1>; 2]) {
    #[cfg(feature = "flex")]
    let (weights, moments) = match crate::fused::adamw(step, weights, &gradient, moments) {
        Ok(changed) => return changed,
        Err(unchanged) => unchanged,
    };
    let shape = weights.dims();
    let [first, second] = moments;
    let scale = step.gradient_scale;
    let first = first * step.beta1 + gradient.clone() * ((1.0 - step.beta1) * scale);
    let second = second * step.beta2 + gradient.powi_scalar(2) * ((1.0 - step.beta2) * scale * scale);
    let n = i32::try_from(step.n).unwrap_or(i32::MAX);
    let correction1 = 1.0 - f64::from(step.beta1).powi(n);
    let correction2 = 1.0 - f64::from(step.beta2).powi(n);
    let root = second.clone().sqrt() / correction2.sqrt() + step.eps;
    let rate = f64::from(step.learning_rate) / correction1;
    let moved = (first.clone() / root * rate).reshape(shape);
    (weights * (1.0 - step.learning_rate * step.weight_decay) - moved, [first, second])
}
