//! AdamW over an adapter's factors; see [`crate::AdamW`] for a decoder's parameters.

use std::collections::BTreeMap;

use slmc_ir::{Adapter, Factors, TensorKey};
use slmc_kernels::AdamWStep;

use super::AdapterGrads;
use crate::{AdamWHyper, MomentError};

/// The optimizer's state: two f32 numbers for each number of the factors, and the number of steps done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterAdamW {
    /// Means of gradients, and of their squares.
    moments: BTreeMap<TensorKey, [Factors; 2]>,
    n_steps: u64,
}

impl AdapterAdamW {
    /// No steps done.
    pub fn new() -> Self {
        Self::default()
    }

    /// Steps done.
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Changes each factor that has a gradient, in its place. Both factors are matrices: both decay.
    pub fn step(&mut self, adapter: &mut Adapter, grads: &AdapterGrads, rate: f32, hyper: AdamWHyper) {
        self.n_steps += 1;
        let step = AdamWStep {
            learning_rate: rate,
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.eps,
            weight_decay: hyper.weight_decay,
            gradient_scale: grads.factor,
            n: self.n_steps,
        };
        for (&key, gradient) in &grads.by_key {
            let Some(factors) = adapter.factors.get_mut(&key) else { continue };
            let [first, second] = self.moments.entry(key).or_insert_with(|| {
                let zeros = Factors { a: vec![0.0; gradient.a.len()], b: vec![0.0; gradient.b.len()] };
                [zeros.clone(), zeros]
            });
            slmc_kernels::adamw(step, &mut factors.a, &gradient.a, &mut first.a, &mut second.a);
            slmc_kernels::adamw(step, &mut factors.b, &gradient.b, &mut first.b, &mut second.b);
        }
    }

    /// The running means of a matrix's factors: of gradients, and of their squares.
    pub fn moments(&self, key: TensorKey) -> Option<&[Factors; 2]> {
        self.moments.get(&key)
    }

    /// The state as it was saved, bit for bit.
    ///
    /// # Errors
    /// When the means are not as many as the factors' numbers.
    pub fn restore(
        adapter: &Adapter,
        n_steps: u64,
        moments: BTreeMap<TensorKey, [Factors; 2]>,
    ) -> Result<Self, MomentError> {
        for (&key, means) in &moments {
            let sizes =
                adapter.factors.get(&key).map_or([0; 2], |factors| [factors.a.len(), factors.b.len()]);
            for mean in means {
                for (found, expected) in [mean.a.len(), mean.b.len()].into_iter().zip(sizes) {
                    if found != expected || expected == 0 {
                        return Err(MomentError { key, expected, found });
                    }
                }
            }
        }
        Ok(Self { moments, n_steps })
    }
}
