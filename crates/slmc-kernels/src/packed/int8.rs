//! Products of packed levels and int8 activations.
//!
//! For each block of 32 columns, in their order: an exact integer sum `dot = Σ (level − offset) · q`, then
//! `out = fma(dot, weight_scale · x_scale, out)`, and with minimums `out = fma(min, x_scale · Σ q, out)`. Every
//! path below keeps that order, so the bits depend neither on the instruction set nor on the path.

use std::ops::Range;

use super::{
    activations::{Activations, Quants},
    layout::Layout,
    out::SharedOut,
    simd::{ROWS, Simd},
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
    fn tile_levels<L: Layout>(&self, tile: usize) -> &'a [u8] {
        let n = self.n_blocks * L::LEVELS;
        &self.levels[tile * n..(tile + 1) * n]
    }

    fn tile_scales<L: Layout>(&self, tile: usize) -> &'a [u8] {
        let n = self.n_blocks / L::UNIT * L::SCALES;
        &self.scales[tile * n..(tile + 1) * n]
    }

    fn row(&self, token: usize) -> &'a [Quants] {
        &self.x.blocks[token * self.n_blocks..(token + 1) * self.n_blocks]
    }

    /// The part of the output of one token and one tile: fewer than sixteen rows at the matrix's end, and none after.
    #[inline(always)]
    fn out(&self, token: usize, tile: usize) -> &'a mut [f32] {
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
fn store<S: Simd>(s: S, sums: S::Floats, out: &mut [f32]) {
    if let Ok(out) = <&mut [f32; ROWS]>::try_from(&mut *out) {
        s.store(sums, out);
    } else {
        let mut all = [0.0; ROWS];
        s.store(sums, &mut all);
        out.copy_from_slice(&all[..out.len()]);
    }
}

#[inline(always)]
fn load<S: Simd>(s: S, out: &[f32]) -> S::Floats {
    if let Ok(out) = <&[f32; ROWS]>::try_from(out) {
        s.load(out)
    } else {
        let mut all = [0.0; ROWS];
        all[..out.len()].copy_from_slice(out);
        s.load(&all)
    }
}

/// What a sum of the block's half (or of all of it) starts with: the offset's share.
#[inline(always)]
fn start<S: Simd, L: Layout>(s: S, x: &Quants, half: usize) -> S::Ints {
    let minus_sum = match (L::HALF_SCALES, half) {
        (false, _) => x.minus_sum,
        (true, 0) => x.minus_first,
        (true, _) => x.minus_sum - x.minus_first,
    };
    let offset = if L::WIDE && S::CENTRES_WIDE { 0 } else { L::OFFSET };
    s.mul_ints(s.splat_int(minus_sum), s.splat_int(offset))
}

#[inline(always)]
fn dot<S: Simd, L: Layout>(s: S, sums: S::Ints, levels: S::Bytes, x: S::Bytes) -> S::Ints {
    if L::WIDE { s.dot::<true>(sums, levels, x) } else { s.dot::<false>(sums, levels, x) }
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
                let dot = block_dot::<S, L>(s, &groups, half_scales, x);
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
    half_scales: [S::Ints; 2],
    x: &Quants,
) -> S::Ints {
    let mut first = start::<S, L>(s, x, 0);
    let mut second = if L::HALF_SCALES { start::<S, L>(s, x, 1) } else { s.splat_int(0) };
    for g in 0..4 {
        first = dot::<S, L>(s, first, groups[g], s.splat_bytes(x.quants[g]));
    }
    if L::HALF_SCALES {
        for g in 4..8 {
            second = dot::<S, L>(s, second, groups[g], s.splat_bytes(x.quants[g]));
        }
        return s.add_ints(s.mul_ints(first, half_scales[0]), s.mul_ints(second, half_scales[1]));
    }
    for g in 4..8 {
        first = dot::<S, L>(s, first, groups[g], s.splat_bytes(x.quants[g]));
    }
    first
}

/// Tiles of a panel.
pub(super) const PANEL_TILES: usize = 2;
/// Blocks of a panel at most: with its scales it fits the first-level cache beside a few tokens.
const PANEL_BLOCKS: usize = 18;

/// Two tiles' levels and scales, unpacked, of some blocks: read again and again for all tokens.
#[repr(align(64))]
struct Panel {
    levels: [[[[u8; 64]; PANEL_TILES]; 8]; PANEL_BLOCKS],
    scales: [[[f32; ROWS]; PANEL_TILES]; PANEL_BLOCKS],
    mins: [[[f32; ROWS]; PANEL_TILES]; PANEL_BLOCKS],
    half_scales: [[[[i32; ROWS]; 2]; PANEL_TILES]; PANEL_BLOCKS],
}

impl Panel {
    /// Zeros: a tile beyond the matrix's end stays so.
    fn new() -> Self {
        Self {
            levels: [[[[0; 64]; PANEL_TILES]; 8]; PANEL_BLOCKS],
            scales: [[[0.0; ROWS]; PANEL_TILES]; PANEL_BLOCKS],
            mins: [[[0.0; ROWS]; PANEL_TILES]; PANEL_BLOCKS],
            half_scales: [[[[0; ROWS]; 2]; PANEL_TILES]; PANEL_BLOCKS],
        }
    }

    #[inline(always)]
    fn fill<S: Simd, L: Layout>(
        &mut self,
        s: S,
        operands: &Operands<'_>,
        tiles: Range<usize>,
        blocks: Range<usize>,
    ) {
        for (at, tile) in tiles.enumerate() {
            let (levels, scales) = (operands.tile_levels::<L>(tile), operands.tile_scales::<L>(tile));
            for (i, b) in blocks.clone().enumerate() {
                let groups = L::groups(s, &levels[b * L::LEVELS..][..L::LEVELS]);
                for (g, group) in groups.into_iter().enumerate() {
                    s.store_bytes(group, &mut self.levels[i][g][at]);
                }
                let scales = &scales[b / L::UNIT * L::SCALES..][..L::SCALES];
                s.store(L::scale(s, scales, b % L::UNIT), &mut self.scales[i][at]);
                if L::HAS_MINS {
                    s.store(L::min(s, scales, b % L::UNIT), &mut self.mins[i][at]);
                }
                if L::HALF_SCALES {
                    let [first, second] = L::half_scales(s, scales, b % L::UNIT);
                    s.store_ints(first, &mut self.half_scales[i][at][0]);
                    s.store_ints(second, &mut self.half_scales[i][at][1]);
                }
            }
        }
    }
}

/// Many tokens against one panel's tiles.
#[inline(always)]
pub(super) fn matmul<S: Simd, L: Layout>(
    s: S,
    operands: &Operands<'_>,
    tiles: Range<usize>,
    tokens: Range<usize>,
) {
    let mut panel = Panel::new();
    // Stretches of about the same length, none longer than a panel.
    let n_stretches = operands.n_blocks.div_ceil(PANEL_BLOCKS);
    let stretch = operands.n_blocks.div_ceil(n_stretches.max(1)).max(1);
    for first in (0..operands.n_blocks).step_by(stretch) {
        let blocks = first..operands.n_blocks.min(first + stretch);
        panel.fill::<S, L>(s, operands, tiles.clone(), blocks.clone());
        let mut token = tokens.start;
        if !S::FEW_REGISTERS {
            while token + 4 <= tokens.end {
                strip::<S, L, 4>(s, operands, &panel, tiles.start, blocks.clone(), token);
                token += 4;
            }
        }
        while token + 2 <= tokens.end {
            strip::<S, L, 2>(s, operands, &panel, tiles.start, blocks.clone(), token);
            token += 2;
        }
        if token < tokens.end {
            strip::<S, L, 1>(s, operands, &panel, tiles.start, blocks, token);
        }
    }
}

/// `T` tokens against a panel: the sums of both tiles stay in registers.
#[allow(clippy::needless_range_loop)] // as above
#[inline(always)]
fn strip<S: Simd, L: Layout, const T: usize>(
    s: S,
    operands: &Operands<'_>,
    panel: &Panel,
    first_tile: usize,
    blocks: Range<usize>,
    first_token: usize,
) {
    let mut rows = [&[] as &[Quants]; T];
    let mut sums = [[s.splat(0.0); PANEL_TILES]; T];
    for t in 0..T {
        rows[t] = &operands.row(first_token + t)[blocks.clone()];
        if blocks.start > 0 {
            for (at, sum) in sums[t].iter_mut().enumerate() {
                *sum = load(s, operands.out(first_token + t, first_tile + at));
            }
        }
    }
    for b in 0..blocks.len() {
        let levels = &panel.levels[b];
        let mut dots = [[s.splat_int(0); PANEL_TILES]; T];
        let n_parts = if L::HALF_SCALES { 2 } else { 1 };
        for half in 0..n_parts {
            let mut parts = [[s.splat_int(0); PANEL_TILES]; T];
            for t in 0..T {
                parts[t] = [start::<S, L>(s, &rows[t][b], half); PANEL_TILES];
            }
            let groups = if L::HALF_SCALES { 4 * half..4 * half + 4 } else { 0..8 };
            for g in groups {
                let levels = [s.load_bytes(&levels[g][0]), s.load_bytes(&levels[g][1])];
                for t in 0..T {
                    let x = s.splat_bytes(rows[t][b].quants[g]);
                    parts[t][0] = dot::<S, L>(s, parts[t][0], levels[0], x);
                    parts[t][1] = dot::<S, L>(s, parts[t][1], levels[1], x);
                }
            }
            for t in 0..T {
                for at in 0..PANEL_TILES {
                    dots[t][at] = if L::HALF_SCALES {
                        let scale = s.load_ints(&panel.half_scales[b][at][half]);
                        s.add_ints(dots[t][at], s.mul_ints(parts[t][at], scale))
                    } else {
                        parts[t][at]
                    };
                }
            }
        }
        for t in 0..T {
            let x = &rows[t][b];
            for at in 0..PANEL_TILES {
                let scale = s.mul(s.load(&panel.scales[b][at]), s.splat(x.scale));
                sums[t][at] = s.fma(s.to_floats(dots[t][at]), scale, sums[t][at]);
                if L::HAS_MINS {
                    let min = s.load(&panel.mins[b][at]);
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
