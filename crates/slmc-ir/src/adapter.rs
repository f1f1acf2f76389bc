//! A low-rank adapter (LoRA, arXiv:2106.09685): what is added to a frozen model's products.

use std::collections::BTreeMap;

use crate::{Channels, ModelSpec, Part, Role, TensorKey};

/// Ranks beyond this are no longer low.
const MAX_RANK: usize = 4096;

/// The two factors beside one matrix: `y += scale · (x · Aᵀ) · Bᵀ`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Factors {
    /// `[rank, in]`, in row order.
    pub a: Vec<f32>,
    /// `[out, rank]`, in row order.
    pub b: Vec<f32>,
}

/// A low-rank adapter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Rows of each `A`, columns of each `B`.
    pub rank: usize,
    /// The products of the factors are multiplied by `alpha / rank`.
    pub alpha: f64,
    /// The factors beside each matrix that has any.
    pub factors: BTreeMap<TensorKey, Factors>,
}

/// An adapter that is none, or another model's.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdapterError {
    /// A rank that no adapter can have.
    #[error("rank {0}: it must be 1 to {MAX_RANK}")]
    Rank(usize),
    /// A scale that is not a number.
    #[error("alpha {0}: it must be a finite number other than 0")]
    Alpha(f64),
    /// An adapter of nothing.
    #[error("the adapter has no factors")]
    Empty,
    /// Factors beside something that is no projection of a block, or that the model does not have.
    #[error("there are factors for `{0}`, which is no projection of this model's blocks")]
    Target(TensorKey),
    /// Factors of another size.
    #[error(
        "the factors of `{key}` hold {found:?} numbers where rank and model call for {expected:?}: is this adapter for another model?"
    )]
    Shape {
        /// The matrix.
        key: TensorKey,
        /// Numbers of A and B by the model.
        expected: [usize; 2],
        /// Numbers that are there.
        found: [usize; 2],
    },
    /// A number that is not finite.
    #[error(
        "the factors of `{0}` hold a number that is not finite: the file is damaged or training diverged"
    )]
    NotFinite(TensorKey),
}

impl Adapter {
    /// The roles that can have factors: a block's seven projections, in the order of computation.
    pub const ROLES: [Role; 7] =
        [Role::Query, Role::Key, Role::Value, Role::AttnOutput, Role::Gate, Role::Up, Role::Down];

    /// What the products of the factors are multiplied by.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Numbers in all factors.
    pub fn n_parameters(&self) -> u64 {
        self.factors.values().map(|factors| (factors.a.len() + factors.b.len()) as u64).sum()
    }

    /// The roles that have factors, in the order of computation.
    pub fn roles(&self) -> Vec<Role> {
        let has = |role: &Role| self.factors.keys().any(|key| key.role == *role);
        Self::ROLES.into_iter().filter(has).collect()
    }

    /// `in` and `out` of the matrix that these factors stand beside; `None` when no matrix has such factors.
    pub fn sizes(&self, factors: &Factors) -> Option<[usize; 2]> {
        let size = |n: usize| (n > 0 && n.is_multiple_of(self.rank.max(1))).then(|| n / self.rank.max(1));
        Some([size(factors.a.len())?, size(factors.b.len())?])
    }

    /// The same adapter for the same model with other channels.
    ///
    /// # Panics
    /// When the adapter is not of a model of that shape.
    pub fn with_channels(&self, channels: &Channels, spec: &ModelSpec) -> Self {
        let with = |(&key, Factors { a, b }): (&TensorKey, &Factors)| {
            let [rows, columns] = channels.moves(key);
            let [row_factors, column_factors] = channels.factors(key, spec);
            let n_columns = a.len() / self.rank;
            let mut a: Vec<f32> = match columns {
                Some(columns) => a
                    .chunks_exact(n_columns)
                    .flat_map(|row| columns.iter().map(|&column| row[column]))
                    .collect(),
                None => a.clone(),
            };
            let mut b: Vec<f32> = match rows {
                Some(rows) => {
                    rows.iter().flat_map(|&row| b[row * self.rank..(row + 1) * self.rank].to_vec()).collect()
                }
                None => b.clone(),
            };
            if let Some(factors) = column_factors {
                a.chunks_exact_mut(n_columns)
                    .flat_map(|row| row.iter_mut().zip(&factors))
                    .for_each(|(x, f)| *x *= f);
            }
            if let Some(factors) = row_factors {
                b.chunks_exact_mut(self.rank)
                    .zip(factors)
                    .for_each(|(row, f)| row.iter_mut().for_each(|x| *x *= f));
            }
            (key, Factors { a, b })
        };
        Self { factors: self.factors.iter().map(with).collect(), ..self.clone() }
    }

    /// Proves that this is an adapter of some model.
    ///
    /// # Errors
    /// At the first thing that is wrong.
    pub fn check_alone(&self) -> Result<(), AdapterError> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            return Err(AdapterError::Rank(self.rank));
        }
        if !self.alpha.is_finite() || self.alpha == 0.0 {
            return Err(AdapterError::Alpha(self.alpha));
        }
        if self.factors.is_empty() {
            return Err(AdapterError::Empty);
        }
        for (&key, factors) in &self.factors {
            if key.block.is_none() || !Self::ROLES.contains(&key.role) || key.part != Part::Weight {
                return Err(AdapterError::Target(key));
            }
            if self.sizes(factors).is_none() {
                let found = [factors.a.len(), factors.b.len()];
                return Err(AdapterError::Shape { key, expected: [self.rank; 2], found });
            }
            if factors.a.iter().chain(&factors.b).any(|x| !x.is_finite()) {
                return Err(AdapterError::NotFinite(key));
            }
        }
        Ok(())
    }

    /// Proves that the adapter belongs to a model of this spec, and is one.
    ///
    /// # Errors
    /// At the first thing that is wrong.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), AdapterError> {
        self.check_alone()?;
        for (&key, factors) in &self.factors {
            if key.block.is_none_or(|index| index >= spec.n_layers) {
                return Err(AdapterError::Target(key));
            }
            let shape = key.shape(spec);
            let expected = [self.rank * shape[1], shape[0] * self.rank];
            let found = [factors.a.len(), factors.b.len()];
            if expected != found {
                return Err(AdapterError::Shape { key, expected, found });
            }
        }
        Ok(())
    }

    /// The adapter whose change of the model is the mean of the others' changes, exactly: the factors stand side by side,
    /// so ranks add up (the mean of the factors themselves would be another function).
    ///
    /// All must have factors beside the same matrices of the same sizes.
    ///
    /// # Errors
    /// The first adapter, counted from 0, and the first matrix at which it does not fit the first adapter; or
    /// [`AdapterError::Empty`] for no adapters.
    pub fn mean(adapters: &[Self]) -> Result<Self, AdapterError> {
        let first = adapters.first().ok_or(AdapterError::Empty)?;
        let rank: usize = adapters.iter().map(|adapter| adapter.rank).sum();
        if rank == 0 || rank > MAX_RANK || adapters.iter().any(|adapter| adapter.rank == 0) {
            return Err(AdapterError::Rank(rank));
        }
        let mut mean = BTreeMap::new();
        for (&key, model) in &first.factors {
            let [d_in, d_out] = [model.a.len() / first.rank, model.b.len() / first.rank];
            let (mut a, mut b) = (Vec::with_capacity(rank * d_in), vec![0.0; d_out * rank]);
            let mut column = 0;
            for adapter in adapters {
                let factors = adapter.factors.get(&key).ok_or(AdapterError::Target(key))?;
                let expected = [adapter.rank * d_in, d_out * adapter.rank];
                let found = [factors.a.len(), factors.b.len()];
                if expected != found {
                    return Err(AdapterError::Shape { key, expected, found });
                }
                a.extend_from_slice(&factors.a);
                let share = adapter.alpha / adapter.rank as f64 / adapters.len() as f64;
                for (to, from) in b.chunks_exact_mut(rank).zip(factors.b.chunks_exact(adapter.rank)) {
                    let to = &mut to[column..column + adapter.rank];
                    to.iter_mut().zip(from).for_each(|(to, &from)| *to = (f64::from(from) * share) as f32);
                }
                column += adapter.rank;
            }
            mean.insert(key, Factors { a, b });
        }
        for adapter in adapters {
            if let Some(&key) = adapter.factors.keys().find(|key| !first.factors.contains_key(key)) {
                return Err(AdapterError::Target(key));
            }
        }
        // The shares are in B: what is left is a scale of 1.
        Ok(Self { rank, alpha: rank as f64, factors: mean })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(rank: usize, alpha: f64, seed: f32) -> Adapter {
        let numbers = |n: usize, by: f32| (0..n).map(|i| (i as f32 * by + seed).sin()).collect::<Vec<_>>();
        let factors = Factors { a: numbers(rank * 5, 0.7), b: numbers(3 * rank, 1.3) };
        Adapter { rank, alpha, factors: BTreeMap::from([(TensorKey::block(0, Role::Down), factors)]) }
    }

    /// `scale · B · A`, `[3, 5]`.
    fn product(adapter: &Adapter) -> Vec<f64> {
        let factors = &adapter.factors[&TensorKey::block(0, Role::Down)];
        let at = |i: usize, j: usize| {
            let terms = (0..adapter.rank)
                .map(|r| f64::from(factors.b[i * adapter.rank + r]) * f64::from(factors.a[r * 5 + j]));
            terms.sum::<f64>() * adapter.alpha / adapter.rank as f64
        };
        (0..15).map(|k| at(k / 5, k % 5)).collect()
    }

    #[test]
    fn the_mean_is_the_mean_of_the_products() {
        let all = [adapter(2, 4.0, 0.1), adapter(3, 1.5, 0.9), adapter(1, 2.0, 2.3)];
        let mean = Adapter::mean(&all).unwrap();
        assert_eq!((mean.rank, mean.scale()), (6, 1.0));
        let products: Vec<Vec<f64>> = all.iter().map(product).collect();
        for (k, found) in product(&mean).into_iter().enumerate() {
            let expected = products.iter().map(|p| p[k]).sum::<f64>() / 3.0;
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(Adapter::mean(&[]), Err(AdapterError::Empty));
        let mut other = adapter(2, 1.0, 0.0);
        other.factors = BTreeMap::from([(TensorKey::block(1, Role::Down), Factors::default())]);
        assert!(matches!(Adapter::mean(&[adapter(2, 1.0, 0.0), other]), Err(AdapterError::Target(_))));
        let mut short = adapter(2, 1.0, 0.0);
        short.factors.values_mut().for_each(|factors| {
            factors.a.pop();
        });
        assert!(matches!(Adapter::mean(&[adapter(2, 1.0, 0.0), short]), Err(AdapterError::Shape { .. })));
    }
}
