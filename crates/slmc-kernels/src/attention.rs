//! Causal attention with grouped keys (GQA, arXiv:2305.13245), a block of queries at a time.
//!
//! The forward pass keeps each query's log-sum-exp; the backward pass computes the probabilities again from it
//! (FlashAttention, arXiv:2205.14135, appendix B.2). Scores of one block of queries exist at a time.

use rayon::prelude::*;

use crate::{
    dispatch::{LANES, dispatched, maximum, sum_lanes, sum_pairs},
    exp::exp,
    matrix::{Matrix, MatrixMut, Update, multiply_one_thread},
};

/// Queries whose scores exist at the same time.
const QUERY_BLOCK: usize = 64;

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Positions.
    pub seq: usize,
    /// Numbers in a head.
    pub d_head: usize,
}

impl AttentionShape {
    fn check(&self, query: usize, key: usize, value: usize, log_sums: usize) {
        let head = self.seq * self.d_head;
        assert!(self.n_heads.is_multiple_of(self.n_kv_heads), "kv heads divide heads");
        assert_eq!(query, self.batch * self.n_heads * head, "queries");
        assert_eq!(key, self.batch * self.n_kv_heads * head, "keys");
        assert_eq!(value, key, "values");
        assert_eq!(log_sums, self.batch * self.n_heads * self.seq, "one log-sum a query");
    }

    /// Proves that each position's document begins at the position or before it.
    fn check_starts(&self, starts: Option<&[u32]>) {
        let Some(starts) = starts else { return };
        assert_eq!(starts.len(), self.batch * self.seq, "one start a position");
        let is_before = |row: &[u32]| row.iter().enumerate().all(|(i, &start)| start as usize <= i);
        assert!(
            starts.chunks(self.seq.max(1)).all(is_before),
            "a document begins where its tokens are, or before"
        );
    }

    /// The starts of some queries of a sequence; none where sequences are one document.
    fn starts_of<'a>(&self, starts: Option<&'a [u32]>, sequence: usize, first: usize, n: usize) -> &'a [u32] {
        starts.map_or(&[], |starts| &starts[sequence * self.seq + first..][..n])
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d_head as f32).sqrt()
    }

    /// Query blocks of a head: first query and number of queries.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let seq = self.seq;
        (0..seq).step_by(QUERY_BLOCK).map(move |first| (first, QUERY_BLOCK.min(seq - first)))
    }
}

/// Where the document of row `i` begins.
#[inline(always)]
fn start_of(starts: &[u32], i: usize) -> usize {
    starts.get(i).map_or(0, |&start| start as usize)
}

dispatched! {
    /// Scores to probabilities: row `i` sees keys `starts[i]..=first + i` (from 0 where there are no starts). Gives each
    /// row's log-sum-exp.
    fn softmax_rows(scores: &mut [f32], n_keys: usize, first: usize, scale: f32, starts: &[u32], log_sums: &mut [f32]) {
        for (i, (row, log_sum)) in scores.chunks_exact_mut(n_keys).zip(log_sums).enumerate() {
            let (seen, hidden) = row.split_at_mut(first + i + 1);
            let (earlier, seen) = seen.split_at_mut(start_of(starts, i));
            earlier.fill(0.0);
            let top = maximum(seen);
            let mut lanes = [0.0_f32; LANES];
            let (whole, rest) = seen.as_chunks_mut::<LANES>();
            for x in whole {
                for i in 0..LANES {
                    x[i] = exp((x[i] - top) * scale);
                    lanes[i] += x[i];
                }
            }
            for (i, x) in rest.iter_mut().enumerate() {
                *x = exp((*x - top) * scale);
                lanes[i] += *x;
            }
            let sum = sum_lanes(lanes);
            let inverse = 1.0 / sum;
            seen.iter_mut().for_each(|x| *x *= inverse);
            hidden.fill(0.0);
            *log_sum = top * scale + sum.ln();
        }
    }
}

dispatched! {
    /// Scores to probabilities again, from the log-sums kept.
    fn probabilities(scores: &mut [f32], n_keys: usize, first: usize, scale: f32, starts: &[u32], log_sums: &[f32]) {
        for (i, (row, &log_sum)) in scores.chunks_exact_mut(n_keys).zip(log_sums).enumerate() {
            let (seen, hidden) = row.split_at_mut(first + i + 1);
            let (earlier, seen) = seen.split_at_mut(start_of(starts, i));
            earlier.fill(0.0);
            seen.iter_mut().for_each(|x| *x = exp(*x * scale - log_sum));
            hidden.fill(0.0);
        }
    }
}

dispatched! {
    /// `d_scores = p · (d_p - delta) · scale`, in place of `d_p`.
    fn score_gradients(d_p: &mut [f32], p: &[f32], n_keys: usize, scale: f32, out: &[f32], d_out: &[f32], d_head: usize) {
        let rows = d_p.chunks_exact_mut(n_keys).zip(p.chunks_exact(n_keys));
        let outs = out.chunks_exact(d_head).zip(d_out.chunks_exact(d_head));
        for ((d_p, p), (out, d_out)) in rows.zip(outs) {
            let delta = sum_pairs(out, d_out, |a, b| a * b);
            // Gradients of a row add up to zero. What rounding leaves of `delta` would be in all of them, where they are
            // small beside it.
            let delta = delta + sum_pairs(d_p, p, |d_p, p| p * (d_p - delta));
            for (d_p, p) in d_p.iter_mut().zip(p) {
                *d_p = p * (*d_p - delta) * scale;
            }
        }
    }
}

/// `softmax(q kᵀ / sqrt(d_head)) v` under the causal mask. Everything is in head order, `[batch, heads, seq,
/// d_head]`; `log_sums` is `[batch, n_heads, seq]` and kept for the way back.
///
/// `starts`, `[batch, seq]`, says for each position where in its sequence its document begins: no query looks at keys
/// before that. Without it each sequence is one document.
///
/// # Panics
/// When the sizes do not fit.
pub fn attention(
    shape: AttentionShape,
    starts: Option<&[u32]>,
    query: &[f32],
    key: &[f32],
    value: &[f32],
    mix: &mut [f32],
    log_sums: &mut [f32],
) {
    shape.check(query.len(), key.len(), value.len(), log_sums.len());
    shape.check_starts(starts);
    assert_eq!(mix.len(), query.len());
    let AttentionShape { seq, d_head, .. } = shape;
    let (head, group) = (seq * d_head, shape.n_heads / shape.n_kv_heads);
    let heads = query.par_chunks(head).zip(mix.par_chunks_mut(head)).zip(log_sums.par_chunks_mut(seq));
    heads.enumerate().for_each(|(index, ((query, mix), log_sums))| {
        let kv = index / group * head;
        let (key, value) = (&key[kv..kv + head], &value[kv..kv + head]);
        let mut scores = vec![0.0; QUERY_BLOCK.min(seq) * seq];
        for (first, n) in shape.blocks() {
            let n_keys = first + n;
            let scores = &mut scores[..n * n_keys];
            let q = Matrix::new(&query[first * d_head..], n, d_head);
            let k = Matrix::new(key, n_keys, d_head);
            multiply_one_thread(q, k.transposed(), MatrixMut::new(scores, n, n_keys), Update::Set);
            let starts = shape.starts_of(starts, index / shape.n_heads, first, n);
            softmax_rows(scores, n_keys, first, shape.scale(), starts, &mut log_sums[first..n_keys]);
            let v = Matrix::new(value, n_keys, d_head);
            let out = MatrixMut::new(&mut mix[first * d_head..], n, d_head);
            multiply_one_thread(Matrix::new(scores, n, n_keys), v, out, Update::Set);
        }
    });
}

/// What the forward pass was given and gave.
#[derive(Clone, Copy, Debug)]
struct Kept<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    mix: &'a [f32],
    log_sums: &'a [f32],
    /// Where each position's document begins; empty where the sequence is one.
    starts: &'a [u32],
}

/// The gradients of [`attention`], which take the place of what `d_query`, `d_key`, `d_value` hold.
///
/// # Panics
/// When the sizes do not fit.
#[allow(clippy::too_many_arguments)] // five tensors in, four gradients
pub fn attention_backward(
    shape: AttentionShape,
    starts: Option<&[u32]>,
    query: &[f32],
    key: &[f32],
    value: &[f32],
    mix: &[f32],
    log_sums: &[f32],
    d_mix: &[f32],
    d_query: &mut [f32],
    d_key: &mut [f32],
    d_value: &mut [f32],
) {
    shape.check(query.len(), key.len(), value.len(), log_sums.len());
    shape.check_starts(starts);
    assert!([mix.len(), d_mix.len(), d_query.len()] == [query.len(); 3], "as many as queries");
    assert!([d_key.len(), d_value.len()] == [key.len(); 2], "as many as keys");
    let head = shape.seq * shape.d_head;
    let group = shape.n_heads / shape.n_kv_heads;
    let gradients = d_query.par_chunks_mut(group * head).zip(d_key.par_chunks_mut(head));
    let gradients = gradients.zip(d_value.par_chunks_mut(head));
    gradients.enumerate().for_each(|(kv, ((d_query, d_key), d_value))| {
        d_key.fill(0.0);
        d_value.fill(0.0);
        let mut scratch = vec![0.0; 2 * QUERY_BLOCK.min(shape.seq) * shape.seq];
        for (h, d_query) in (kv * group..).zip(d_query.chunks_exact_mut(head)) {
            let kept = Kept {
                query: &query[h * head..(h + 1) * head],
                key: &key[kv * head..(kv + 1) * head],
                value: &value[kv * head..(kv + 1) * head],
                mix: &mix[h * head..(h + 1) * head],
                log_sums: &log_sums[h * shape.seq..(h + 1) * shape.seq],
                starts: shape.starts_of(starts, h / shape.n_heads, 0, shape.seq),
            };
            let d_mix = &d_mix[h * head..(h + 1) * head];
            head_backward(shape, kept, d_mix, d_query, d_key, d_value, &mut scratch);
        }
    });
}

/// One query head's part: sets `d_query`, adds to `d_key` and `d_value`.
fn head_backward(
    shape: AttentionShape,
    kept: Kept<'_>,
    d_mix: &[f32],
    d_query: &mut [f32],
    d_key: &mut [f32],
    d_value: &mut [f32],
    scratch: &mut [f32],
) {
    let d = shape.d_head;
    let (p, d_p) = scratch.split_at_mut(scratch.len() / 2);
    for (first, n) in shape.blocks() {
        let n_keys = first + n;
        let rows = first * d..n_keys * d;
        let (p, d_p) = (&mut p[..n * n_keys], &mut d_p[..n * n_keys]);
        let q = Matrix::new(&kept.query[rows.clone()], n, d);
        let k = Matrix::new(kept.key, n_keys, d);
        let v = Matrix::new(kept.value, n_keys, d);
        let d_out = Matrix::new(&d_mix[rows.clone()], n, d);
        multiply_one_thread(q, k.transposed(), MatrixMut::new(p, n, n_keys), Update::Set);
        let starts = kept.starts.get(first..n_keys).unwrap_or(&[]);
        probabilities(p, n_keys, first, shape.scale(), starts, &kept.log_sums[first..n_keys]);
        multiply_one_thread(d_out, v.transposed(), MatrixMut::new(d_p, n, n_keys), Update::Set);
        score_gradients(d_p, p, n_keys, shape.scale(), &kept.mix[rows.clone()], &d_mix[rows.clone()], d);
        let (p, d_s) = (Matrix::new(p, n, n_keys), Matrix::new(d_p, n, n_keys));
        multiply_one_thread(p.transposed(), d_out, MatrixMut::new(d_value, n_keys, d), Update::Add);
        multiply_one_thread(d_s, k, MatrixMut::new(&mut d_query[rows], n, d), Update::Set);
        multiply_one_thread(d_s.transposed(), q, MatrixMut::new(d_key, n_keys, d), Update::Add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads, slope, wide, worst};

    fn definition(
        shape: AttentionShape,
        starts: Option<&[u32]>,
        query: &[f64],
        key: &[f64],
        value: &[f64],
    ) -> Vec<f64> {
        let AttentionShape { seq, d_head, .. } = shape;
        let group = shape.n_heads / shape.n_kv_heads;
        let mut mix = vec![0.0; query.len()];
        for h in 0..shape.batch * shape.n_heads {
            for i in 0..seq {
                let q = &query[(h * seq + i) * d_head..][..d_head];
                let row = |j: usize| (h / group * seq + j) * d_head;
                let score = |j: usize| {
                    let dot: f64 = q.iter().zip(&key[row(j)..]).map(|(a, b)| a * b).sum();
                    (dot / (d_head as f64).sqrt()).exp()
                };
                let begin = starts.map_or(0, |s| s[h / shape.n_heads * seq + i] as usize);
                let scores: Vec<f64> = (begin..=i).map(score).collect();
                let sum: f64 = scores.iter().sum();
                for (j, s) in (begin..).zip(&scores) {
                    for c in 0..d_head {
                        mix[(h * seq + i) * d_head + c] += s / sum * value[row(j) + c];
                    }
                }
            }
        }
        mix
    }

    fn check(shape: AttentionShape, starts: Option<&[u32]>, with_slopes: bool) {
        let head = shape.seq * shape.d_head;
        let n = [shape.n_heads, shape.n_kv_heads, shape.n_kv_heads].map(|heads| shape.batch * heads * head);
        let query: Vec<f32> = numbers(n[0], 1).iter().map(|x| x * 3.0).collect();
        let (key, value, d_mix) = (numbers(n[1], 2), numbers(n[2], 3), numbers(n[0], 4));
        let (mix, d_query, d_key, d_value) = same_on_any_threads(|| {
            let mut mix = vec![0.0; n[0]];
            let mut log_sums = vec![0.0; shape.batch * shape.n_heads * shape.seq];
            attention(shape, starts, &query, &key, &value, &mut mix, &mut log_sums);
            let (mut d_query, mut d_key, mut d_value) = (vec![9.0; n[0]], vec![9.0; n[1]], vec![9.0; n[2]]);
            attention_backward(
                shape,
                starts,
                &query,
                &key,
                &value,
                &mix,
                &log_sums,
                &d_mix,
                &mut d_query,
                &mut d_key,
                &mut d_value,
            );
            (mix, d_query, d_key, d_value)
        });
        let (query, key, value, d_mix) = (wide(&query), wide(&key), wide(&value), wide(&d_mix));
        assert!(worst(&mix, &definition(shape, starts, &query, &key, &value)) < 2e-6);
        if with_slopes {
            let weigh = |y: Vec<f64>| y.iter().zip(&d_mix).map(|(a, b)| a * b).sum::<f64>();
            let by_query = slope(&query, |x| weigh(definition(shape, starts, x, &key, &value)));
            let by_key = slope(&key, |x| weigh(definition(shape, starts, &query, x, &value)));
            let by_value = slope(&value, |x| weigh(definition(shape, starts, &query, &key, x)));
            assert!(worst(&d_query, &by_query) < 5e-6, "{}", worst(&d_query, &by_query));
            assert!(worst(&d_key, &by_key) < 5e-6, "{}", worst(&d_key, &by_key));
            assert!(worst(&d_value, &by_value) < 5e-6, "{}", worst(&d_value, &by_value));
        }
    }

    #[test]
    fn follows_the_definition_and_its_slope() {
        check(AttentionShape { batch: 2, n_heads: 4, n_kv_heads: 2, seq: 7, d_head: 4 }, None, true);
        check(AttentionShape { batch: 1, n_heads: 1, n_kv_heads: 1, seq: 1, d_head: 2 }, None, true);
    }

    #[test]
    fn blocks_join_without_a_seam() {
        for seq in [63, 64, 65, 130] {
            check(AttentionShape { batch: 1, n_heads: 2, n_kv_heads: 1, seq, d_head: 8 }, None, false);
        }
        check(AttentionShape { batch: 1, n_heads: 1, n_kv_heads: 1, seq: 67, d_head: 2 }, None, true);
    }

    #[test]
    fn documents_of_a_row_do_not_see_each_other() {
        let starts = [0, 0, 0, 3, 3, 5, 6, 0, 1, 1, 1, 1, 1, 1];
        let shape = AttentionShape { batch: 2, n_heads: 4, n_kv_heads: 2, seq: 7, d_head: 4 };
        check(shape, Some(&starts), true);
        // A document that begins inside a block of queries, and one that begins in the block before.
        let starts: Vec<u32> =
            (0..130).map(|i| [0, 50, 100][usize::from(i >= 50) + usize::from(i >= 100)]).collect();
        let shape = AttentionShape { batch: 1, n_heads: 1, n_kv_heads: 1, seq: 130, d_head: 2 };
        check(shape, Some(&starts), true);
    }

    #[test]
    #[should_panic(expected = "a document begins")]
    fn a_document_from_the_future_is_refused() {
        let shape = AttentionShape { batch: 1, n_heads: 1, n_kv_heads: 1, seq: 2, d_head: 2 };
        let (x, mut mix, mut sums) = ([0.0; 4], [0.0; 4], [0.0; 2]);
        attention(shape, Some(&[1, 1]), &x, &x, &x, &mut mix, &mut sums);
    }
}
