//! Products of packed weights and activations in bf16, sums in f32 (mixed precision, arXiv:1905.12322), in the tiles of
//! Intel's AMX: 32 tokens against the 32 rows of two tiles of weights.
//!
//! Weights are decoded, rounded to bf16 and laid out as the tiles take them, once for all tokens of a task. Each output is
//! one chain of sums over the whole inner size: neither threads, nor the way the work is cut, nor the tokens beside it
//! change a bit.

use std::{arch::x86_64::*, cell::Cell, ops::Range};

use super::{
    Activations, HalfKernels, ROWS, Simd,
    activations::{GROUP, gated},
    layout::{BLOCK, Layout},
    out::SharedOut,
    simd::avx512::Avx512,
};
use crate::{
    half::{
        amx::{SQUARE, Square, Tiles},
        panels::{EMPTY, Pairs, Tile, rounded_pairs},
    },
    matrix::Update,
};

/// Tiles of weights of a task.
pub(super) const TILES: usize = 2;
/// Tokens of a task: weights are decoded anew for the next.
pub(super) const TASK_TOKENS: usize = 512;
/// Blocks of the inner size that are decoded at once: two panels of them stay in the first-level cache.
const PANEL_BLOCKS: usize = 18;
/// Columns of what [`gate_up`] makes that a task makes: a line of a tile.
pub(super) const GATED: usize = BLOCK;

const _: () = assert!(SQUARE == 2 * GROUP && SQUARE == 2 * ROWS && SQUARE == BLOCK);

/// A matrix of levels, and what decodes some blocks of one of its tiles.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub levels: &'a [u8],
    pub scales: &'a [u8],
    pub n_rows: usize,
    pub n_blocks: usize,
    pub decode: Decode,
}

/// [`decode`] of a layout.
pub(super) type Decode = unsafe fn(Avx512, &Weights<'_>, usize, &Range<usize>, &mut [Tile]);

thread_local! {
    /// Kept for the next task: fresh memory comes zeroed, page by page.
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch { panels: Vec::new(), squares: Vec::new() }) };
}

#[derive(Default)]
struct Scratch {
    panels: Vec<Tile>,
    squares: Vec<Square>,
}

/// Blocks that are decoded at once, one stretch after the other.
fn stretches(n_blocks: usize) -> impl Iterator<Item = Range<usize>> {
    let n_stretches = n_blocks.div_ceil(PANEL_BLOCKS).max(1);
    let len = n_blocks.div_ceil(n_stretches).max(1);
    (0..n_blocks).step_by(len).map(move |first| first..n_blocks.min(first + len))
}

/// The groups of activations of up to 32 tokens.
fn groups<'a>(
    x: &'a Activations,
    n_blocks: usize,
    tokens: &Range<usize>,
    blocks: &Range<usize>,
) -> [&'a [Tile]; 2] {
    [0, 1].map(|i| {
        // The last may be the only one left: the other half of its square goes nowhere.
        let group = tokens.start / GROUP + if tokens.start + i * GROUP < tokens.end { i } else { 0 };
        &x.halves[group * n_blocks..][blocks.clone()]
    })
}

/// Many tokens against up to two tiles of weights.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) fn matmul(
    kernels: HalfKernels,
    weights: &Weights<'_>,
    x: &Activations,
    out: &SharedOut<'_, f32>,
    update: Update,
    tiles: Range<usize>,
    tokens: Range<usize>,
) {
    let held = Tiles::begin(kernels.tiles());
    let mut scratch = SCRATCH.take();
    let panels = &mut scratch.panels;
    for blocks in stretches(weights.n_blocks) {
        panels.resize(TILES * blocks.len(), EMPTY);
        for (tile, panel) in tiles.clone().zip(panels.chunks_exact_mut(blocks.len())) {
            // SAFETY: the value proves that the CPU has what the function is compiled for.
            #[allow(unsafe_code)]
            unsafe {
                (weights.decode)(kernels.vectors(), weights, tile, &blocks, panel);
            }
        }
        let (one, other) = panels.split_at(blocks.len());
        let update = if blocks.start == 0 { update } else { Update::Add };
        for first in tokens.clone().step_by(SQUARE) {
            let tokens = first..tokens.end.min(first + SQUARE);
            let groups = groups(x, weights.n_blocks, &tokens, &blocks);
            let place = Place { out, stride: weights.n_rows, row: tiles.start * ROWS, tokens };
            place.multiply(&held, groups, [one, other], update);
        }
    }
    SCRATCH.set(scratch);
}

/// Where up to 32 rows of up to 32 tokens of a product go. The task alone looks there.
struct Place<'a> {
    out: &'a SharedOut<'a, f32>,
    /// Rows of a token.
    stride: usize,
    row: usize,
    tokens: Range<usize>,
}

impl Place<'_> {
    #[inline]
    fn multiply(&self, held: &Tiles, groups: [&[Tile]; 2], panels: [&[Tile]; 2], update: Update) {
        let (stride, n_blocks) = (self.stride, panels[0].len());
        let n_rows = SQUARE.min(stride - self.row);
        let first = self.tokens.start * stride + self.row;
        if self.tokens.len() == SQUARE && n_rows == SQUARE {
            let place = self.out.place(first, (SQUARE - 1) * stride + SQUARE);
            // SAFETY: all of it inside the product, and nobody else looks at these rows of these tokens.
            #[allow(unsafe_code)]
            unsafe {
                held.multiply_to(groups, panels, n_blocks, place, stride, update);
            }
            return;
        }
        let line = |t: usize| {
            // SAFETY: as above, one line at a time.
            #[allow(unsafe_code)]
            unsafe {
                self.out.part(first + t * stride, n_rows)
            }
        };
        let mut square = Square::default();
        if update == Update::Add {
            (0..self.tokens.len()).for_each(|t| square[t][..n_rows].copy_from_slice(line(t)));
        }
        held.multiply_in(groups, panels, n_blocks, &mut square, update);
        (0..self.tokens.len()).for_each(|t| line(t).copy_from_slice(&square[t][..n_rows]));
    }
}

/// `silu(gate) · up` of many tokens, [`GATED`] columns of it, in bf16: gates' and ups' rows side by side in the squares, so that
/// neither goes to memory.
///
/// `gate_up` are both matrices and the tiles where the rows of the gates, and of the ups, begin; `out` are the tiles of as many
/// rows of activations as there are tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) fn gate_up(
    kernels: HalfKernels,
    gate_up: &[(Weights<'_>, usize); 2],
    x: &Activations,
    out: &SharedOut<'_, Tile>,
    block: usize,
    n_blocks_out: usize,
    tokens: Range<usize>,
) {
    let held = Tiles::begin(kernels.tiles());
    let mut scratch = SCRATCH.take();
    let Scratch { panels, squares } = &mut scratch;
    squares.resize_with(tokens.len().div_ceil(SQUARE), Square::default);
    let n_blocks = gate_up[0].0.n_blocks;
    for half in 0..GATED / ROWS {
        for blocks in stretches(n_blocks) {
            panels.resize(TILES * blocks.len(), EMPTY);
            for ((weights, first), panel) in gate_up.iter().zip(panels.chunks_exact_mut(blocks.len())) {
                let tile = first + block * GATED / ROWS + half;
                // SAFETY: the value proves that the CPU has what the function is compiled for.
                #[allow(unsafe_code)]
                unsafe {
                    (weights.decode)(kernels.vectors(), weights, tile, &blocks, panel);
                }
            }
            let (gates, ups) = panels.split_at(blocks.len());
            let update = if blocks.start == 0 { Update::Set } else { Update::Add };
            for (square, first) in squares.iter_mut().zip(tokens.clone().step_by(SQUARE)) {
                let tokens = first..tokens.end.min(first + SQUARE);
                let groups = groups(x, n_blocks, &tokens, &blocks);
                held.multiply_in(groups, [gates, ups], blocks.len(), square, update);
                if blocks.end < n_blocks {
                    continue;
                }
                for (token, sums) in tokens.zip(square.iter()) {
                    let (gates, ups) = sums.split_at(ROWS);
                    let mut numbers = [0.0; BLOCK];
                    for ((number, &gate), &up) in numbers.iter_mut().zip(gates).zip(ups) {
                        *number = gated(gate, up);
                    }
                    let pairs = rounded_pairs(&numbers);
                    let tile = out.place(token / GROUP * n_blocks_out + block, 1);
                    // SAFETY: inside a line of the tile, of which this task alone writes.
                    #[allow(unsafe_code)]
                    unsafe {
                        let line = tile.cast::<u32>().add(token % GROUP * GROUP + half * ROWS / 2);
                        std::ptr::copy_nonoverlapping(pairs.as_ptr(), line, ROWS / 2);
                    }
                }
            }
        }
    }
    SCRATCH.set(scratch);
}

/// Decodes some blocks of a tile of weights: pairs of columns, sixteen rows in each line.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) fn decode<L: Layout>(
    s: Avx512,
    weights: &Weights<'_>,
    tile: usize,
    blocks: &Range<usize>,
    panel: &mut [Tile],
) {
    let n_blocks = weights.n_blocks;
    let levels = &weights.levels[tile * n_blocks * L::LEVELS..][..n_blocks * L::LEVELS];
    let scales = &weights.scales[tile * n_blocks / L::UNIT * L::SCALES..][..n_blocks / L::UNIT * L::SCALES];
    let mut bytes = [0_u8; 64];
    for (b, out) in blocks.clone().zip(panel) {
        let groups = L::groups(s, &levels[b * L::LEVELS..][..L::LEVELS]);
        let scales = &scales[b / L::UNIT * L::SCALES..][..L::SCALES];
        let (scale, min) = (L::scale(s, scales, b % L::UNIT), L::min(s, scales, b % L::UNIT));
        let halves = L::half_scales(s, scales, b % L::UNIT);
        let (lines, _) = out.as_chunks_mut::<8>();
        for (half, lines) in lines.iter_mut().enumerate() {
            let scale = if L::HALF_SCALES { s.mul(scale, s.to_floats(halves[half])) } else { scale };
            let base = s.fma(s.splat(-(L::OFFSET as f32)), scale, min);
            let (scale, base) = (four_times(scale), four_times(base));
            for (g, lines) in lines.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                s.store_bytes(groups[4 * half + g], &mut bytes);
                let (rows, _) = bytes.as_chunks::<16>();
                let mut fours = [s.splat(0.0); 4];
                for i in 0..4 {
                    fours[i] = s.fma(s.load_u8(&rows[i]), scale[i], base[i]);
                }
                *lines = pairs(fours);
            }
        }
    }
}

/// Each of sixteen numbers four times.
#[target_feature(enable = "avx512f")]
#[inline]
fn four_times(numbers: __m512) -> [__m512; 4] {
    let first = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let mut all = [numbers; 4];
    for (i, four) in all.iter_mut().enumerate() {
        *four = _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(4 * i as i32)), numbers);
    }
    all
}

/// Four columns of four rows each, rounded: the first two columns of all rows, and the other two.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn pairs(fours: [__m512; 4]) -> [Pairs; 2] {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    let [upper, lower] = [_mm512_cvtne2ps_pbh(fours[1], fours[0]), _mm512_cvtne2ps_pbh(fours[3], fours[2])];
    // SAFETY: each is 64 bytes of any bits.
    #[allow(unsafe_code)]
    unsafe {
        let [upper, lower] = [upper, lower].map(|bits| std::mem::transmute::<__m512bh, __m512i>(bits));
        let line = |bits: __m512i| Pairs(std::mem::transmute::<__m512i, [u32; 16]>(bits));
        let first = line(_mm512_permutex2var_epi32(upper, even, lower));
        [first, line(_mm512_permutex2var_epi32(upper, odd, lower))]
    }
}
