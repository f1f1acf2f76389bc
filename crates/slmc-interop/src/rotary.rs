//! The order of rows in query and key: halves inside slmc and in Hugging Face folders, pairs in GGUF files of
//! the architecture `llama` (llama.cpp `conversion/llama.py`, `permute`).
//!
//! Whole rows move, so packed weights are not decoded.

use slmc_ir::{Role, TensorKey, Weight, WeightError};

/// Whether the tensor's rows are rotary.
pub(crate) fn is_rotary(key: TensorKey) -> bool {
    matches!(key.role, Role::Query | Role::Key)
}

/// A query or key tensor in pairs, from halves.
pub(crate) fn halves_to_pairs(weight: &Weight, d_head: usize) -> Result<Weight, WeightError> {
    let half = d_head / 2;
    reorder(weight, d_head, |at| (at % 2) * half + at / 2)
}

/// A query or key tensor in halves, from pairs.
pub(crate) fn pairs_to_halves(weight: &Weight, d_head: usize) -> Result<Weight, WeightError> {
    let half = d_head / 2;
    reorder(weight, d_head, |at| 2 * (at % half) + at / half)
}

/// Row `at` of each head comes from row `from(at)` of the same head.
fn reorder(weight: &Weight, d_head: usize, from: impl Fn(usize) -> usize) -> Result<Weight, WeightError> {
    let shape = weight.shape().to_vec();
    // A bias is a column: one number a row.
    let matrix = match shape[..] {
        [n] => Weight::new(vec![n, 1], weight.format(), weight.bytes().clone())?,
        _ => weight.clone(),
    };
    let order: Vec<usize> =
        (0..matrix.n_rows()).map(|row| row / d_head * d_head + from(row % d_head)).collect();
    Weight::new(shape, weight.format(), matrix.with_rows(&order).bytes().clone())
}

#[cfg(test)]
mod tests {
    use slmc_ir::Format;

    use super::*;

    #[test]
    fn pairs_interleave_the_halves_of_each_head() {
        let bias: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let weight = Weight::from_f32(vec![16], &bias).unwrap();
        let pairs = halves_to_pairs(&weight, 8).unwrap();
        let expected = [0., 4., 1., 5., 2., 6., 3., 7., 8., 12., 9., 13., 10., 14., 11., 15.];
        assert_eq!(pairs.bytes(), Weight::from_f32(vec![16], &expected).unwrap().bytes());
        assert_eq!(pairs_to_halves(&pairs, 8).unwrap().bytes(), weight.bytes());
    }

    #[test]
    fn packed_rows_come_back() {
        let bytes: Vec<u8> = (0..12 * 36).map(|i| (i % 251) as u8).collect();
        let weight = Weight::new(vec![12, 64], Format::Q4_0, bytes.into()).unwrap();
        let pairs = halves_to_pairs(&weight, 6).unwrap();
        assert_ne!(pairs.bytes(), weight.bytes());
        assert_eq!(pairs.bytes()[36..72], weight.bytes()[3 * 36..4 * 36]);
        assert_eq!(pairs_to_halves(&pairs, 6).unwrap().bytes(), weight.bytes());
    }
}
