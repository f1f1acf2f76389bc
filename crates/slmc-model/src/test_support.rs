//! A decoder and numbers for the tests of operations and their gradients.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use slmc_ir::{Activation, Biases, Family, ModelSpec, RopeScaling, TensorKey};

use crate::{Decoder, Parameter, load::read_back};

const TOLERANCE: f64 = 1e-5;

fn spec(everything: bool) -> ModelSpec {
    ModelSpec {
        family: Family::Qwen3,
        vocab_size: 97,
        context_len: 64,
        d_model: 60,
        n_layers: 1,
        n_heads: 8,
        n_kv_heads: 4,
        d_head: 8,
        d_ff: 172,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::None,
        activation: Activation::Silu,
        biases: Biases { qkv: everything, attn_output: everything, mlp: everything },
        qk_norm: everything,
        tied_head: false,
    }
}

/// Numbers between -scale and scale.
pub(crate) fn random<const D: usize>(shape: [usize; D], seed: u32, scale: f32, device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0) as f32 * scale
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A decoder whose every parameter is far from zero and from its neighbours, biases and gains too.
pub(crate) fn decoder(everything: bool, device: &Device) -> Decoder {
    let mut decoder = Decoder::fresh(&spec(everything), 3, device);
    for (seed, key) in (1..).zip(decoder.keys()) {
        match decoder.parameter_mut(key) {
            Some(crate::ParameterMut::Matrix(matrix)) => {
                let new = random(matrix.dims(), seed, 0.3, device).require_grad();
                *matrix = matrix.clone().map(|_| new);
            }
            Some(crate::ParameterMut::Vector(vector)) => {
                let new = (random(vector.dims(), seed, 0.5, device) + 0.8).detach().require_grad();
                *vector = vector.clone().map(|_| new);
            }
            None => {}
        }
    }
    decoder
}

#[track_caller]
pub(crate) fn assert_near<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (read_back(found), read_back(expected));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(&expected).map(|(a, b)| square(a - b)).sum::<f64>().sqrt();
    let norm = expected.iter().map(|&x| square(x)).sum::<f64>().sqrt();
    assert!(norm > 0.0 && error <= TOLERANCE * norm, "{what}: {error} of {norm}");
}

pub(crate) fn gradients_of(decoder: &Decoder, grads: &Gradients, keys: &[TensorKey]) -> Vec<Tensor<1>> {
    let gradient = |key: &TensorKey| match decoder.parameter(*key).expect("the decoder has it") {
        Parameter::Matrix(matrix) => {
            let gradient = matrix.val().grad(grads).unwrap_or_else(|| panic!("{key}"));
            let n = gradient.shape().num_elements();
            gradient.reshape([n])
        }
        Parameter::Vector(vector) => vector.val().grad(grads).unwrap_or_else(|| panic!("{key}")),
    };
    keys.iter().map(gradient).collect()
}
