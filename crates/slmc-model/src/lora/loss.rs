//! Head and cross entropy of the positions that count: a chunk of them at a time, and a tile of the head.

use slmc_ir::{TokenId, Weight};
use slmc_kernels::{Matrix, MatrixMut, Update, cross_entropy, multiply};

use super::{Rows, frozen::decode_rows};

/// Positions whose logits exist at the same time: 50 MB for a vocabulary of 49152.
const CHUNK_ROWS: usize = 256;
/// Rows of the head that are decoded at a time.
const TILE_ROWS: usize = 4096;

/// The positions that are learned from, and their targets.
pub(super) struct Targets {
    pub positions: Vec<usize>,
    tokens: Vec<TokenId>,
}

impl Targets {
    pub fn of(rows: Rows<'_>) -> Self {
        let counts = |&i: &usize| rows.mask.is_none_or(|mask| mask[i]);
        let positions: Vec<usize> = (0..rows.targets.len()).filter(counts).collect();
        let tokens = positions.iter().map(|&i| rows.targets[i]).collect();
        Self { positions, tokens }
    }

    /// The rows of these positions.
    pub fn gather(&self, rows: &[f32], width: usize) -> Vec<f32> {
        self.positions.iter().flat_map(|&i| &rows[i * width..(i + 1) * width]).copied().collect()
    }
}

/// `-log p` of each target from its normed hidden state; with `d_normed`, the gradients of the mean of them.
pub(super) fn head_loss(
    head: &Weight,
    normed: &[f32],
    targets: &Targets,
    mut d_normed: Option<&mut [f32]>,
) -> Vec<f32> {
    let (vocab_size, d_model) = (head.n_rows(), head.n_columns());
    let n_all = targets.tokens.len();
    let mut losses = vec![0.0; n_all];
    let mut logits = vec![0.0; CHUNK_ROWS.min(n_all) * vocab_size];
    for start in (0..n_all).step_by(CHUNK_ROWS) {
        let n = CHUNK_ROWS.min(n_all - start);
        let logits = &mut logits[..n * vocab_size];
        let chunk = start * d_model..(start + n) * d_model;
        tiles(head, |first, tile| {
            let rows = tile.len() / d_model;
            let out = MatrixMut::strided(&mut logits[first..], n, rows, vocab_size);
            let tile = Matrix::new(tile, rows, d_model).transposed();
            multiply(Matrix::new(&normed[chunk.clone()], n, d_model), tile, out, Update::Set);
        });
        let weights = vec![1.0 / n_all as f32; n];
        cross_entropy(logits, &targets.tokens[start..start + n], &weights, &mut losses[start..start + n]);
        let Some(d_normed) = d_normed.as_deref_mut() else { continue };
        tiles(head, |first, tile| {
            let rows = tile.len() / d_model;
            let d_logits = Matrix::strided(&logits[first..], n, rows, vocab_size);
            let out = MatrixMut::new(&mut d_normed[chunk.clone()], n, d_model);
            multiply(d_logits, Matrix::new(tile, rows, d_model), out, Update::Add);
        });
    }
    losses
}

/// The logits of normed hidden states.
pub(super) fn logits(head: &Weight, normed: &[f32]) -> Vec<f32> {
    let (vocab_size, d_model) = (head.n_rows(), head.n_columns());
    let n = normed.len() / d_model;
    let mut logits = vec![0.0; n * vocab_size];
    tiles(head, |first, tile| {
        let rows = tile.len() / d_model;
        let out = MatrixMut::strided(&mut logits[first..], n, rows, vocab_size);
        let tile = Matrix::new(tile, rows, d_model).transposed();
        multiply(Matrix::new(normed, n, d_model), tile, out, Update::Set);
    });
    logits
}

/// The head's rows, decoded, a tile at a time: the first row's number and the numbers.
fn tiles(head: &Weight, mut visit: impl FnMut(usize, &[f32])) {
    let (n_rows, d_model) = (head.n_rows(), head.n_columns());
    let mut tile = vec![0.0; TILE_ROWS.min(n_rows) * d_model];
    for first in (0..n_rows).step_by(TILE_ROWS) {
        let n = TILE_ROWS.min(n_rows - first);
        decode_rows(head, first, n, &mut tile[..n * d_model]);
        visit(first, &tile[..n * d_model]);
    }
}
