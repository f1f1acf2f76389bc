//! Tiny models of every kind, and a decoder in f64 written from the papers' formulas: nothing of it is the engine's.
#![allow(dead_code)] // each test file uses its own part of this one

#[path = "../../../slmc-interop/tests/common/mod.rs"]
pub mod tiny;

use std::{collections::BTreeMap, sync::Arc};

use slmc_ir::{Checkpoint, Format, MemorySource, ModelSpec, Role, TensorKey, TokenId, Weight};

/// Numbers between -1 and 1 from a counter: the same in every run.
pub fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}

/// A checkpoint whose activations stay near 1: matrices by their number of columns, gains around 1. Matrices are
/// stored in `format`.
pub fn checkpoint(spec: &ModelSpec, seed: u64, format: Format) -> Checkpoint {
    let mut number = numbers(seed);
    let weight = |key: TensorKey| {
        let shape = key.shape(spec);
        let n: usize = shape.iter().product();
        let is_matrix = shape.len() == 2;
        let columns = shape.last().copied().unwrap_or(1) as f32;
        let make = |x: f32| match (is_matrix, key.role.is_matrix()) {
            (true, _) if key.role == Role::Embedding => x,
            (true, _) => x * 2.5 / columns.sqrt(),
            (false, true) => x * 0.5,
            (false, false) => 1.0 + x * 0.5,
        };
        let values: Vec<f32> = (0..n).map(|_| make(number())).collect();
        let weight = Weight::from_f32(shape, &values).unwrap();
        (key, if is_matrix { slmc_blocks::encode_weight(&weight, format).unwrap() } else { weight })
    };
    let weights: BTreeMap<_, _> = TensorKey::all(spec).into_iter().map(weight).collect();
    let source = MemorySource::new(spec.clone(), weights).unwrap();
    let any = tiny::checkpoint(tiny::spec(spec.family), None);
    any.with_weights(Arc::new(source))
}

/// Tokens spread over the vocabulary.
pub fn tokens(spec: &ModelSpec, n: usize) -> Vec<TokenId> {
    (0..n).map(|i| ((i * 7919 + i * i * 31 + 5) % spec.vocab_size) as TokenId).collect()
}

/// What the reference rounds, to see what that costs.
#[derive(Clone, Copy, Default)]
pub struct Rounding {
    /// Inputs of products become 8-bit integers, 32 to a scale.
    pub int8: bool,
    /// Keys and values become f16.
    pub f16_cache: bool,
}

/// The decoder in f64.
pub struct Reference {
    spec: ModelSpec,
    tensors: BTreeMap<TensorKey, Vec<f64>>,
    rounding: Rounding,
}

impl Reference {
    pub fn new(checkpoint: &Checkpoint, rounding: Rounding) -> Self {
        let read = |&key: &TensorKey| {
            let values = slmc_blocks::decode_weight(&checkpoint.weights.read(key).unwrap()).unwrap();
            (key, values.into_iter().map(f64::from).collect())
        };
        let tensors = checkpoint.weights.keys().iter().map(read).collect();
        Self { spec: checkpoint.spec().clone(), tensors, rounding }
    }

    /// Logits of every position.
    pub fn logits(&self, tokens: &[TokenId]) -> Vec<Vec<f64>> {
        let spec = &self.spec;
        let embedding = &self.tensors[&TensorKey::model(Role::Embedding)];
        let d = spec.d_model;
        let mut x: Vec<Vec<f64>> =
            tokens.iter().map(|&t| embedding[t as usize * d..(t as usize + 1) * d].to_vec()).collect();
        for block in 0..spec.n_layers {
            let inputs: Vec<_> = x.iter().map(|x| self.norm(x, block, Role::AttnNorm)).collect();
            for (x, mix) in x.iter_mut().zip(self.attention(&inputs, block)) {
                add(x, &self.project(&mix, block, Role::AttnOutput));
            }
            for x in &mut x {
                let input = self.norm(x, block, Role::FfnNorm);
                let gate = self.project(&input, block, Role::Gate);
                let up = self.project(&input, block, Role::Up);
                let product: Vec<f64> =
                    gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(x, &self.project(&product, block, Role::Down));
            }
        }
        let head = TensorKey::model(if spec.tied_head { Role::Embedding } else { Role::Head });
        let gain = &self.tensors[&TensorKey::model(Role::FinalNorm)];
        x.iter().map(|x| self.multiply(&rms_norm(x, gain, spec.norm_eps), &self.tensors[&head])).collect()
    }

    fn norm(&self, x: &[f64], block: usize, role: Role) -> Vec<f64> {
        rms_norm(x, &self.tensors[&TensorKey::block(block, role)], self.spec.norm_eps)
    }

    fn multiply(&self, x: &[f64], matrix: &[f64]) -> Vec<f64> {
        let mut x = x.to_vec();
        if self.rounding.int8 {
            for block in x.chunks_mut(32) {
                let scale = block.iter().fold(0.0_f64, |m, x| m.max(x.abs())) / 127.0;
                if scale > 0.0 {
                    block.iter_mut().for_each(|x| *x = (*x / scale).round() * scale);
                }
            }
        }
        matrix.chunks_exact(x.len()).map(|row| dot(row, &x)).collect()
    }

    fn project(&self, x: &[f64], block: usize, role: Role) -> Vec<f64> {
        let key = TensorKey::block(block, role);
        let mut out = self.multiply(x, &self.tensors[&key]);
        if self.spec.biases.has(role) {
            add(&mut out, &self.tensors[&key.bias()]);
        }
        out
    }

    /// Heads of a projection at a position: normed where the model does, and rotated.
    fn heads(&self, x: &[f64], position: usize, block: usize, role: Role, norm: Role) -> Vec<Vec<f64>> {
        let frequencies = self.spec.rope_frequencies();
        let half = frequencies.len();
        let head = |head: &[f64]| {
            let head = match self.spec.qk_norm {
                true => self.norm(head, block, norm),
                false => head.to_vec(),
            };
            let mut turned = head.clone();
            for (i, frequency) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                turned[i] = head[i] * cos - head[i + half] * sin;
                turned[i + half] = head[i + half] * cos + head[i] * sin;
            }
            turned
        };
        self.project(x, block, role).chunks_exact(self.spec.d_head).map(head).collect()
    }

    fn attention(&self, inputs: &[Vec<f64>], block: usize) -> Vec<Vec<f64>> {
        let spec = &self.spec;
        let cached = |x: f64| match self.rounding.f16_cache {
            true => f64::from(slmc_blocks::f16_to_f32(slmc_blocks::f32_to_f16(x as f32))),
            false => x,
        };
        let (mut keys, mut values, mut mixes) = (Vec::new(), Vec::new(), Vec::new());
        for (position, input) in inputs.iter().enumerate() {
            let mut key = self.heads(input, position, block, Role::Key, Role::KeyNorm);
            key.iter_mut().flatten().for_each(|x| *x = cached(*x));
            keys.push(key);
            let value = self.project(input, block, Role::Value);
            values.push(value.into_iter().map(cached).collect::<Vec<f64>>());
            let mut mix = Vec::new();
            let queries = self.heads(input, position, block, Role::Query, Role::QueryNorm);
            for (h, query) in queries.iter().enumerate() {
                let kv = h / (spec.n_heads / spec.n_kv_heads);
                let scores: Vec<f64> =
                    keys.iter().map(|key| dot(query, &key[kv]) / (spec.d_head as f64).sqrt()).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for c in 0..spec.d_head {
                    let column = values.iter().map(|v| v[kv * spec.d_head + c]);
                    mix.push(column.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / total);
                }
            }
            mixes.push(mix);
        }
        mixes
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn rms_norm(x: &[f64], gain: &[f64], eps: f32) -> Vec<f64> {
    let root = (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().zip(gain).map(|(x, g)| x / root * g).collect()
}

/// Largest difference, relative to the largest number expected.
pub fn worst(found: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().flatten().fold(1e-30_f64, |m, x| m.max(x.abs()));
    let differences = found.iter().flatten().zip(expected.iter().flatten());
    differences.fold(0.0_f64, |m, (&a, b)| m.max((f64::from(a) - b).abs())) / largest
}

/// Root of the mean square difference, relative to the numbers' own.
pub fn distance(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = || found.iter().flatten().zip(expected.iter().flatten());
    let squares: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
    (squares / pairs().map(|(_, b)| b * b).sum::<f64>()).sqrt()
}
