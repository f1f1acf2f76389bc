//! What a runtime adds when it multiplies: it rounds a layer's inputs to 8 bits, in blocks as wide as the weights'.
//!
//! A block's largest input is 127 steps (ggml `quantize_row_q8_0_ref` for blocks of 32 weights, `quantize_row_q8_K_ref` for those
//! of 256). Where inputs differ much in size, a wide block costs more than its weights' finer scales save.

use super::{Hessian, widest::widest};
use crate::MatRef;

/// Steps to either side.
const LEVELS: f32 = 127.0;

/// Of so many tokens one is looked at. Sequences and batches are of even lengths, most of them: an odd stride comes to all positions, and
/// to no more first ones, which are unlike all others, than there are.
const STRIDE: usize = 7;

/// Squared errors of inputs that are rounded in blocks, tokens weighted.
#[derive(Clone, Debug)]
pub struct InputRounding {
    block: usize,
    /// `Σ over tokens of w · error²`, for each column.
    squares: Vec<f64>,
    weight: f64,
    /// Tokens that came by.
    n_tokens: usize,
}

impl InputRounding {
    /// Nothing observed yet, of a layer of so many columns in blocks of `block`.
    pub fn empty(n_columns: usize, block: usize) -> Self {
        Self { block, squares: vec![0.0; n_columns], weight: 0.0, n_tokens: 0 }
    }

    /// Columns of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Takes in some of these tokens, `[n_tokens, n_columns]` row by row, that weigh `weights`, 0 or more.
    ///
    /// # Panics
    /// When there is not one weight for each token.
    pub fn observe_weighted(&mut self, inputs: &[f32], weights: &[f32]) {
        let n_columns = self.squares.len();
        assert_eq!(inputs.len(), weights.len() * n_columns, "a weight for each token");
        widest(
            #[inline(always)]
            || {
                let first = self.n_tokens.next_multiple_of(STRIDE) - self.n_tokens;
                let tokens = inputs.chunks_exact(n_columns).zip(weights).skip(first).step_by(STRIDE);
                tokens.for_each(|(token, &weight)| self.observe(token, f64::from(weight)));
            },
        );
        self.n_tokens += weights.len();
    }

    #[inline(always)]
    fn observe(&mut self, token: &[f32], weight: f64) {
        for (sums, block) in self.squares.chunks_mut(self.block).zip(token.chunks(self.block)) {
            let step = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs())) / LEVELS;
            let over = if step > 0.0 { 1.0 / step } else { 0.0 };
            for (sum, &x) in sums.iter_mut().zip(block) {
                let error = (x * over).round_ties_even() * step - x;
                *sum += weight * f64::from(error * error);
            }
        }
        self.weight += weight;
    }

    /// What that adds to the mean squared error of the outputs: `energies` are what an error of each input costs.
    pub fn cost(&self, energies: &[f64]) -> f64 {
        let sum: f64 = self.squares.iter().zip(energies).map(|(square, energy)| square * energy).sum();
        if self.weight > 0.0 { sum / self.weight } else { 0.0 }
    }
}

/// The diagonal of `Wᵀ G W`: what an error of each input costs a layer whose outputs' gradients have the second moments `G`.
///
/// # Panics
/// When `G` is not of the weight's rows.
pub fn energies(weight: MatRef<'_>, gradients: &Hessian) -> Vec<f64> {
    let full = gradients.full();
    let mixed = full.dot(&weight);
    let columns = weight.columns().into_iter().zip(mixed.columns());
    columns.map(|(w, m)| w.iter().zip(m).map(|(&w, &m)| f64::from(w) * f64::from(m)).sum()).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::{
        LayerStats,
        quant::test_support::{moments, numbers},
    };

    /// Rounded as the blocks' steps say.
    fn rounded(token: &[f32], block: usize) -> Vec<f32> {
        let round = |block: &[f32]| -> Vec<f32> {
            let step = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs())) / 127.0;
            block.iter().map(|x| (x / step).round() * step).collect()
        };
        token.chunks(block).flat_map(round).collect()
    }

    #[test]
    fn the_cost_is_that_of_rounding() {
        // One channel far above the others, as in a down projection's inputs.
        let mut state = 1_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        let mut inputs = Array2::from_shape_simple_fn((8000, 512), || draw() + draw() * draw());
        inputs.column_mut(40).mapv_inplace(|x| x * 30.0);
        let (weight, gradients) = (numbers(48, 512, 7), moments(48, 3));
        let energies = energies(weight.view(), &gradients);
        let g = Array2::from_shape_fn((48, 48), |(i, j)| gradients.at(i, j));
        let mut found = Vec::new();
        for block in [32, 256] {
            let mut rounding = InputRounding::empty(512, block);
            let tokens = inputs.as_slice().unwrap();
            // In batches that are no multiples of the stride.
            tokens
                .chunks(500 * 512)
                .for_each(|some| rounding.observe_weighted(some, &vec![0.5; some.len() / 512]));
            let mut expected = 0.0;
            for token in tokens.chunks(512).step_by(STRIDE) {
                let error: Vec<f32> = rounded(token, block).iter().zip(token).map(|(r, x)| r - x).collect();
                let out = weight.dot(&ndarray::Array1::from(error));
                expected += f64::from(out.dot(&g.dot(&out))) / 8000_usize.div_ceil(STRIDE) as f64;
            }
            let cost = rounding.cost(&energies);
            assert!((cost / expected - 1.0).abs() < 0.05, "{block}: {cost} {expected}");
            found.push(cost);
        }
        assert!(found[1] > 2.0 * found[0], "{found:?}");
    }

    #[test]
    fn energies_by_the_definition() {
        let (weight, mut gradients) = (numbers(40, 64, 1), Hessian::empty(40));
        let seen = numbers(200, 40, 8);
        gradients.observe(seen.view());
        let products = seen.dot(&weight);
        for (column, energy) in energies(weight.view(), &gradients).iter().enumerate() {
            let expected: f64 = products.column(column).iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((energy / expected - 1.0).abs() < 1e-4, "{energy} {expected}");
        }
    }
}
