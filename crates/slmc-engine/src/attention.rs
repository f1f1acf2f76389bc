//! Causal attention over the cache: what is shared out to whom.
//!
//! Keys are taken in spans, and what the spans come to is put together in their order: a row gives the same bits
//! whether it comes alone or among others. A few rows are cut into spans, so that one head keeps several threads
//! busy; of many rows a task takes some, and all spans.

use std::sync::Mutex;

use slmc_ir::ModelSpec;
use slmc_kernels::{
    Team,
    cached::{HALF_ROWS, HalfAttention, HalfPanels, HalfRows, STRETCH, Side, Softmax},
    packed::HalfKernels,
};

use crate::{
    cache::{Element, Layer},
    share::{for_chunks, for_each_part, free_slot, lock, sized},
};

/// Batches of at most so many rows are cut into spans.
pub(crate) const FEW_ROWS: usize = 8;
/// Keys of a span: what one task of a single row goes through.
const SPAN: usize = STRETCH;
/// Positions of a task of many rows.
const POSITIONS: usize = 16;

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
    spans: Vec<Mutex<Softmax>>,
    /// One for each thread.
    slots: Vec<Mutex<Slot>>,
    /// Keys, then values, of every head, in bf16: of tokens that are read, where the CPU has units for it.
    panels: Vec<[HalfPanels; 2]>,
    half_slots: Vec<Mutex<HalfAttention>>,
}

/// Buffers of a task that takes all spans: one span's, and those before it.
#[derive(Debug, Default)]
struct Slot {
    span: Softmax,
    all: Softmax,
}

impl Attention {
    pub fn new(spec: &ModelSpec, n_sequences: usize, capacity: usize, n_threads: usize) -> Self {
        let group = spec.n_heads / spec.n_kv_heads;
        let heads = Heads { n_kv: spec.n_kv_heads, group, d: spec.d_head, capacity };
        let softmax = |n_rows| {
            let mut state = Softmax::default();
            state.reset(n_rows, heads.d);
            state
        };
        let n_spans = n_sequences * heads.n_kv * capacity.div_ceil(SPAN);
        let slot = || Slot { span: softmax(group), all: softmax(group) };
        Self {
            heads,
            queries: Vec::new(),
            mixes: Vec::new(),
            spans: (0..n_spans).map(|_| Mutex::new(softmax(group))).collect(),
            slots: (0..n_threads).map(|_| Mutex::new(slot())).collect(),
            panels: Vec::new(),
            half_slots: (0..n_threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// Gives back what many rows took.
    pub fn shrink(&mut self) {
        (self.queries, self.mixes, self.panels) = (Vec::new(), Vec::new(), Vec::new());
        self.half_slots.iter().for_each(|slot| *lock(slot) = HalfAttention::default());
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
                self.rows_apart(layer, &[first + row], (row, n_rows), out, team);
            }
        } else {
            self.many_rows(layer, first, n_rows, out, team);
        }
    }

    /// As [`Attention::run`], in bf16.
    pub fn run_half<T: Element>(
        &mut self,
        kernels: HalfKernels,
        layer: &Layer<T>,
        first: usize,
        out: &mut [f32],
        team: &Team,
    ) {
        let Heads { n_kv, group, d, .. } = self.heads;
        let width = group * d;
        let n_rows = out.len() / (n_kv * width);
        self.panels.resize_with(n_kv, Default::default);
        let panels = self.panels.iter_mut().flatten();
        for_each_part(Some(team), panels, &|i, panels| {
            panels.set(kernels, layer.head(i / 2), [Side::Keys, Side::Values][i % 2], first + n_rows);
        });
        let (panels, slots, queries) = (&self.panels, &self.half_slots, &self.queries);
        let mixes = sized(&mut self.mixes, n_kv * n_rows * width);
        let (n_parts, part_len) = ((n_rows * group).div_ceil(HALF_ROWS), HALF_ROWS * d);
        let mut parts = Vec::with_capacity(n_kv * n_parts);
        for head in mixes.chunks_exact_mut(n_rows * width) {
            parts.extend(head.chunks_mut(part_len).map(Mutex::new));
        }
        team.run(parts.len(), &|task| {
            // The longest first, so that the threads end together.
            let task = parts.len() - 1 - task;
            let (kv, row) = (task % n_kv, task / n_kv * HALF_ROWS);
            let mut part = lock(&parts[kv * n_parts + row / HALF_ROWS]);
            let queries = &queries[kv * n_rows * width + row * d..][..part.len()];
            let rows = HalfRows { queries, d, group, first: first * group + row };
            let [keys, values] = &panels[kv];
            free_slot(slots).attend(kernels, [keys, values], rows, &mut part);
        });
        drop(parts);
        self.put_in_rows(out, n_rows, team);
    }

    /// As [`Attention::run`], of rows that are each the last of a sequence of its own, at these positions. The bits
    /// are those of the row alone.
    pub fn run_apart<T: Element>(&self, layer: &Layer<T>, positions: &[usize], out: &mut [f32], team: &Team) {
        self.rows_apart(layer, positions, (0, positions.len()), out, team);
    }

    /// Rows of the batch from `first_row` of `n_rows` on, one of each of the first sequences.
    fn rows_apart<T: Element>(
        &self,
        layer: &Layer<T>,
        positions: &[usize],
        (first_row, n_rows): (usize, usize),
        out: &mut [f32],
        team: &Team,
    ) {
        let Heads { n_kv, group, d, capacity } = self.heads;
        let n_heads = positions.len() * n_kv;
        let n_spans = capacity.div_ceil(SPAN);
        let n_most = positions.iter().fold(0, |most, &position| most.max(position + 1)).div_ceil(SPAN);
        team.run(n_heads * n_most, &|task| {
            let (head, span) = (task / n_most, task % n_most);
            let (sequence, kv) = (head / n_kv, head % n_kv);
            let position = positions[sequence];
            let (from, to) = (span * SPAN, (position + 1).min((span + 1) * SPAN));
            if from < to {
                let row = first_row + sequence;
                let queries = &self.queries[(kv * n_rows + row) * group * d..][..group * d];
                let mut state = lock(&self.spans[head * n_spans + span]);
                state.reset(group, d);
                state.absorb(queries, group, position, layer.head(head), from..to);
            }
        });
        let mut slot = free_slot(&self.slots);
        for (head, out) in out.chunks_exact_mut(group * d).enumerate() {
            let n = (positions[head / n_kv] + 1).div_ceil(SPAN);
            slot.all.reset(group, d);
            for span in &self.spans[head * n_spans..][..n] {
                slot.all.merge(&lock(span));
            }
            out.chunks_exact_mut(d).enumerate().for_each(|(g, out)| slot.all.finish(g, out));
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
        let Heads { n_kv, group, d, .. } = self.heads;
        let width = group * d;
        let (slots, queries) = (&self.slots, &self.queries[..n_kv * n_rows * width]);
        let mixes = sized(&mut self.mixes, n_kv * n_rows * width);
        // Rows of a head after each other; the last part of a head may be shorter.
        let n_parts = n_rows.div_ceil(POSITIONS);
        let mut parts = Vec::with_capacity(n_kv * n_parts);
        for head in mixes.chunks_exact_mut(n_rows * width) {
            parts.extend(head.chunks_mut(POSITIONS * width).map(Mutex::new));
        }
        team.run(parts.len(), &|task| {
            // The longest first, so that the threads end together.
            let task = parts.len() - 1 - task;
            let (kv, row) = (task % n_kv, task / n_kv * POSITIONS);
            let mut part = lock(&parts[kv * n_parts + row / POSITIONS]);
            let queries = &queries[(kv * n_rows + row) * width..][..part.len()];
            let (position, n) = (first + row, queries.len() / d);
            let mut slot = free_slot(slots);
            let Slot { span, all } = &mut *slot;
            all.reset(n, d);
            let n_keys = position + n / group;
            for from in (0..n_keys).step_by(SPAN) {
                span.reset(n, d);
                span.absorb(queries, group, position, layer.head(kv), from..n_keys.min(from + SPAN));
                all.merge(span);
            }
            part.chunks_exact_mut(d).enumerate().for_each(|(row, out)| all.finish(row, out));
        });
        drop(parts);
        self.put_in_rows(out, n_rows, team);
    }

    /// The mixes of all heads, row after row.
    fn put_in_rows(&self, out: &mut [f32], n_rows: usize, team: &Team) {
        let Heads { n_kv, group, d, .. } = self.heads;
        let (width, mixes) = (group * d, &self.mixes);
        for_chunks(Some(team), out, n_kv * width, &|row, out| {
            for (kv, out) in out.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&mixes[(kv * n_rows + row) * width..][..width]);
            }
        });
    }
}
