//! Products of packed levels and int8 activations.
//!
//! For each block of 32 columns, in their order: an exact integer sum `dot = Σ (level − offset) · q`, then
//! `out = fma(dot, weight_scale · x_scale, out)`, and with minimums `out = fma(min, x_scale · Σ q, out)`. Every
//! path below keeps that order, so the bits depend neither on the instruction set nor on the path.

use std::{cell::Cell, ops::Range};

use super::{
    activations::{Activations, Quants},
    layout::Layout,
    out::SharedOut,
    simd::{ROWS, Simd, groups_a_sum},
};

/// A laid-out matrix, activations, and where the product goes.
pub(super) struct Operands<'a> {
    pub levels: &'a [u8],
    pub scales: &'a [u8],
    pub n_rows: usize,
    pub n_blocks: usize,
    pub x: &'a Activations,
    pub out: &'a SharedOut<'a, f32>,
}

impl<'a> Operands<'a> {
    pub(super) fn tile_levels<L: Layout>(&self, tile: usize) -> &'a [u8] {
        let n = self.n_blocks * L::LEVELS;
        &self.levels[tile * n..(tile + 1) * n]
    }

    pub(super) fn tile_scales<L: Layout>(&self, tile: usize) -> &'a [u8] {
        let n = self.n_blocks / L::UNIT * L::SCALES;
        &self.scales[tile * n..(tile + 1) * n]
    }

    fn row(&self, token: usize) -> &'a [Quants] {
        &self.x.blocks[token * self.n_blocks..(token + 1) * self.n_blocks]
    }

    /// The part of the output of one token and one tile: fewer than sixteen rows at the matrix's end, and none after.
    #[inline(always)]
    pub(super) fn out(&self, token: usize, tile: usize) -> &'a mut [f32] {
        let first = (tile * ROWS).min(self.n_rows);
        let n = ROWS.min(self.n_rows - first);
        // SAFETY: the caller's task alone writes these tiles of these tokens, and looks at one part at a time.
        #[allow(unsafe_code)]
        unsafe {
            self.out.part(token * self.n_rows + first, n)
        }
    }
}

#[inline(always)]
pub(super) fn store<S: Simd>(s: S, sums: S::Floats, out: &mut [f32]) {
    if let Ok(out) = <&mut [f32; ROWS]>::try_from(&mut *out) {
        s.store(sums, out);
    } else {
        let mut all = [0.0; ROWS];
        s.store(sums, &mut all);
        out.copy_from_slice(&all[..out.len()]);
    }
}

#[inline(always)]
pub(super) fn load<S: Simd>(s: S, out: &[f32]) -> S::Floats {
    if let Ok(out) = <&[f32; ROWS]>::try_from(out) {
        s.load(out)
    } else {
        let mut all = [0.0; ROWS];
        all[..out.len()].copy_from_slice(out);
        s.load(&all)
    }
}

/// What the sum of a block begins with: the offset's share. `centred` when levels are taken as `level - 128`.
#[inline(always)]
fn start<S: Simd, L: Layout>(s: S, x: &Quants, half_scales: &[S::Ints; 3], centred: bool) -> S::Ints {
    if L::OFFSET == 0 || centred {
        return s.splat_int(0);
    }
    // A shift does it: all offsets are powers of two.
    match L::OFFSET {
        8 => s.splat_shifted::<3>(x.minus_sum),
        16 => s.splat_shifted::<4>(x.minus_sum),
        32 if L::HALF_SCALES => s.shift_left::<5>(s.half_sums(x.minus_halves, half_scales)),
        128 => s.splat_shifted::<7>(x.minus_sum),
        _ => unreachable!("no format has another offset"),
    }
}

/// How far ahead levels are asked for, in bytes.
const AHEAD: usize = 2048;

/// A few tokens against `tiles`: every level is read once and used at once.
#[inline(always)]
pub(super) fn matvec<S: Simd, L: Layout, const T: usize>(s: S, operands: &Operands<'_>, tiles: Range<usize>) {
    let mut rows = [&[] as &[Quants]; T];
    for (t, row) in rows.iter_mut().enumerate() {
        *row = operands.row(t);
    }
    for tile in tiles {
        let levels = operands.tile_levels::<L>(tile).chunks_exact(L::LEVELS);
        let scales = operands.tile_scales::<L>(tile);
        let mut sums = [s.splat(0.0); T];
        for (b, levels) in levels.enumerate() {
            for line in 0..L::LEVELS / 64 {
                s.prefetch(levels.as_ptr().wrapping_add(AHEAD + 64 * line));
            }
            let scales = &scales[b / L::UNIT * L::SCALES..][..L::SCALES];
            let groups = L::groups(s, levels);
            let scale = L::scale(s, scales, b % L::UNIT);
            let min = L::min(s, scales, b % L::UNIT);
            let half_scales = L::half_scales(s, scales, b % L::UNIT);
            for t in 0..T {
                let x = &rows[t][b];
                let dot = block_dot::<S, L>(s, &groups, &half_scales, x);
                sums[t] = s.fma(s.to_floats(dot), s.mul(scale, s.splat(x.scale)), sums[t]);
                if L::HAS_MINS {
                    sums[t] = s.fma(min, s.splat(x.weighted_sum), sums[t]);
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            store(s, sums, operands.out(t, tile));
        }
    }
}

// Indices are what registers are: the loops become straight lines.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn block_dot<S: Simd, L: Layout>(
    s: S,
    groups: &[S::Bytes; 8],
    half_scales: &[S::Ints; 3],
    x: &Quants,
) -> S::Ints {
    let mut dot = start::<S, L>(s, x, half_scales, S::CENTRES_WIDE && L::WIDE);
    if L::WIDE {
        for g in 0..8 {
            dot = s.dot::<true>(dot, groups[g], s.splat_bytes(x.quants[g]));
        }
        return dot;
    }
    let n = groups_of::<S, L>();
    for part in 0..8 / n {
        let begin = if L::HALF_SCALES { s.splat_int(0) } else { dot };
        let mut sums = s.begin(begin);
        for g in part * n..(part + 1) * n {
            sums = s.accumulate(sums, groups[g], s.splat_bytes(x.quants[g]));
        }
        dot = if L::HALF_SCALES {
            s.finish_half(dot, sums, half_scales[part * n / 4])
        } else {
            s.finish(dot, sums)
        };
    }
    dot
}

/// Groups in a sum; the halves of a block are apart when their scales are.
const fn groups_of<S: Simd, L: Layout>() -> usize {
    let n = groups_a_sum(S::SHORT_SUMS, if L::WIDE { 15 } else { L::MOST });
    if L::HALF_SCALES && n > 4 { 4 } else { n }
}

/// Tiles of a panel.
pub(super) const PANEL_TILES: usize = 2;
/// Blocks of a panel at most: with its scales it fits the first-level cache beside a few tokens.
const PANEL_BLOCKS: usize = 18;

/// Two tiles' levels and scales, unpacked, of some blocks: read again and again for all tokens.
#[repr(align(64))]
struct Panel([TilePanel; PANEL_TILES]);

thread_local! {
    /// Kept for the next task: written before it is read, so that only its first user fills it with zeros.
    static PANEL: Cell<Option<Box<Panel>>> = const { Cell::new(None) };
}

/// One tile's. Levels beyond 127 are in two halves where sums are short: the low nibbles, then the high ones.
#[repr(align(64))]
struct TilePanel {
    levels: [[[u8; 64]; 16]; PANEL_BLOCKS],
    scales: [[f32; ROWS]; PANEL_BLOCKS],
    mins: [[f32; ROWS]; PANEL_BLOCKS],
    half_scales: [[[i32; ROWS]; 3]; PANEL_BLOCKS],
}

impl TilePanel {
    const NEW: Self = Self {
        levels: [[[0; 64]; 16]; PANEL_BLOCKS],
        scales: [[0.0; ROWS]; PANEL_BLOCKS],
        mins: [[0.0; ROWS]; PANEL_BLOCKS],
        half_scales: [[[0; ROWS]; 3]; PANEL_BLOCKS],
    };

    #[inline(always)]
    fn fill<S: Simd, L: Layout>(&mut self, s: S, operands: &Operands<'_>, tile: usize, blocks: Range<usize>) {
        let (levels, scales) = (operands.tile_levels::<L>(tile), operands.tile_scales::<L>(tile));
        for (i, b) in blocks.enumerate() {
            let groups = L::groups(s, &levels[b * L::LEVELS..][..L::LEVELS]);
            for (g, group) in groups.into_iter().enumerate() {
                if in_nibbles::<S, L>() {
                    let [low, high] = s.nibbles(group);
                    s.store_bytes(low, &mut self.levels[i][g]);
                    s.store_bytes(high, &mut self.levels[i][8 + g]);
                } else {
                    let group = if L::WIDE { s.centred(group) } else { group };
                    s.store_bytes(group, &mut self.levels[i][g]);
                }
            }
            let scales = &scales[b / L::UNIT * L::SCALES..][..L::SCALES];
            s.store(L::scale(s, scales, b % L::UNIT), &mut self.scales[i]);
            if L::HAS_MINS {
                s.store(L::min(s, scales, b % L::UNIT), &mut self.mins[i]);
            }
            if L::HALF_SCALES {
                let all = L::half_scales(s, scales, b % L::UNIT);
                for (scale, to) in all.into_iter().zip(&mut self.half_scales[i]) {
                    s.store_ints(scale, to);
                }
            }
        }
    }
}

/// Whether a panel holds levels as low and high nibbles.
const fn in_nibbles<S: Simd, L: Layout>() -> bool {
    S::SHORT_SUMS && L::WIDE
}

/// Whether a panel holds levels as `level - 128`.
const fn centred<S: Simd, L: Layout>() -> bool {
    S::CENTRES_WIDE && !S::SHORT_SUMS && L::WIDE
}

/// Many tokens against one panel's tiles.
#[inline(always)]
pub(super) fn matmul<S: Simd, L: Layout>(
    s: S,
    operands: &Operands<'_>,
    tiles: Range<usize>,
    tokens: Range<usize>,
) {
    // No closure: it would be compiled for the baseline.
    let mut panel = PANEL.take().unwrap_or_else(|| Box::new(Panel([TilePanel::NEW; PANEL_TILES])));
    // Stretches of about the same length, none longer than a panel.
    let n_stretches = operands.n_blocks.div_ceil(PANEL_BLOCKS);
    let stretch = operands.n_blocks.div_ceil(n_stretches.max(1)).max(1);
    for first in (0..operands.n_blocks).step_by(stretch) {
        let blocks = first..operands.n_blocks.min(first + stretch);
        for (tile, panel) in tiles.clone().zip(&mut panel.0) {
            panel.fill::<S, L>(s, operands, tile, blocks.clone());
        }
        if S::FEW_REGISTERS {
            for (tile, panel) in tiles.clone().zip(&panel.0) {
                strips::<S, L, 1>(s, operands, std::array::from_ref(panel), tile, &blocks, tokens.clone());
            }
        } else {
            strips::<S, L, PANEL_TILES>(s, operands, &panel.0, tiles.start, &blocks, tokens.clone());
        }
    }
    PANEL.set(Some(panel));
}

/// All tokens against a panel's tiles, a few at a time.
#[inline(always)]
fn strips<S: Simd, L: Layout, const N: usize>(
    s: S,
    operands: &Operands<'_>,
    panel: &[TilePanel; N],
    first_tile: usize,
    blocks: &Range<usize>,
    tokens: Range<usize>,
) {
    let mut token = tokens.start;
    while !S::FEW_REGISTERS && token + 6 <= tokens.end && (tokens.end - token) != 8 {
        strip::<S, L, 6, N>(s, operands, panel, first_tile, blocks, token);
        token += 6;
    }
    while token + 4 <= tokens.end {
        strip::<S, L, 4, N>(s, operands, panel, first_tile, blocks, token);
        token += 4;
    }
    while token < tokens.end {
        strip::<S, L, 1, N>(s, operands, panel, first_tile, blocks, token);
        token += 1;
    }
}

/// `T` tokens against the `N` tiles of a panel, whose sums stay in registers.
#[allow(clippy::needless_range_loop)] // as above
#[inline(always)]
fn strip<S: Simd, L: Layout, const T: usize, const N: usize>(
    s: S,
    operands: &Operands<'_>,
    panel: &[TilePanel; N],
    first_tile: usize,
    blocks: &Range<usize>,
    first_token: usize,
) {
    let mut rows = [&[] as &[Quants]; T];
    let mut sums = [[s.splat(0.0); N]; T];
    for t in 0..T {
        rows[t] = &operands.row(first_token + t)[blocks.clone()];
        // Results are far apart, and none was there before: asked for now, they are there when the sums are.
        for at in 0..N {
            s.prefetch_to_write(operands.out(first_token + t, first_tile + at).as_ptr().cast());
        }
        if blocks.start > 0 {
            for (at, sum) in sums[t].iter_mut().enumerate() {
                *sum = load(s, operands.out(first_token + t, first_tile + at));
            }
        }
    }
    for b in 0..blocks.len() {
        let dots = strip_dots::<S, L, T, N>(s, panel, &rows, b);
        for t in 0..T {
            let x = &rows[t][b];
            for at in 0..N {
                let scale = s.mul(s.load(&panel[at].scales[b]), s.splat(x.scale));
                sums[t][at] = s.fma(s.to_floats(dots[t][at]), scale, sums[t][at]);
                if L::HAS_MINS {
                    let min = s.load(&panel[at].mins[b]);
                    sums[t][at] = s.fma(min, s.splat(x.weighted_sum), sums[t][at]);
                }
            }
        }
    }
    for (t, sums) in sums.into_iter().enumerate() {
        for (at, sum) in sums.into_iter().enumerate() {
            store(s, sum, operands.out(first_token + t, first_tile + at));
        }
    }
}

/// The integer sums of one block.
#[allow(clippy::needless_range_loop)] // as above
#[inline(always)]
fn strip_dots<S: Simd, L: Layout, const T: usize, const N: usize>(
    s: S,
    panel: &[TilePanel; N],
    rows: &[&[Quants]; T],
    b: usize,
) -> [[S::Ints; N]; T] {
    let mut half_scales = [[s.splat_int(0); 3]; N];
    if L::HALF_SCALES {
        for at in 0..N {
            for i in 0..3 {
                half_scales[at][i] = s.load_ints(&panel[at].half_scales[b][i]);
            }
        }
    }
    let mut dots = [[s.splat_int(0); N]; T];
    // Short sums begin at zero, and their first values would only take registers away from them.
    if !S::SHORT_SUMS {
        for t in 0..T {
            for at in 0..N {
                dots[t][at] = start::<S, L>(s, &rows[t][b], &half_scales[at], centred::<S, L>());
            }
        }
    }
    let n = groups_of::<S, L>();
    let n_parts = if in_nibbles::<S, L>() { 16 / n } else { 8 / n };
    for part in 0..n_parts {
        let apart = L::HALF_SCALES || part * n >= 8;
        let mut sums = [[s.begin(s.splat_int(0)); N]; T];
        if !apart {
            for t in 0..T {
                for at in 0..N {
                    sums[t][at] = s.begin(dots[t][at]);
                }
            }
        }
        for g in part * n..(part + 1) * n {
            for at in 0..N {
                let levels = s.load_bytes(&panel[at].levels[b][g]);
                for t in 0..T {
                    let x = s.splat_bytes(rows[t][b].quants[g % 8]);
                    sums[t][at] = s.accumulate(sums[t][at], levels, x);
                }
            }
        }
        for t in 0..T {
            for at in 0..N {
                let (mut dot, sums) = (dots[t][at], sums[t][at]);
                if S::SHORT_SUMS && part == 0 {
                    dot = start::<S, L>(s, &rows[t][b], &half_scales[at], centred::<S, L>());
                }
                dots[t][at] = if L::HALF_SCALES {
                    s.finish_half(dot, sums, half_scales[at][part * n / 4])
                } else if apart {
                    s.finish_16(dot, sums)
                } else {
                    s.finish(dot, sums)
                };
            }
        }
    }
    dots
}

/// Units of a row from `first_unit` on, in the format's own bytes, as many as `bytes` hold.
pub(super) fn take_units<L: Layout>(
    [levels, scales]: [&[u8]; 2],
    n_blocks: usize,
    row: usize,
    first_unit: usize,
    bytes: &mut [u8],
) {
    let first = row / ROWS * (n_blocks / L::UNIT) + first_unit;
    for (i, unit) in bytes.chunks_exact_mut(L::FORMAT.block_bytes()).enumerate() {
        let levels = &levels[(first + i) * L::UNIT * L::LEVELS..][..L::UNIT * L::LEVELS];
        L::take(row % ROWS, levels, &scales[(first + i) * L::SCALES..][..L::SCALES], unit);
    }
}
