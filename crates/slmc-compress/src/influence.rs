//! How much a block turns the residual stream: 1 - E[cos(x_i, x_(i+1))], the block influence of ShortGPT
//! (Men et al. 2024, arXiv:2403.03853, equation 1).

use crate::{CompressError, MatRef};

/// The influence of one block, from its inputs and outputs. Near 0: the block hardly changes its input.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockInfluence {
    n_tokens: u64,
    sum_cosines: f64,
}

impl BlockInfluence {
    /// Nothing observed yet.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Takes in the residual stream before and after the block, `[n_tokens, d_model]` each. A token whose vector
    /// is zero on both sides counts as unchanged, on one side only as turned by a right angle.
    ///
    /// # Panics
    /// When the two have different shapes.
    pub fn observe(&mut self, inputs: MatRef<'_>, outputs: MatRef<'_>) {
        assert_eq!(inputs.dim(), outputs.dim(), "a block keeps the shape of the residual stream");
        for (input, output) in inputs.rows().into_iter().zip(outputs.rows()) {
            let (mut dot, mut input_square, mut output_square) = (0.0, 0.0, 0.0);
            for (&x, &y) in input.iter().zip(output) {
                let (x, y) = (f64::from(x), f64::from(y));
                dot += x * y;
                input_square += x * x;
                output_square += y * y;
            }
            let norms = input_square.sqrt() * output_square.sqrt();
            self.sum_cosines +=
                if norms != 0.0 { dot / norms } else { f64::from(u8::from(input_square == output_square)) };
        }
        self.n_tokens += inputs.nrows() as u64;
    }

    /// Adds what another one observed of the same block.
    pub fn merge(&mut self, other: Self) {
        self.n_tokens += other.n_tokens;
        self.sum_cosines += other.sum_cosines;
    }

    /// Tokens observed.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The influence, 0 to 2.
    ///
    /// # Errors
    /// [`CompressError::NoTokens`]; [`CompressError::NotFinite`] when an activation was.
    pub fn score(&self) -> Result<f64, CompressError> {
        if self.n_tokens == 0 {
            return Err(CompressError::NoTokens);
        }
        let score = 1.0 - self.sum_cosines / self.n_tokens as f64;
        if score.is_finite() {
            Ok(score)
        } else {
            Err(CompressError::NotFinite { what: "the block influence", channel: 0, value: score })
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn the_score_is_one_minus_the_mean_cosine() {
        let inputs = array![[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]];
        // Same direction, 3/5, right angle.
        let outputs = array![[9.0, 0.0], [1.0, 0.0], [-1.0, 0.0]];
        let mut influence = BlockInfluence::empty();
        influence.observe(inputs.view(), outputs.view());
        assert!((influence.score().unwrap() - (1.0 - 1.6 / 3.0)).abs() < 1e-15);
        let mut merged = BlockInfluence::empty();
        merged.merge(influence);
        assert_eq!((merged.n_tokens(), merged.score()), (3, influence.score()));
    }

    #[test]
    fn zero_vectors_have_a_meaning() {
        let mut influence = BlockInfluence::empty();
        influence.observe(array![[0.0, 0.0]].view(), array![[0.0, 0.0]].view());
        assert_eq!(influence.score(), Ok(0.0));
        influence.observe(array![[0.0, 0.0]].view(), array![[1.0, 0.0]].view());
        assert_eq!(influence.score(), Ok(0.5));
    }

    #[test]
    fn nothing_observed_and_nothing_finite_are_errors() {
        assert_eq!(BlockInfluence::empty().score(), Err(CompressError::NoTokens));
        let mut influence = BlockInfluence::empty();
        influence.observe(array![[f32::NAN]].view(), array![[1.0]].view());
        assert!(influence.score().is_err());
    }
}
