//! Causal attention over the cache, block by block of keys with a running maximum (Milakov and Gimelshein,
//! arXiv:1805.02867): scores of a whole sequence are never held.
//!
//! Two ways to the same numbers, to rounding. A few rows read the cache once for all query heads that share it, and
//! are cut into spans of keys, so that one head keeps several threads busy. Many rows are matrix products.
//! How the work is cut depends on positions alone.

use std::sync::Mutex;

use slmc_ir::ModelSpec;
use slmc_kernels::{Matrix, MatrixMut, Team, Update, multiply_one_thread};

use crate::{
    cache::{Element, Layer},
    loops::{add_scaled, dot, exp_shifted, maximum, scale},
    share::{for_chunks, free_slot, lock, sized},
};

/// Batches of at most so many rows go the way of single rows, and so give their bits.
pub(crate) const FEW_ROWS: usize = 8;
/// Keys of a span: what one task of a single row goes through.
const SPAN: usize = 256;
/// Keys whose scores are held at once in a single row's task.
const KEYS: usize = 64;
/// Query rows of a task of many rows.
const QUERY_ROWS: usize = 64;
/// Keys whose scores are held at once in a task of many rows.
const KEY_ROWS: usize = 256;

/// Sizes of the heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub n_kv: usize,
    /// Query heads that share a key and value head.
    pub group: usize,
    pub d: usize,
    /// Positions that the cache has room for.
    pub capacity: usize,
}

/// Buffers of attention.
#[derive(Debug)]
pub(crate) struct Attention {
    heads: Heads,
    /// Queries, rotated and scaled, `[n_kv, n_rows, group, d]`.
    pub queries: Vec<f32>,
    /// The mix of values in the same order: of many rows.
    mixes: Vec<f32>,
    /// One for each sequence, head and span.
    spans: Vec<Mutex<Span>>,
    /// One for each thread.
    slots: Vec<Mutex<Slot>>,
}

/// What a span of keys comes to, for each query head of the group.
#[derive(Debug)]
struct Span {
    state: Running,
    scores: Vec<f32>,
    wide: Vec<f32>,
}

/// A softmax in progress: largest score, sum of exponentials, and values weighted by them.
#[derive(Debug, Default)]
struct Running {
    largest: Vec<f32>,
    total: Vec<f32>,
    mix: Vec<f32>,
}

impl Running {
    fn reset(&mut self, n: usize, d: usize) {
        sized(&mut self.largest, n).fill(f32::NEG_INFINITY);
        sized(&mut self.total, n).fill(0.0);
        sized(&mut self.mix, n * d).fill(0.0);
    }

    /// Turns a row's scores into weights relative to its largest score so far.
    fn absorb(&mut self, row: usize, d: usize, scores: &mut [f32]) {
        let largest = self.largest[row].max(maximum(scores));
        let factor = (self.largest[row] - largest).exp();
        if factor != 1.0 {
            scale(&mut self.mix[row * d..(row + 1) * d], factor);
        }
        self.largest[row] = largest;
        self.total[row] = self.total[row] * factor + exp_shifted(scores, largest);
    }
}

/// Buffers of a task of many rows.
#[derive(Debug, Default)]
struct Slot {
    state: Running,
    scores: Vec<f32>,
    wide: Vec<f32>,
}

impl Attention {
    pub fn new(spec: &ModelSpec, n_sequences: usize, capacity: usize, n_threads: usize) -> Self {
        let group = spec.n_heads / spec.n_kv_heads;
        let heads = Heads { n_kv: spec.n_kv_heads, group, d: spec.d_head, capacity };
        let span = || {
            let mut state = Running::default();
            state.reset(group, heads.d);
            Mutex::new(Span { state, scores: vec![0.0; group * KEYS], wide: vec![0.0; heads.d] })
        };
        Self {
            heads,
            queries: Vec::new(),
            mixes: Vec::new(),
            spans: (0..n_sequences * heads.n_kv * capacity.div_ceil(SPAN)).map(|_| span()).collect(),
            slots: (0..n_threads).map(|_| Mutex::default()).collect(),
        }
    }

    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// The mix of values of rows at `first..`, `[n_rows, n_heads * d]` in `out`. The cache holds their keys and values.
    pub fn run<T: Element>(&mut self, layer: &Layer<T>, first: usize, out: &mut [f32], team: &Team) {
        let Heads { n_kv, group, d, .. } = self.heads;
        let n_rows = out.len() / (n_kv * group * d);
        if n_rows <= FEW_ROWS {
            for (row, out) in out.chunks_exact_mut(n_kv * group * d).enumerate() {
                self.one_row(layer, row, n_rows, first + row + 1, out, team);
            }
        } else {
            self.many_rows(layer, first, n_rows, out, team);
        }
    }

    /// As [`Attention::run`], of rows that are each the last of a sequence of its own, at these positions. The bits
    /// are those of the row alone.
    pub fn run_apart<T: Element>(&self, layer: &Layer<T>, positions: &[usize], out: &mut [f32], team: &Team) {
        let Heads { n_kv, group, d, capacity } = self.heads;
        let (n_rows, n_heads) = (positions.len(), positions.len() * n_kv);
        let n_spans = capacity.div_ceil(SPAN);
        let n_most = positions.iter().fold(0, |most, &position| most.max(position + 1)).div_ceil(SPAN);
        team.run(n_heads * n_most, &|task| {
            let (head, span) = (task / n_most, task % n_most);
            let (row, kv) = (head / n_kv, head % n_kv);
            let (from, to) = (span * SPAN, (positions[row] + 1).min((span + 1) * SPAN));
            if from < to {
                let queries = &self.queries[(kv * n_rows + row) * group * d..][..group * d];
                let place = (head * capacity + from) * d..(head * capacity + to) * d;
                let (keys, values) = (&layer.keys[place.clone()], &layer.values[place]);
                lock(&self.spans[head * n_spans + span]).run(queries, keys, values, d);
            }
        });
        for (head, out) in out.chunks_exact_mut(group * d).enumerate() {
            let n = (positions[head / n_kv] + 1).div_ceil(SPAN);
            for (g, out) in out.chunks_exact_mut(d).enumerate() {
                join(&self.spans[head * n_spans..][..n], g, out);
            }
        }
    }

    fn one_row<T: Element>(
        &self,
        layer: &Layer<T>,
        row: usize,
        n_rows: usize,
        n_keys: usize,
        out: &mut [f32],
        team: &Team,
    ) {
        let Heads { n_kv, group, d, capacity } = self.heads;
        let n_spans = n_keys.div_ceil(SPAN);
        team.run(n_kv * n_spans, &|task| {
            let (kv, span) = (task / n_spans, task % n_spans);
            let (from, to) = (span * SPAN, n_keys.min((span + 1) * SPAN));
            let queries = &self.queries[(kv * n_rows + row) * group * d..][..group * d];
            let keys = &layer.keys[(kv * capacity + from) * d..(kv * capacity + to) * d];
            let values = &layer.values[(kv * capacity + from) * d..(kv * capacity + to) * d];
            lock(&self.spans[task]).run(queries, keys, values, d);
        });
        for (kv, out) in out.chunks_exact_mut(group * d).enumerate() {
            let spans = &self.spans[kv * n_spans..(kv + 1) * n_spans];
            for (g, out) in out.chunks_exact_mut(d).enumerate() {
                join(spans, g, out);
            }
        }
    }

    fn many_rows<T: Element>(
        &mut self,
        layer: &Layer<T>,
        first: usize,
        n_rows: usize,
        out: &mut [f32],
        team: &Team,
    ) {
        let heads = self.heads;
        let Heads { n_kv, group, d, .. } = heads;
        let width = group * d;
        let (slots, queries) = (&self.slots, &self.queries[..n_kv * n_rows * width]);
        let mixes = sized(&mut self.mixes, n_kv * n_rows * width);
        // Blocks of rows of a head after each other; the last of a head may be shorter.
        let n_blocks = n_rows.div_ceil(QUERY_ROWS);
        let mut parts = Vec::with_capacity(n_kv * n_blocks);
        for head in mixes.chunks_exact_mut(n_rows * width) {
            parts.extend(head.chunks_mut(QUERY_ROWS * width).map(Mutex::new));
        }
        team.run(parts.len(), &|task| {
            // The longest first, so that the threads end together.
            let task = parts.len() - 1 - task;
            let (kv, row) = (task % n_kv, task / n_kv * QUERY_ROWS);
            let mut part = lock(&parts[kv * n_blocks + row / QUERY_ROWS]);
            let queries = &queries[(kv * n_rows + row) * width..][..part.len()];
            free_slot(slots).run(heads, layer, kv, first + row, queries, &mut part);
        });
        drop(parts);
        let mixes = &self.mixes;
        for_chunks(Some(team), out, n_kv * width, &|row, out| {
            for (kv, out) in out.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&mixes[(kv * n_rows + row) * width..][..width]);
            }
        });
    }
}

impl Span {
    /// Queries of a group, `[group, d]`, against keys and values `[n, d]`.
    fn run<T: Element>(&mut self, queries: &[f32], keys: &[T], values: &[T], d: usize) {
        let Self { state, scores, wide } = self;
        state.reset(queries.len() / d, d);
        for (keys, values) in keys.chunks(KEYS * d).zip(values.chunks(KEYS * d)) {
            let n = keys.len() / d;
            for (j, key) in keys.chunks_exact(d).enumerate() {
                let key = T::widen(key, wide);
                for (g, query) in queries.chunks_exact(d).enumerate() {
                    scores[g * KEYS + j] = dot(query, key);
                }
            }
            for (g, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
                state.absorb(g, d, &mut scores[..n]);
            }
            for (j, value) in values.chunks_exact(d).enumerate() {
                let value = T::widen(value, wide);
                for (g, mix) in state.mix.chunks_exact_mut(d).enumerate() {
                    add_scaled(mix, scores[g * KEYS + j], value);
                }
            }
        }
    }
}

/// The mix of all spans of a query head, in their order.
fn join(spans: &[Mutex<Span>], g: usize, out: &mut [f32]) {
    let largest = spans.iter().fold(f32::NEG_INFINITY, |m, span| m.max(lock(span).state.largest[g]));
    let d = out.len();
    let mut total = 0.0;
    out.fill(0.0);
    for span in spans {
        let state = &lock(span).state;
        let factor = (state.largest[g] - largest).exp();
        total += state.total[g] * factor;
        add_scaled(out, factor, &state.mix[g * d..(g + 1) * d]);
    }
    scale(out, 1.0 / total);
}

impl Slot {
    /// Query rows `[n, group, d]` at positions `position..`; their mix in `out`.
    fn run<T: Element>(
        &mut self,
        heads: Heads,
        layer: &Layer<T>,
        kv: usize,
        position: usize,
        queries: &[f32],
        out: &mut [f32],
    ) {
        let Heads { group, d, capacity, .. } = heads;
        let n_rows = queries.len() / d;
        let n_keys = position + n_rows / group;
        self.state.reset(n_rows, d);
        let Self { state, scores, wide } = self;
        for from in (0..n_keys).step_by(KEY_ROWS) {
            let n = KEY_ROWS.min(n_keys - from);
            let place = (kv * capacity + from) * d..(kv * capacity + from + n) * d;
            let room = sized(wide, KEY_ROWS * d);
            let keys = Matrix::new(T::widen(&layer.keys[place.clone()], room), n, d);
            let scores = sized(scores, n_rows * n);
            let product = MatrixMut::new(scores, n_rows, n);
            multiply_one_thread(Matrix::new(queries, n_rows, d), keys.transposed(), product, Update::Set);
            for (row, scores) in scores.chunks_exact_mut(n).enumerate() {
                let n_seen = (position + row / group + 1).saturating_sub(from).min(n);
                scores[n_seen..].fill(0.0);
                if n_seen > 0 {
                    state.absorb(row, d, &mut scores[..n_seen]);
                }
            }
            let values = Matrix::new(T::widen(&layer.values[place], room), n, d);
            let mix = MatrixMut::new(&mut state.mix[..n_rows * d], n_rows, d);
            multiply_one_thread(Matrix::new(scores, n_rows, n), values, mix, Update::Add);
        }
        for (row, out) in out.chunks_exact_mut(d).enumerate() {
            out.copy_from_slice(&state.mix[row * d..(row + 1) * d]);
            scale(out, 1.0 / state.total[row]);
        }
    }
}
