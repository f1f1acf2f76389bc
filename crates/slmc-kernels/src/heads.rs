//! Rows of a projection to heads and back, and the rotary embedding (RoFormer, arXiv:2104.09864).
//!
//! Token order is `[batch * seq, columns]`; head order is `[batch, n_heads, seq, d_head]`, where a head's
//! numbers lie together.

use rayon::prelude::*;

use crate::{dispatch::dispatched, rows_per_task};

/// Copies `n_heads * d_head` columns of token-ordered rows, from column `first` on, to head order.
///
/// # Panics
/// When the sizes do not fit.
pub fn to_heads(
    rows: &[f32],
    row_stride: usize,
    first: usize,
    heads: &mut [f32],
    [n_heads, seq, d_head]: [usize; 3],
) {
    assert!(first + n_heads * d_head <= row_stride);
    assert_eq!(rows.len() / row_stride * n_heads * d_head, heads.len());
    heads.par_chunks_mut(seq * d_head).enumerate().for_each(|(index, head)| {
        let (sequence, column) = (index / n_heads, first + index % n_heads * d_head);
        for (position, to) in head.chunks_exact_mut(d_head).enumerate() {
            let start = (sequence * seq + position) * row_stride + column;
            to.copy_from_slice(&rows[start..start + d_head]);
        }
    });
}

/// The inverse of [`to_heads`].
///
/// # Panics
/// When the sizes do not fit.
pub fn from_heads(
    heads: &[f32],
    rows: &mut [f32],
    row_stride: usize,
    first: usize,
    [n_heads, seq, d_head]: [usize; 3],
) {
    assert!(first + n_heads * d_head <= row_stride);
    assert_eq!(rows.len() / row_stride * n_heads * d_head, heads.len());
    let n = rows_per_task(row_stride);
    rows.par_chunks_mut(n * row_stride).enumerate().for_each(|(task, rows)| {
        for (row, index) in rows.chunks_exact_mut(row_stride).zip(task * n..) {
            let (sequence, position) = (index / seq, index % seq);
            for (h, to) in row[first..first + n_heads * d_head].chunks_exact_mut(d_head).enumerate() {
                let start = ((sequence * n_heads + h) * seq + position) * d_head;
                to.copy_from_slice(&heads[start..start + d_head]);
            }
        }
    });
}

dispatched! {
    fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32], d_head: usize, sign: f32) {
        let half = d_head / 2;
        let rows = head.chunks_exact_mut(d_head).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half));
        for ((row, cos), sin) in rows {
            let (first, second) = row.split_at_mut(half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (x, y, s) = (*a, *b, s * sign);
                *a = x * c - y * s;
                *b = y * c + x * s;
            }
        }
    }
}

/// Turns each position's pairs (`i` and `i + d_head / 2`) by its angles, in place; head order, with cosines and
/// sines `[seq or more, d_head / 2]`.
///
/// # Panics
/// When the sizes do not fit.
pub fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32], seq: usize, d_head: usize) {
    turn(heads, cos, sin, seq, d_head, 1.0);
}

/// Turns back: the inverse of [`rotate`], and its gradient.
///
/// # Panics
/// When the sizes do not fit.
pub fn rotate_back(heads: &mut [f32], cos: &[f32], sin: &[f32], seq: usize, d_head: usize) {
    turn(heads, cos, sin, seq, d_head, -1.0);
}

fn turn(heads: &mut [f32], cos: &[f32], sin: &[f32], seq: usize, d_head: usize, sign: f32) {
    let n = seq * d_head / 2;
    assert!(cos.len() >= n && sin.len() >= n, "angles for each position");
    heads.par_chunks_mut(seq * d_head).for_each(|head| rotate_head(head, cos, sin, d_head, sign));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads};

    #[test]
    fn heads_go_there_and_back() {
        let (batch, n_heads, seq, d_head, stride) = (2, 3, 37, 8, 40);
        let rows = numbers(batch * seq * stride, 1);
        let (heads, back) = same_on_any_threads(|| {
            let mut heads = vec![0.0; batch * n_heads * seq * d_head];
            to_heads(&rows, stride, 5, &mut heads, [n_heads, seq, d_head]);
            let mut back = rows.clone();
            back.chunks_mut(stride).for_each(|row| row[5..29].fill(0.0));
            from_heads(&heads, &mut back, stride, 5, [n_heads, seq, d_head]);
            (heads, back)
        });
        assert_eq!(back, rows);
        // Sequence 1, head 2, position 4, channel 6.
        assert_eq!(
            heads[((n_heads + 2) * seq + 4) * d_head + 6],
            rows[(seq + 4) * stride + 5 + 2 * d_head + 6]
        );
    }

    #[test]
    fn a_turn_keeps_lengths_and_turns_back() {
        let (seq, d_head) = (5, 8);
        let angles = numbers(seq * d_head / 2, 2);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let before = numbers(3 * seq * d_head, 1);
        let mut heads = before.clone();
        rotate(&mut heads, &cos, &sin, seq, d_head);
        let (a, b, angle) = (before[d_head + 1], before[d_head + 5], angles[d_head / 2 + 1]);
        assert!((heads[d_head + 1] - (a * angle.cos() - b * angle.sin())).abs() < 1e-6);
        assert!((heads[d_head + 5] - (a * angle.sin() + b * angle.cos())).abs() < 1e-6);
        rotate_back(&mut heads, &cos, &sin, seq, d_head);
        for (a, b) in heads.iter().zip(&before) {
            assert!((a - b).abs() < 1e-6);
        }
    }
}
