//! Low-rank adapters on a frozen decoder (LoRA, arXiv:2106.09685; with packed weights QLoRA, arXiv:2305.14314).
//!
//! The frozen matrices stay as they are stored, packed or f16, and are decoded one at a time, forwards and backwards:
//! there is no gradient of them and no optimizer state for them. Everything runs on slices, by the kernels of
//! `slmc-kernels`, whatever device Burn has.

mod frozen;
mod loss;
mod optimizer;
mod pass;

use std::collections::BTreeMap;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use slmc_ir::{Adapter, Factors, ModelSpec, Role, TensorKey, TokenId};

pub use frozen::Frozen;
pub use optimizer::AdapterAdamW;
pub use pass::RowLoss;

/// Sequences to learn from, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Tokens that go in, `[batch, seq]`.
    pub inputs: &'a [TokenId],
    /// The token after each of them.
    pub targets: &'a [TokenId],
    /// Whether each target counts; `None` where all do.
    pub mask: Option<&'a [bool]>,
    /// Where in its row each position's document begins; `None` where rows are one document.
    pub starts: Option<&'a [u32]>,
    /// Tokens of a row.
    pub seq: usize,
}

/// The gradients of an adapter's factors, by the matrix that they stand beside.
#[derive(Clone, Debug, Default)]
pub struct AdapterGrads {
    by_key: BTreeMap<TensorKey, Factors>,
    /// What the gradients are still to be multiplied by.
    factor: f32,
}

impl AdapterGrads {
    /// The gradients of a matrix's factors, multiplied out.
    pub fn get(&self, key: TensorKey) -> Option<Factors> {
        let scaled = |x: &[f32]| x.iter().map(|x| x * self.factor).collect();
        self.by_key.get(&key).map(|found| Factors { a: scaled(&found.a), b: scaled(&found.b) })
    }

    /// Adds `share` of another micro-batch's gradients.
    pub fn accumulate(&mut self, mut other: Self, share: f32) {
        if self.by_key.is_empty() {
            *self = Self { factor: other.factor * share, ..other };
            return;
        }
        for (to, factor) in [(&mut *self, 1.0), (&mut other, share)] {
            let factor = to.factor * factor;
            to.factor = 1.0;
            if factor != 1.0 {
                to.all_mut().for_each(|x| slmc_kernels::scale(x, factor));
            }
        }
        for (key, from) in other.by_key {
            let to = self
                .by_key
                .entry(key)
                .or_insert_with(|| Factors { a: vec![0.0; from.a.len()], b: vec![0.0; from.b.len()] });
            slmc_kernels::add_assign(&mut to.a, &from.a);
            slmc_kernels::add_assign(&mut to.b, &from.b);
        }
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.by_key.values_mut().flat_map(|factors| [&mut factors.a, &mut factors.b])
    }

    /// Euclidean norm over all factors.
    pub fn norm(&self) -> f32 {
        let square = |factors: &Factors| {
            slmc_kernels::sum_of_squares(&factors.a) + slmc_kernels::sum_of_squares(&factors.b)
        };
        (self.by_key.values().map(square).sum::<f64>().sqrt() * f64::from(self.factor.abs())) as f32
    }

    /// Scales all gradients so that their common norm is at most `max_norm`; the norm before is returned
    /// (Pascanu et al. 2013, arXiv:1211.5063). A norm that is not finite changes nothing: the caller decides.
    pub fn clip(&mut self, max_norm: f32) -> f32 {
        let norm = self.norm();
        if norm.is_finite() && norm > max_norm {
            self.factor *= max_norm / norm;
        }
        norm
    }

    /// A matrix whose factors' gradient is not finite.
    pub fn first_not_finite(&self) -> Option<TensorKey> {
        let is_bad = |factors: &Factors| factors.a.iter().chain(&factors.b).any(|x| !x.is_finite());
        self.by_key.iter().find(|(_, factors)| is_bad(factors)).map(|(&key, _)| key)
    }
}

/// An adapter that changes nothing yet: `A` uniform within `± 1 / sqrt(in)` (Kaiming's for a = √5, as PEFT begins),
/// `B` zero. The same seed gives the same bytes.
pub fn fresh_adapter(spec: &ModelSpec, roles: &[Role], rank: usize, alpha: f64, seed: u64) -> Adapter {
    let mut factors = BTreeMap::new();
    for (stream, key) in (0..).zip(TensorKey::all(spec)) {
        if key.part != slmc_ir::Part::Weight || !roles.contains(&key.role) {
            continue;
        }
        let shape = key.shape(spec);
        let bound = 1.0 / (shape[1] as f64).sqrt();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        let mut uniform = || (random.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64);
        let a = (0..rank * shape[1]).map(|_| ((2.0 * uniform() - 1.0) * bound) as f32).collect();
        factors.insert(key, Factors { a, b: vec![0.0; shape[0] * rank] });
    }
    Adapter { rank, alpha, factors }
}
