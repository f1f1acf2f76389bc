//! Rows of activations as the products read them.

use std::ops::Range;

use crate::{
    Team,
    amx::{ByteTiles, HalfTiles},
    dispatch::{dispatched, sum_pairs},
    exp::exp,
    half::panels::{EMPTY, Pairs, Tile, rounded_pairs},
};

use super::{PackedMatrix, layout::BLOCK, out::SharedOut};
#[cfg(target_arch = "x86_64")]
use super::{
    ROWS,
    half_tiles::{GATED, TASK_TOKENS},
    select::half_weights,
};

/// How activations are held while they are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Blocks of 32 int8 with one f32 scale each, as fast as the CPU goes.
    #[default]
    Int8,
    /// f32: the weights as they decode, to compare with.
    Float,
    /// bf16, and sums in f32, for many rows and matrices of levels: faster than int8 and closer to `Float`, where the CPU
    /// has units for it.
    Half(HalfKernels),
}

/// Proof that this CPU multiplies packed weights with bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfKernels {
    tiles: HalfTiles,
    vectors: Vectors,
}

/// The registers beside the tiles.
#[cfg(target_arch = "x86_64")]
type Vectors = super::Avx512;
/// No value of [`HalfKernels`] exists elsewhere.
#[cfg(not(target_arch = "x86_64"))]
type Vectors = super::Portable;

impl HalfKernels {
    pub(crate) fn tiles(self) -> HalfTiles {
        self.tiles
    }

    pub(crate) fn vectors(self) -> Vectors {
        self.vectors
    }

    /// The proof, where this CPU has the units and the system lets us use them.
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return (std::arch::is_x86_feature_detected!("avx512bf16"))
            .then(|| Some(Self { tiles: HalfTiles::detect()?, vectors: super::Avx512::detect()? }))
            .flatten();
        #[cfg(not(target_arch = "x86_64"))]
        None
    }
}

/// 32 numbers of a row: `scale · q`, with `q` in -127..=127.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(16))]
pub(crate) struct Quants {
    /// The integers, as bytes of two's complement, four columns at a time.
    pub quants: [[u8; 4]; BLOCK / 4],
    pub scale: f32,
    /// `scale · Σ q`: what the weights' minimums are multiplied by.
    pub weighted_sum: f32,
    /// `−Σ q`: what the weights' offset is multiplied by.
    pub minus_sum: i32,
    /// `−Σ q` of the first sixteen, and of the others.
    pub minus_halves: [i16; 2],
}

/// Rows whose scales are kept beside each other, too: what a tile of AMX multiplies at once.
pub(super) const GROUP: usize = 16;

/// Scales of one block of [`GROUP`] rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct GroupScales {
    pub scales: [f32; GROUP],
    pub weighted_sums: [f32; GROUP],
}

/// Rows of activations, ready for products with any number of matrices of as many columns.
#[derive(Clone, Debug)]
pub struct Activations {
    /// `[row][block]`, the last block of a row padded with zeros. Empty when they are held as floats.
    pub(super) blocks: Vec<Quants>,
    /// `[group][block]` of rows that make whole groups. Empty where there are no tiles to multiply them.
    pub(super) groups: Vec<GroupScales>,
    /// `[row][column]`. Empty when they are held as integers.
    pub(super) floats: Vec<f32>,
    /// `[group][block]` in tiles of bf16, a line a row; what the last group has no row for is of any content.
    pub(super) halves: Vec<Tile>,
    n_rows: usize,
    n_columns: usize,
    precision: Precision,
}

/// Rows of one task when rows are shared out.
const ROWS_PER_TASK: usize = GROUP;

/// Below this a block counts as zero: the inverse of its scale would be infinite.
const SMALLEST: f32 = 1e-30;

/// Blocks whose numbers are made before the first is quantized: what makes them then has no sum to wait for.
const BLOCKS_AHEAD: usize = 16;

/// A row's blocks of 32 numbers, the last padded with zeros: `fill` gives the numbers of some columns, and `put` takes those of a
/// block in.
#[inline(always)]
fn in_blocks<T>(
    blocks: &mut [T],
    n_columns: usize,
    fill: impl Fn(Range<usize>, &mut [f32]),
    put: impl Fn(&mut T, &[f32; BLOCK]),
) {
    const AHEAD: usize = BLOCKS_AHEAD * BLOCK;
    let mut numbers = [[0.0; BLOCK]; BLOCKS_AHEAD];
    for (i, blocks) in blocks.chunks_mut(BLOCKS_AHEAD).enumerate() {
        let columns = i * AHEAD..n_columns.min((i + 1) * AHEAD);
        let (made, padding) = numbers.as_flattened_mut().split_at_mut(columns.len());
        fill(columns, made);
        padding.fill(0.0);
        for (block, numbers) in blocks.iter_mut().zip(&numbers) {
            put(block, numbers);
        }
    }
}

/// The inverse of a row's root mean square.
#[inline(always)]
fn inverse_norm(row: &[f32], eps: f32) -> f32 {
    let mean_square = sum_pairs(row, row, |a, b| a * b) / row.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}

// No index to check in what follows: such loops vectorize.

#[inline(always)]
fn put_normed(row: &[f32], gain: &[f32], inverse: f32, to: &mut [f32]) {
    for ((to, x), gain) in to.iter_mut().zip(row).zip(gain) {
        *to = x * inverse * gain;
    }
}

#[inline(always)]
fn put_gated(gates: &[f32], ups: &[f32], to: &mut [f32]) {
    for ((to, &gate), &up) in to.iter_mut().zip(gates).zip(ups) {
        *to = gated(gate, up);
    }
}

dispatched! {
    /// Quantizes rows of `n_columns`, rounding to the nearest integer, ties to even. A block with a NaN or an
    /// infinity gets such a scale, so that its products are not finite either.
    fn quantize(rows: &[f32], blocks: &mut [Quants], n_columns: usize) {
        let blocks = blocks.chunks_exact_mut(n_columns.div_ceil(BLOCK));
        for (row, blocks) in rows.chunks_exact(n_columns).zip(blocks) {
            let fill = |columns: Range<usize>, to: &mut [f32]| to.copy_from_slice(&row[columns]);
            in_blocks(blocks, n_columns, fill, |block, numbers| *block = quantize_block(numbers));
        }
    }
}

dispatched! {
    fn quantize_normed(rows: &[f32], gain: &[f32], eps: f32, blocks: &mut [Quants]) {
        let blocks = blocks.chunks_exact_mut(gain.len().div_ceil(BLOCK));
        for (row, blocks) in rows.chunks_exact(gain.len()).zip(blocks) {
            let inverse = inverse_norm(row, eps);
            let fill = |columns: Range<usize>, to: &mut [f32]| {
                put_normed(&row[columns.clone()], &gain[columns], inverse, to);
            };
            in_blocks(blocks, gain.len(), fill, |block, numbers| *block = quantize_block(numbers));
        }
    }
}

dispatched! {
    fn norm(rows: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(gain.len()).zip(out.chunks_exact_mut(gain.len())) {
            put_normed(row, gain, inverse_norm(row, eps), out);
        }
    }
}

dispatched! {
    fn quantize_gated(gates: &[f32], ups: &[f32], blocks: &mut [Quants], n_columns: usize) {
        let blocks = blocks.chunks_exact_mut(n_columns.div_ceil(BLOCK));
        let rows = gates.chunks_exact(n_columns).zip(ups.chunks_exact(n_columns));
        for ((gates, ups), blocks) in rows.zip(blocks) {
            let fill = |columns: Range<usize>, to: &mut [f32]| {
                put_gated(&gates[columns.clone()], &ups[columns], to);
            };
            in_blocks(blocks, n_columns, fill, |block, numbers| *block = quantize_block(numbers));
        }
    }
}

dispatched! {
    fn gate(gates: &[f32], ups: &[f32], out: &mut [f32]) {
        put_gated(gates, ups, out);
    }
}

/// `silu(gate) · up`.
#[inline(always)]
pub(super) fn gated(gate: f32, up: f32) -> f32 {
    gate / (1.0 + exp(-gate)) * up
}

#[inline(always)]
fn quantize_block(numbers: &[f32; BLOCK]) -> Quants {
    // Adding 1.5 · 2^23 leaves the nearest integer, ties to even, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // As integers, magnitudes are in order, and NaN is above infinity.
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    let largest = f32::from_bits(numbers.iter().map(magnitude).fold(0, u32::max));
    if largest < SMALLEST {
        return Quants::default();
    }
    let (scale, inverse) = (largest / 127.0, 127.0 / largest);
    // Each step its own loop over whole registers, which the compiler vectorizes.
    let mut wide = [0_i32; BLOCK];
    for i in 0..BLOCK {
        wide[i] = i32::from((numbers[i] * inverse + ROUND).to_bits() as i8);
    }
    let sums = [&wide[..BLOCK / 2], &wide[BLOCK / 2..]].map(|half| half.iter().sum::<i32>());
    let mut quants = [[0; 4]; BLOCK / 4];
    for (q, &wide) in quants.as_flattened_mut().iter_mut().zip(&wide) {
        *q = wide as u8;
    }
    let sum = sums[0] + sums[1];
    Quants {
        quants,
        scale,
        weighted_sum: scale * sum as f32,
        minus_sum: -sum,
        minus_halves: sums.map(|sum| -sum as i16),
    }
}

dispatched! {
    /// Rounds up to sixteen rows of `n_columns`, one to each line of a group's tiles.
    fn halve(rows: &[f32], tiles: &mut [Tile], n_columns: usize) {
        for (line, row) in rows.chunks_exact(n_columns).enumerate() {
            let fill = |columns: Range<usize>, to: &mut [f32]| to.copy_from_slice(&row[columns]);
            in_blocks(tiles, n_columns, fill, |tile, numbers| tile[line] = Pairs(rounded_pairs(numbers)));
        }
    }
}

dispatched! {
    fn halve_normed(rows: &[f32], gain: &[f32], eps: f32, tiles: &mut [Tile]) {
        for (line, row) in rows.chunks_exact(gain.len()).enumerate() {
            let inverse = inverse_norm(row, eps);
            let fill = |columns: Range<usize>, to: &mut [f32]| {
                put_normed(&row[columns.clone()], &gain[columns], inverse, to);
            };
            in_blocks(tiles, gain.len(), fill, |tile, numbers| tile[line] = Pairs(rounded_pairs(numbers)));
        }
    }
}

dispatched! {
    fn halve_gated(gates: &[f32], ups: &[f32], tiles: &mut [Tile], line: usize) {
        let fill = |columns: Range<usize>, to: &mut [f32]| {
            put_gated(&gates[columns.clone()], &ups[columns], to);
        };
        in_blocks(tiles, gates.len(), fill, |tile, numbers| tile[line] = Pairs(rounded_pairs(numbers)));
    }
}

/// Puts the scales of a group's rows beside each other.
fn group(blocks: &[Quants], groups: &mut [GroupScales]) {
    for (row, blocks) in blocks.chunks_exact(groups.len()).take(GROUP).enumerate() {
        for (block, group) in blocks.iter().zip(&mut *groups) {
            group.scales[row] = block.scale;
            group.weighted_sums[row] = block.weighted_sum;
        }
    }
}

/// Where some rows go.
enum Part<'a> {
    Int8(&'a mut [Quants]),
    Float(&'a mut [f32]),
    /// The tiles of up to sixteen rows.
    Half(&'a mut [Tile]),
}

impl Activations {
    /// Room for rows of `n_columns`; none yet.
    pub fn new(n_columns: usize, precision: Precision) -> Self {
        Self {
            blocks: Vec::new(),
            groups: Vec::new(),
            floats: Vec::new(),
            halves: Vec::new(),
            n_rows: 0,
            n_columns,
            precision,
        }
    }

    /// Takes rows in, in the place of those before. Allocates only when there are more than ever before.
    ///
    /// # Panics
    /// When `rows` are not whole rows.
    pub fn set(&mut self, rows: &[f32]) {
        self.resize(self.rows_of(rows));
        match self.precision {
            _ if rows.is_empty() => {}
            Precision::Int8 => quantize(rows, &mut self.blocks, self.n_columns),
            Precision::Float => self.floats.copy_from_slice(rows),
            Precision::Half(_) => {
                let groups = self.halves.chunks_exact_mut(self.n_columns.div_ceil(BLOCK));
                for (rows, tiles) in rows.chunks(GROUP * self.n_columns).zip(groups) {
                    halve(rows, tiles, self.n_columns);
                }
            }
        }
        let n_blocks = self.n_columns.div_ceil(BLOCK);
        for (i, groups) in self.groups.chunks_exact_mut(n_blocks.max(1)).enumerate() {
            group(&self.blocks[i * GROUP * n_blocks..], groups);
        }
    }

    /// As [`Activations::set`], the rows shared out: the same bits.
    ///
    /// # Panics
    /// When `rows` are not whole rows.
    pub fn set_with(&mut self, rows: &[f32], team: &Team) {
        self.resize(self.rows_of(rows));
        let d = self.n_columns;
        self.fill(team, &|range, part| match part {
            Part::Int8(blocks) => quantize(&rows[range], blocks, d),
            Part::Float(floats) => floats.copy_from_slice(&rows[range]),
            Part::Half(tiles) => halve(&rows[range], tiles, d),
        });
    }

    /// Takes in what RMSNorm makes of rows ([`rms_norm`](crate::rms_norm)): the bits of norming, then setting.
    ///
    /// # Panics
    /// When `rows` are not whole rows, or `gain` is not one.
    pub fn set_rms_norm(&mut self, rows: &[f32], gain: &[f32], eps: f32, team: &Team) {
        assert_eq!(gain.len(), self.n_columns, "one gain a column");
        self.resize(self.rows_of(rows));
        self.fill(team, &|range, part| match part {
            Part::Int8(blocks) => quantize_normed(&rows[range], gain, eps, blocks),
            Part::Float(floats) => norm(&rows[range], gain, eps, floats),
            Part::Half(tiles) => halve_normed(&rows[range], gain, eps, tiles),
        });
    }

    /// Takes in `silu(gate) · up` of `n_rows` rows, of which `gate_up` gives both ([`swiglu`](crate::swiglu)): the bits of
    /// multiplying, then setting.
    ///
    /// # Panics
    /// When a gate or an up is not a row long.
    pub fn set_swiglu<'a>(
        &mut self,
        n_rows: usize,
        gate_up: &(dyn Fn(usize) -> [&'a [f32]; 2] + Sync),
        team: &Team,
    ) {
        let d = self.n_columns;
        self.resize(n_rows);
        self.fill(team, &|range, part| {
            let rows = range.start / d..range.end / d;
            let row = |row: usize| {
                let [gates, ups] = gate_up(row);
                assert!(gates.len() == d && ups.len() == d, "a gate and an up for each column");
                [gates, ups]
            };
            match part {
                Part::Int8(blocks) => {
                    for (r, blocks) in rows.zip(blocks.chunks_exact_mut(d.div_ceil(BLOCK))) {
                        let [gates, ups] = row(r);
                        quantize_gated(gates, ups, blocks, d);
                    }
                }
                Part::Float(floats) => {
                    for (r, floats) in rows.zip(floats.chunks_exact_mut(d)) {
                        let [gates, ups] = row(r);
                        gate(gates, ups, floats);
                    }
                }
                Part::Half(tiles) => {
                    for (i, r) in rows.enumerate() {
                        let [gates, ups] = row(r);
                        halve_gated(gates, ups, tiles, i);
                    }
                }
            }
        });
    }

    /// Takes in `silu(gate) · up` of products that are not kept: `gate_up` are the matrices of gates and of ups, each with the row
    /// where they begin, which `x` is multiplied with. Where that is one step, with both held in bf16; says whether it is, and
    /// does nothing otherwise. The bits of multiplying, then [`Activations::set_swiglu`].
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub fn set_gate_up(&mut self, gate_up: [(&PackedMatrix, usize); 2], x: &Self, team: &Team) -> bool {
        let d = self.n_columns;
        for (matrix, first) in gate_up {
            assert_eq!(matrix.n_columns(), x.n_columns, "the product's inner size");
            assert!(first <= matrix.n_rows() && d <= matrix.n_rows() - first, "a row for each column");
        }
        #[cfg(target_arch = "x86_64")]
        if let (Precision::Half(_), [Some((kernels, gates)), Some((_, ups))]) =
            (self.precision, gate_up.map(|(matrix, _)| half_weights(matrix, x)))
        {
            let firsts = gate_up.map(|(_, first)| first);
            if d.is_multiple_of(GATED) && firsts.iter().all(|first| first.is_multiple_of(ROWS)) {
                self.resize(x.n_rows);
                let [gates_at, ups_at] = firsts.map(|first| first / ROWS);
                let (weights, n_blocks) = ([(gates, gates_at), (ups, ups_at)], d / BLOCK);
                let halves = SharedOut::new(&mut self.halves);
                team.run(n_blocks * x.n_rows.div_ceil(TASK_TOKENS), &|task| {
                    let (block, first) = (task % n_blocks, task / n_blocks * TASK_TOKENS);
                    let tokens = first..x.n_rows.min(first + TASK_TOKENS);
                    // SAFETY: the value proves that the CPU has what the function is compiled for.
                    #[allow(unsafe_code)]
                    unsafe {
                        super::half_tiles::gate_up(kernels, &weights, x, &halves, block, n_blocks, tokens);
                    }
                });
                return true;
            }
        }
        let _ = team;
        false
    }

    /// Calls `make` for the numbers of some rows, until all rows are made.
    fn fill(&mut self, team: &Team, make: &(dyn Fn(Range<usize>, Part<'_>) + Sync)) {
        let (n_rows, d, precision) = (self.n_rows, self.n_columns, self.precision);
        let n_blocks = d.div_ceil(BLOCK);
        let (blocks, floats) = (SharedOut::new(&mut self.blocks), SharedOut::new(&mut self.floats));
        let halves = SharedOut::new(&mut self.halves);
        let n_groups = self.groups.len() / n_blocks.max(1);
        let groups = SharedOut::new(&mut self.groups);
        team.run(n_rows.div_ceil(ROWS_PER_TASK), &|task| {
            let first = task * ROWS_PER_TASK;
            let n = ROWS_PER_TASK.min(n_rows - first);
            // SAFETY: every task has rows of its own.
            #[allow(unsafe_code)]
            let part = unsafe {
                match precision {
                    Precision::Int8 => Part::Int8(blocks.part(first * n_blocks, n * n_blocks)),
                    Precision::Float => Part::Float(floats.part(first * d, n * d)),
                    Precision::Half(_) => Part::Half(halves.part(task * n_blocks, n_blocks)),
                }
            };
            make(first * d..(first + n) * d, part);
            if task < n_groups {
                // SAFETY: as above; a task's rows are a group's.
                #[allow(unsafe_code)]
                let (blocks, groups) = unsafe {
                    (blocks.part(first * n_blocks, n * n_blocks), groups.part(task * n_blocks, n_blocks))
                };
                group(blocks, groups);
            }
        });
    }

    /// Rows of this many numbers.
    fn rows_of(&self, rows: &[f32]) -> usize {
        assert!(rows.len().is_multiple_of(self.n_columns.max(1)), "whole rows of activations");
        rows.len() / self.n_columns.max(1)
    }

    fn resize(&mut self, n_rows: usize) {
        self.n_rows = n_rows;
        match self.precision {
            Precision::Int8 => {
                let n_blocks = self.n_columns.div_ceil(BLOCK);
                self.blocks.resize(n_rows * n_blocks, Quants::default());
                if ByteTiles::detect().is_some() {
                    self.groups.resize(n_rows / GROUP * n_blocks, GroupScales::default());
                }
            }
            Precision::Float => self.floats.resize(n_rows * self.n_columns, 0.0),
            Precision::Half(_) => {
                self.halves.resize(n_rows.div_ceil(GROUP) * self.n_columns.div_ceil(BLOCK), EMPTY);
            }
        }
    }

    /// Columns `first..` of one row as they are held, as f32.
    pub(super) fn dequantize(&self, row: usize, first: usize, out: &mut [f32]) {
        match self.precision {
            Precision::Float => {
                out.copy_from_slice(&self.floats[row * self.n_columns + first..][..out.len()])
            }
            Precision::Int8 => {
                let blocks = &self.blocks[row * self.n_columns.div_ceil(BLOCK)..];
                for (i, out) in out.iter_mut().enumerate() {
                    let (block, at) = (&blocks[(first + i) / BLOCK], (first + i) % BLOCK);
                    *out = block.scale * f32::from(block.quants[at / 4][at % 4].cast_signed());
                }
            }
            Precision::Half(_) => {
                let tiles = &self.halves[row / GROUP * self.n_columns.div_ceil(BLOCK)..];
                for (i, out) in out.iter_mut().enumerate() {
                    let (tile, at) = (&tiles[(first + i) / BLOCK], (first + i) % BLOCK);
                    let pair = tile[row % GROUP].0[at / 2];
                    *out = f32::from_bits(if at % 2 == 0 { pair << 16 } else { pair & 0xffff_0000 });
                }
            }
        }
    }

    /// Rows held.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Numbers in a row.
    pub fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// How they are held.
    pub fn precision(&self) -> Precision {
        self.precision
    }
}
