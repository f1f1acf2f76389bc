//! Attention of many query rows in bf16, sums in f32, in the tiles of Intel's AMX: 32 rows against 32 keys.
//!
//! Keys and values are laid out once for all rows of a batch. Queries, and the weights that softmax makes, are rounded to
//! bf16; the softmax itself is [`super`]'s. Keys are taken in the same stretches: a row gives the same bits whatever rows it
//! is run with, and whatever keys come after its own.

use super::{CachedHead, LANES, Number, STRETCH, padded, soften};
use crate::{
    half::{
        amx::{SQUARE, Square, Tiles},
        panels::{EMPTY, Pairs, Tile, across, rounded_pairs},
    },
    matrix::Update,
    packed::{HalfKernels, Simd},
};

/// Numbers of the inner size of a tile.
const STEP: usize = 32;
/// Steps of a stretch's keys.
const STEPS: usize = STRETCH / STEP;
/// Query rows that are best given at once.
pub const ROWS: usize = SQUARE;

/// Keys or values of a head, rounded to bf16 and laid out in tiles.
#[derive(Debug, Default)]
pub struct HalfPanels {
    tiles: Vec<Tile>,
    /// Keys laid out.
    n_keys: usize,
}

/// What is laid out of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Panels of sixteen keys.
    Keys,
    /// Panels of sixteen columns of values.
    Values,
}

impl HalfPanels {
    /// Lays out the first `n_keys` of a head, in the place of what was laid out before.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn set(&mut self, kernels: HalfKernels, head: CachedHead<'_>, side: Side, n_keys: usize) {
        use super::Cached;
        self.n_keys = n_keys;
        let n_tiles = match side {
            Side::Keys => n_keys.div_ceil(SQUARE) * 2 * head.d.div_ceil(STEP),
            Side::Values => padded(head.d).div_ceil(SQUARE) * 2 * n_keys.div_ceil(STEP),
        };
        self.tiles.resize(n_tiles, EMPTY);
        let held = if side == Side::Keys { head.keys } else { head.values };
        let d = head.d;
        // SAFETY: the value proves that the CPU has what the function is compiled for.
        #[allow(unsafe_code, unused_unsafe)]
        unsafe {
            match held {
                Cached::F16(numbers) => self.fill(kernels, super::Held::plain(numbers), side, d),
                Cached::F32(numbers) => self.fill(kernels, super::Held::plain(numbers), side, d),
                Cached::Int8 { numbers, scales } => {
                    self.fill(kernels, super::Held { numbers, scales }, side, d);
                }
            }
        }
    }

    #[cfg_attr(
        target_arch = "x86_64",
        target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
    )]
    fn fill<N: Number>(&mut self, kernels: HalfKernels, held: super::Held<'_, N>, side: Side, d: usize) {
        let (s, n_keys) = (kernels.vectors(), self.n_keys);
        let sixteen = |numbers: &[N]| {
            let mut out = [0.0; LANES];
            s.store(N::load(s, numbers.first_chunk().expect("sixteen numbers")), &mut out);
            out
        };
        match side {
            Side::Keys => {
                let n_steps = d.div_ceil(STEP);
                for (panel, tiles) in self.tiles.chunks_exact_mut(n_steps).enumerate() {
                    let first = panel * LANES;
                    if first >= n_keys {
                        tiles.fill(EMPTY);
                        continue;
                    }
                    let mut scales = [1.0; LANES];
                    if N::SCALED {
                        scales.copy_from_slice(&held.scales[first..first + LANES]);
                    }
                    let numbers = &held.numbers[first * d..(first + LANES) * d];
                    let row = |i: usize| {
                        let mut row = if i < d { sixteen(&numbers[i * LANES..]) } else { [0.0; LANES] };
                        if N::SCALED {
                            row.iter_mut().zip(&scales).for_each(|(x, scale)| *x *= scale);
                        }
                        row
                    };
                    for (step, tile) in tiles.iter_mut().enumerate() {
                        for (pair, line) in tile.iter_mut().enumerate() {
                            let i = step * STEP + 2 * pair;
                            *line = Pairs(across(&row(i), &row(i + 1)));
                        }
                    }
                }
            }
            Side::Values => {
                let (n_steps, width) = (n_keys.div_ceil(STEP), padded(d));
                for (panel, tiles) in self.tiles.chunks_exact_mut(n_steps.max(1)).enumerate() {
                    let column = panel * LANES;
                    let row = |key: usize| {
                        // What is behind the keys may be anything.
                        if key >= n_keys || column >= width {
                            return [0.0; LANES];
                        }
                        let mut row = sixteen(&held.numbers[key * width + column..]);
                        if N::SCALED {
                            row.iter_mut().for_each(|x| *x *= held.scales[key]);
                        }
                        row
                    };
                    for (step, tile) in tiles.iter_mut().enumerate() {
                        for (pair, line) in tile.iter_mut().enumerate() {
                            let key = step * STEP + 2 * pair;
                            *line = Pairs(across(&row(key), &row(key + 1)));
                        }
                    }
                }
            }
        }
    }
}

/// Rows that see some keys of a head.
#[derive(Clone, Copy, Debug)]
pub struct HalfRows<'a> {
    /// `[n_rows, d]`, scaled; [`ROWS`] of them at most.
    pub queries: &'a [f32],
    /// Numbers of a head.
    pub d: usize,
    /// Rows of a position: row `r` stands at position `(first + r) / group` and sees the keys up to its own.
    pub group: usize,
    /// The first row, counted from position 0.
    pub first: usize,
}

/// Buffers of [`attend`].
#[derive(Debug)]
pub struct HalfAttention {
    queries: [Vec<Tile>; 2],
    scores: Box<Scores>,
    weights: Box<[[Tile; STEPS]; 2]>,
    /// `[ROWS, width]`.
    mix: Vec<f32>,
    largest: [f32; ROWS],
    total: [f32; ROWS],
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Scores([[f32; STRETCH]; ROWS]);

impl Default for HalfAttention {
    fn default() -> Self {
        Self {
            queries: [Vec::new(), Vec::new()],
            scores: Box::new(Scores([[0.0; STRETCH]; ROWS])),
            weights: Box::new([[EMPTY; STEPS]; 2]),
            mix: Vec::new(),
            largest: [0.0; ROWS],
            total: [0.0; ROWS],
        }
    }
}

impl HalfAttention {
    /// The mix of values of some rows, `[n_rows, d]`.
    ///
    /// # Panics
    /// When there are more than [`ROWS`] rows, `out` has not as many, or keys that they see are not laid out.
    pub fn attend(
        &mut self,
        kernels: HalfKernels,
        panels: [&HalfPanels; 2],
        rows: HalfRows<'_>,
        out: &mut [f32],
    ) {
        assert_eq!(rows.queries.len(), out.len(), "as many rows out as in");
        let n_rows = out.len() / rows.d.max(1);
        assert!(n_rows <= ROWS && out.len() == n_rows * rows.d, "up to {ROWS} whole rows");
        if n_rows == 0 {
            return;
        }
        let n_seen = (rows.first + n_rows - 1) / rows.group + 1;
        assert!(panels.iter().all(|panels| n_seen <= panels.n_keys), "keys that are laid out");
        // SAFETY: the value proves that the CPU has what the function is compiled for.
        #[allow(unsafe_code, unused_unsafe)]
        unsafe {
            self.stretches(kernels, panels, rows, n_seen, out);
        }
    }

    #[cfg_attr(
        target_arch = "x86_64",
        target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
    )]
    fn stretches(
        &mut self,
        kernels: HalfKernels,
        [keys, values]: [&HalfPanels; 2],
        rows: HalfRows<'_>,
        n_seen: usize,
        out: &mut [f32],
    ) {
        let HalfRows { queries, d, group, first: first_row } = rows;
        let n_rows = queries.len() / d;
        let (n_steps, width) = (d.div_ceil(STEP), padded(d).next_multiple_of(SQUARE));
        for (half, tiles) in self.queries.iter_mut().enumerate() {
            tiles.clear();
            tiles.resize(n_steps, EMPTY);
            for (line, row) in queries.chunks_exact(d).skip(half * LANES).take(LANES).enumerate() {
                for (tile, numbers) in tiles.iter_mut().zip(row.chunks(STEP)) {
                    let mut all = [0.0; STEP];
                    all[..numbers.len()].copy_from_slice(numbers);
                    tile[line] = Pairs(rounded_pairs(&all));
                }
            }
        }
        self.largest = [f32::NEG_INFINITY; ROWS];
        self.total = [0.0; ROWS];
        self.mix.clear();
        self.mix.resize(ROWS * width, 0.0);
        let held = Tiles::begin(kernels.tiles());
        let queries = self.queries.each_ref().map(|tiles| &tiles[..]);
        for from in (0..n_seen).step_by(STRETCH) {
            let n_keys = (n_seen - from).min(STRETCH).next_multiple_of(SQUARE);
            for first in (0..n_keys).step_by(SQUARE) {
                let panel = |i: usize| &keys.tiles[((from + first) / LANES + i) * n_steps..][..n_steps];
                let place = self.scores.0[0][first..].as_mut_ptr();
                // SAFETY: 32 columns of each of the 32 rows of scores.
                #[allow(unsafe_code)]
                unsafe {
                    held.multiply_to(queries, [panel(0), panel(1)], n_steps, place, STRETCH, Update::Set);
                }
            }
            let mut factors = [1.0; ROWS];
            for row in 0..ROWS {
                let seen = if row < n_rows {
                    ((first_row + row) / group + 1).saturating_sub(from).min(n_keys)
                } else {
                    0
                };
                let scores = &mut self.scores.0[row].as_chunks_mut().0[..n_keys / LANES];
                factors[row] = soften(scores, seen, &mut self.largest[row], &mut self.total[row]);
                let weights = &mut self.weights[row / LANES];
                for (tile, scores) in weights.iter_mut().zip(self.scores.0[row].as_chunks().0) {
                    tile[row % LANES] = Pairs(rounded_pairs(scores));
                }
            }
            let n_steps = values.n_keys.div_ceil(STEP);
            let weights = self.weights.each_ref().map(|tiles| &tiles[..]);
            for column in (0..width).step_by(SQUARE) {
                let panel = |i: usize| &values.tiles[(column / LANES + i) * n_steps + from / STEP..];
                let square: Square = held.multiply(weights, [panel(0), panel(1)], n_keys / STEP);
                for ((mix, sums), factor) in self.mix.chunks_exact_mut(width).zip(square.iter()).zip(&factors)
                {
                    for (mix, sum) in mix[column..column + SQUARE].iter_mut().zip(sums) {
                        *mix = *mix * factor + sum;
                    }
                }
            }
        }
        drop(held);
        for ((out, mix), total) in out.chunks_exact_mut(d).zip(self.mix.chunks_exact(width)).zip(&self.total)
        {
            let inverse = 1.0 / total;
            out.iter_mut().zip(mix).for_each(|(out, mix)| *out = mix * inverse);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cached::{
            Cached,
            tests::{byte_cache, cache, plain},
            to_bytes,
        },
        testing::numbers,
    };

    /// As the engine does it: [`ROWS`] rows at a time.
    fn attend(
        kernels: HalfKernels,
        queries: &[f32],
        group: usize,
        first: usize,
        head: CachedHead<'_>,
        n: usize,
    ) -> Vec<f32> {
        let mut panels = [HalfPanels::default(), HalfPanels::default()];
        for (panels, side) in panels.iter_mut().zip([Side::Keys, Side::Values]) {
            // What was there before is gone.
            panels.set(kernels, head, side, 1);
            panels.set(kernels, head, side, n);
        }
        let mut out = vec![f32::NAN; queries.len()];
        let mut attention = HalfAttention::default();
        let parts = out.chunks_mut(ROWS * head.d).zip(queries.chunks(ROWS * head.d));
        for (i, (out, queries)) in parts.enumerate() {
            let rows = HalfRows { queries, d: head.d, group, first: first + i * ROWS };
            attention.attend(kernels, panels.each_ref(), rows, out);
        }
        out
    }

    fn rounded(x: &[f32]) -> Vec<f32> {
        x.iter().map(|&x| slmc_blocks::bf16_to_f32(slmc_blocks::f32_to_bf16(x))).collect()
    }

    #[test]
    fn follows_plain_attention_and_rows_see_neither_each_other_nor_what_comes_later() {
        let Some(kernels) = HalfKernels::detect() else { return };
        // Heads of half a register, of one and a half, of a small model's, of three steps; keys around a tile, a square and
        // a stretch; rows around a square.
        for (d, group, n_positions, position) in [
            (8, 1, 1, 0),
            (8, 2, 7, 9),
            (24, 3, 1, 63),
            (24, 3, 15, 126),
            (64, 3, 11, 190),
            (64, 1, 40, 0),
            (96, 2, 70, 100),
        ] {
            let n = position + n_positions;
            let queries = numbers(n_positions * group * d, 1);
            let (keys, values) = (numbers(n * d, 2), numbers(n * d, 3));
            let (tiles, rows) = cache(&keys, &values, n, d);
            let halves = |x: &[f32]| x.iter().map(|&x| slmc_blocks::f32_to_f16(x)).collect::<Vec<_>>();
            let (half_tiles, half_rows) = (halves(&tiles), halves(&rows));
            let ([tile_bytes, row_bytes], [key_scales, value_scales]) = byte_cache(&keys, &values, n, d);
            let plain_half = |x: f32| slmc_blocks::f16_to_f32(slmc_blocks::f32_to_f16(x));
            let bytes = |x: &[f32]| -> Vec<f32> {
                let mut bytes = vec![0; d];
                let mut decode = |x: &[f32]| {
                    let scale = to_bytes(x, &mut bytes);
                    bytes.iter().map(|&byte| f32::from(byte) * scale).collect::<Vec<_>>()
                };
                x.chunks(d).flat_map(&mut decode).collect()
            };
            let f16 = |x: &[f32]| x.iter().map(|&x| plain_half(x)).collect::<Vec<_>>();
            let all = [
                ([Cached::F32(&tiles), Cached::F32(&rows)], [keys.clone(), values.clone()]),
                ([Cached::F16(&half_tiles), Cached::F16(&half_rows)], [f16(&keys), f16(&values)]),
                (
                    [
                        Cached::Int8 { numbers: &tile_bytes, scales: &key_scales },
                        Cached::Int8 { numbers: &row_bytes, scales: &value_scales },
                    ],
                    [bytes(&keys), bytes(&values)],
                ),
            ];
            for ([keys, values], held) in all {
                let head = CachedHead { keys, values, d };
                let found = attend(kernels, &queries, group, position * group, head, n);
                let [keys, values] = held.map(|held| rounded(&held));
                let expected = plain(&rounded(&queries), group, position, &keys, &values, d);
                for (found, expected) in found.iter().zip(expected) {
                    // Values are at most 1, weights sum to 1 and are each off by 2^-9 of themselves at most.
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 1.01 * 2.0_f64.powi(-9), "{d} {group} {n_positions} {position}: {error}");
                }
                for p in 0..n_positions {
                    let rows = p * group * d..(p + 1) * group * d;
                    let (first, n) = ((position + p) * group, position + p + 1);
                    let alone = attend(kernels, &queries[rows.clone()], group, first, head, n);
                    assert_eq!(alone, found[rows], "position {p} alone");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let Some(kernels) = HalfKernels::detect() else { return };
        let d = 16;
        let (keys, mut values) = (numbers(3 * d, 7), numbers(3 * d, 8));
        values[d] = f32::NAN;
        let (tiles, rows) = cache(&keys, &values, 3, d);
        let head = CachedHead { keys: Cached::F32(&tiles), values: Cached::F32(&rows), d };
        assert!(attend(kernels, &numbers(d, 9), 1, 2, head, 3)[0].is_nan());
        let query = vec![f32::NAN; d];
        assert!(attend(kernels, &query, 1, 2, head, 3)[0].is_nan());
    }
}
