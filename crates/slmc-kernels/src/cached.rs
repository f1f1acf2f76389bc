//! Attention of query rows over cached keys and values, a stretch of keys at a time with a running maximum (Milakov and
//! Gimelshein, arXiv:1805.02867): scores of a whole sequence are never held.
//!
//! Keys lie in tiles of sixteen, column by column, so that one register holds the scores of sixteen keys and no sum
//! runs across a register. Every number is one chain of fused multiply-adds in the order of the columns or keys, and
//! keys are taken in stretches that begin at multiples of [`STRETCH`]: a row gives the same bits on every
//! instruction set, whatever rows it is run with.

mod tiles;

use std::ops::Range;

pub use tiles::{HalfAttention, HalfPanels, HalfRows, ROWS as HALF_ROWS, Side};

use crate::{
    exp::exp,
    packed::{Isa, ROWS as LANES, Simd},
};

/// Keys whose scores are held at once. A whole number of tiles.
pub const STRETCH: usize = 128;
/// Query rows whose sums are in registers.
const TOGETHER: usize = 6;

/// Numbers of a cache.
#[derive(Clone, Copy, Debug)]
pub enum Cached<'a> {
    /// IEEE half precision.
    F16(&'a [u16]),
    /// Single precision.
    F32(&'a [f32]),
    /// Bytes, as [`to_bytes`] makes them of a key or a value.
    Int8 {
        /// The bytes.
        numbers: &'a [i8],
        /// What those of each key are multiplied by: finite for whole tiles of keys.
        scales: &'a [f32],
    },
}

/// Rounds the numbers of a key or a value to bytes, ties to even, and returns what these are to be multiplied by. Where one is
/// not finite the scale is not either.
///
/// # Panics
/// When there are not as many bytes as numbers.
pub fn to_bytes(numbers: &[f32], bytes: &mut [i8]) -> f32 {
    /// Adding it leaves the nearest integer in the low bits: 1.5 · 2²³.
    const ROUND: f32 = 12_582_912.0;
    assert_eq!(numbers.len(), bytes.len(), "as many bytes as numbers");
    // As integers, magnitudes are in order, and NaN is above infinity.
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    let largest = f32::from_bits(numbers.iter().map(magnitude).fold(0, u32::max));
    // Below this the inverse would be infinite.
    let inverse = if largest < 1e-30 { 0.0 } else { 127.0 / largest };
    for (byte, number) in bytes.iter_mut().zip(numbers) {
        *byte = (number * inverse + ROUND).to_bits() as i8;
    }
    largest / 127.0
}

/// The cache of one head: room for any number of keys, of which those that are asked for are there.
#[derive(Clone, Copy, Debug)]
pub struct CachedHead<'a> {
    /// `[tiles, d, 16]`: key `k`'s number `i` at `(k / 16 · d + i) · 16 + k % 16`.
    pub keys: Cached<'a>,
    /// `[keys, padded(d)]`, padded with zeros.
    pub values: Cached<'a>,
    /// Numbers of a head.
    pub d: usize,
}

/// Numbers of a row of values: whole registers.
pub const fn padded(d: usize) -> usize {
    d.next_multiple_of(LANES)
}

/// Where the numbers of key `key` begin in a head's keys, and how far apart they are.
pub const fn key_place(key: usize, d: usize) -> (usize, usize) {
    (key / LANES * d * LANES + key % LANES, LANES)
}

/// A softmax in progress for some rows: largest score, sum of exponentials, and values weighted by them.
#[derive(Clone, Debug, Default)]
pub struct Softmax {
    largest: Vec<f32>,
    total: Vec<f32>,
    /// `[n_rows, padded(d)]`.
    mix: Vec<f32>,
    width: usize,
}

impl Softmax {
    /// Begins anew, with `n_rows` of `d` numbers. Allocates only when that is more than ever before.
    pub fn reset(&mut self, n_rows: usize, d: usize) {
        self.width = padded(d);
        for (buffer, n, value) in [
            (&mut self.largest, n_rows, f32::NEG_INFINITY),
            (&mut self.total, n_rows, 0.0),
            (&mut self.mix, n_rows * padded(d), 0.0),
        ] {
            buffer.clear();
            buffer.resize(n, value);
        }
    }

    /// Takes in a range of keys. Row `r` of the queries, `[n_rows, d]` and scaled, stands at position
    /// `position + r / group` and sees the keys up to its own.
    ///
    /// # Panics
    /// When the range does not begin at a multiple of [`STRETCH`], or sizes do not fit.
    pub fn absorb(
        &mut self,
        queries: &[f32],
        group: usize,
        position: usize,
        head: CachedHead<'_>,
        keys: Range<usize>,
    ) {
        let job = Job { queries, group, position, d: head.d, keys };
        assert!(job.keys.start.is_multiple_of(STRETCH), "keys from a multiple of {STRETCH} on");
        assert_eq!(queries.len(), self.largest.len() * head.d, "as many queries as rows");
        assert_eq!(self.width, padded(head.d), "values as wide as the mix");
        match (head.keys, head.values) {
            (Cached::F16(keys), Cached::F16(values)) => run(&job, self, [keys, values].map(Held::plain)),
            (Cached::F32(keys), Cached::F32(values)) => run(&job, self, [keys, values].map(Held::plain)),
            (
                Cached::Int8 { numbers: keys, scales },
                Cached::Int8 { numbers: values, scales: value_scales },
            ) => {
                let held = [(keys, scales), (values, value_scales)];
                run(&job, self, held.map(|(numbers, scales)| Held { numbers, scales }));
            }
            _ => panic!("keys and values are kept alike"),
        }
    }

    /// Takes in what later keys came to, for the same rows.
    ///
    /// # Panics
    /// When there are not as many rows.
    pub fn merge(&mut self, later: &Self) {
        assert_eq!(self.mix.len(), later.mix.len(), "as many rows");
        for (row, mix) in self.mix.chunks_exact_mut(self.width).enumerate() {
            let largest =
                if later.largest[row] > self.largest[row] { later.largest[row] } else { self.largest[row] };
            if largest == f32::NEG_INFINITY {
                // Neither has seen a key.
                continue;
            }
            let [before, after] = [self.largest[row], later.largest[row]].map(|l| exp(l - largest));
            self.largest[row] = largest;
            self.total[row] = self.total[row] * before + later.total[row] * after;
            for (mix, later) in mix.iter_mut().zip(&later.mix[row * self.width..]) {
                *mix = *mix * before + later * after;
            }
        }
    }

    /// The mix of values of a row, `[d]`.
    pub fn finish(&self, row: usize, out: &mut [f32]) {
        let inverse = 1.0 / self.total[row];
        for (out, mix) in out.iter_mut().zip(&self.mix[row * self.width..]) {
            *out = mix * inverse;
        }
    }
}

struct Job<'a> {
    queries: &'a [f32],
    group: usize,
    position: usize,
    d: usize,
    keys: Range<usize>,
}

/// Numbers of keys or values.
#[derive(Clone, Copy)]
struct Held<'a, N> {
    numbers: &'a [N],
    /// Of each key; none where numbers are what they are.
    scales: &'a [f32],
}

impl<'a, N> Held<'a, N> {
    pub fn plain(numbers: &'a [N]) -> Self {
        Self { numbers, scales: &[] }
    }
}

/// A number as it is kept.
trait Number: Copy {
    /// Whether it is a multiple of a scale.
    const SCALED: bool = false;
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::Floats;
}

impl Number for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::Floats {
        s.load(from)
    }
}

impl Number for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::Floats {
        s.load_halves(from)
    }
}

impl Number for i8 {
    const SCALED: bool = true;
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[i8; LANES]) -> S::Floats {
        s.load_i8(from)
    }
}

fn run<N: Number>(job: &Job<'_>, state: &mut Softmax, held: [Held<'_, N>; 2]) {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::packed::{Avx2, Avx512};

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn avx512<N: Number>(s: Avx512, job: &Job<'_>, state: &mut Softmax, held: [Held<'_, N>; 2]) {
            stretches(s, job, state, held);
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<N: Number>(s: Avx2, job: &Job<'_>, state: &mut Softmax, held: [Held<'_, N>; 2]) {
            stretches(s, job, state, held);
        }
        match Isa::best() {
            // SAFETY: the value proves that the CPU has what the function is compiled for.
            #[allow(unsafe_code)]
            Isa::Amx(s, _) | Isa::Avx512(s) => return unsafe { avx512(s, job, state, held) },
            // SAFETY: as above.
            #[allow(unsafe_code)]
            Isa::Avx2(s) => return unsafe { avx2(s, job, state, held) },
            Isa::Portable(_) => {}
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use crate::packed::Neon;

        #[target_feature(enable = "neon,dotprod")]
        fn neon<N: Number>(s: Neon, job: &Job<'_>, state: &mut Softmax, held: [Held<'_, N>; 2]) {
            stretches(s, job, state, held);
        }
        if let Isa::Neon(s) = Isa::best() {
            // SAFETY: the value proves that the CPU has what the function is compiled for.
            #[allow(unsafe_code)]
            return unsafe { neon(s, job, state, held) };
        }
    }
    stretches(crate::packed::Portable, job, state, held);
}

#[inline(always)]
fn stretches<S: Simd, N: Number>(s: S, job: &Job<'_>, state: &mut Softmax, held: [Held<'_, N>; 2]) {
    // Of each row all scores of a stretch are set before they are used.
    let mut scores = [[0.0_f32; STRETCH]; TOGETHER];
    for from in job.keys.clone().step_by(STRETCH) {
        let to = job.keys.end.min(from + STRETCH);
        let (mut row, n_rows) = (0, state.largest.len());
        while row + TOGETHER <= n_rows {
            strip::<S, N, TOGETHER>(s, job, state, held, row, from..to, &mut scores);
            row += TOGETHER;
        }
        while row + 3 <= n_rows {
            strip::<S, N, 3>(s, job, state, held, row, from..to, &mut scores);
            row += 3;
        }
        while row < n_rows {
            strip::<S, N, 1>(s, job, state, held, row, from..to, &mut scores);
            row += 1;
        }
    }
}

/// `T` rows against a stretch of keys.
#[allow(clippy::needless_range_loop)] // Indices are what registers are.
#[inline(always)]
fn strip<S: Simd, N: Number, const T: usize>(
    s: S,
    job: &Job<'_>,
    state: &mut Softmax,
    [keys, values]: [Held<'_, N>; 2],
    row: usize,
    stretch: Range<usize>,
    scores: &mut [[f32; STRETCH]; TOGETHER],
) {
    let d = job.d;
    let last = job.position + (row + T - 1) / job.group;
    if last < stretch.start {
        return;
    }
    // Beyond the last row's own key there is nothing to see, and perhaps nothing there.
    let n = stretch.end.min(last + 1) - stretch.start;
    let scores: &mut [[f32; STRETCH]; T] = scores.first_chunk_mut().expect("room for the rows");
    let mut queries = [&[] as &[f32]; T];
    for (t, query) in queries.iter_mut().enumerate() {
        *query = &job.queries[(row + t) * d..][..d];
    }
    let mut tile = 0;
    // Two registers at once where there are enough: twice as many sums hide the additions' latency.
    while !S::FEW_REGISTERS && (tile + 2) * LANES <= n.next_multiple_of(LANES) {
        score::<S, N, T, 2>(s, &queries, keys.numbers, stretch.start / LANES + tile, scores, tile);
        tile += 2;
    }
    while tile < n.div_ceil(LANES) {
        score::<S, N, T, 1>(s, &queries, keys.numbers, stretch.start / LANES + tile, scores, tile);
        tile += 1;
    }
    let mut factors = [1.0; T];
    for t in 0..T {
        let seen = (job.position + (row + t) / job.group + 1).saturating_sub(stretch.start).min(n);
        let scores = &mut scores[t].as_chunks_mut().0[..n.div_ceil(LANES)];
        if N::SCALED {
            scale(scores, &keys.scales[stretch.start..]);
        }
        factors[t] = soften(scores, seen, &mut state.largest[row + t], &mut state.total[row + t]);
        if N::SCALED {
            scale(scores, &values.scales[stretch.start..]);
        }
    }
    let width = padded(d);
    let values = &values.numbers[stretch.start * width..(stretch.start + n) * width];
    let mix = &mut state.mix[row * width..(row + T) * width];
    let mut unit = 0;
    while !S::FEW_REGISTERS && unit + 2 * LANES <= width {
        mix_in::<S, N, T, 2>(s, scores, &factors, values, mix, width, unit);
        unit += 2 * LANES;
    }
    while unit < width {
        mix_in::<S, N, T, 1>(s, scores, &factors, values, mix, width, unit);
        unit += LANES;
    }
}

/// Scores of `T` rows with `U` tiles of keys.
#[allow(clippy::needless_range_loop)] // as above
#[inline(always)]
fn score<S: Simd, N: Number, const T: usize, const U: usize>(
    s: S,
    queries: &[&[f32]; T],
    keys: &[N],
    first_tile: usize,
    scores: &mut [[f32; STRETCH]; T],
    tile: usize,
) {
    let d = queries[0].len();
    let tiles: [&[[N; LANES]]; U] =
        std::array::from_fn(|u| keys[(first_tile + u) * d * LANES..][..d * LANES].as_chunks().0);
    let mut sums = [[s.splat(0.0); U]; T];
    for i in 0..d {
        let mut keys = [s.splat(0.0); U];
        for u in 0..U {
            keys[u] = N::load(s, &tiles[u][i]);
        }
        for t in 0..T {
            let query = s.splat(queries[t][i]);
            for u in 0..U {
                sums[t][u] = s.fma(keys[u], query, sums[t][u]);
            }
        }
    }
    for t in 0..T {
        let scores = scores[t].as_chunks_mut::<LANES>().0;
        for u in 0..U {
            s.store(sums[t][u], &mut scores[tile + u]);
        }
    }
}

/// Multiplies `U` registers of the mixes of `T` rows by the rows' factors and adds the values, weighted.
#[allow(clippy::needless_range_loop)] // as above
#[inline(always)]
fn mix_in<S: Simd, N: Number, const T: usize, const U: usize>(
    s: S,
    weights: &[[f32; STRETCH]; T],
    factors: &[f32; T],
    values: &[N],
    mix: &mut [f32],
    width: usize,
    unit: usize,
) {
    let place = |t: usize, u: usize| t * width + unit + u * LANES;
    let mut sums = [[s.splat(0.0); U]; T];
    for t in 0..T {
        for u in 0..U {
            let held: &[f32; LANES] = mix[place(t, u)..][..LANES].try_into().expect("a register");
            sums[t][u] = s.mul(s.load(held), s.splat(factors[t]));
        }
    }
    for (j, values) in values.chunks_exact(width).enumerate() {
        let mut value = [s.splat(0.0); U];
        for u in 0..U {
            value[u] = N::load(s, values[unit + u * LANES..][..LANES].try_into().expect("a register"));
        }
        for t in 0..T {
            let weight = s.splat(weights[t][j % STRETCH]);
            for u in 0..U {
                sums[t][u] = s.fma(value[u], weight, sums[t][u]);
            }
        }
    }
    for t in 0..T {
        for u in 0..U {
            let held = &mut mix[place(t, u)..][..LANES];
            s.store(sums[t][u], held.try_into().expect("a register"));
        }
    }
}

/// Multiplies what was made of each key by the key's scale.
#[inline(always)]
fn scale(scores: &mut [[f32; LANES]], scales: &[f32]) {
    let scores = scores.as_flattened_mut();
    let n = scores.len();
    scores.iter_mut().zip(&scales[..n]).for_each(|(score, scale)| *score *= scale);
}

/// Turns the first `seen` scores into weights relative to the row's largest score so far, the others into zeros;
/// returns what the row's mix so far is to be multiplied by.
#[inline(always)]
fn soften(scores: &mut [[f32; LANES]], seen: usize, largest: &mut f32, total: &mut f32) -> f32 {
    if seen == 0 {
        scores.as_flattened_mut().fill(0.0);
        return 1.0;
    }
    // Whole registers are computed, seen or not: what is added for what is not seen are zeros.
    scores.as_flattened_mut()[seen..].fill(f32::NEG_INFINITY);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for scores in &*scores {
        for i in 0..LANES {
            lanes[i] = if scores[i] > lanes[i] { scores[i] } else { lanes[i] };
        }
    }
    let lanes = crate::dispatch::max_lanes(lanes);
    let most = if lanes > *largest { lanes } else { *largest };
    let factor = exp(*largest - most);
    let mut sums = [0.0_f32; LANES];
    for (at, scores) in scores.iter_mut().enumerate() {
        for i in 0..LANES {
            let weight = exp(scores[i] - most);
            scores[i] = if at * LANES + i < seen { weight } else { 0.0 };
            sums[i] += scores[i];
        }
    }
    *total = *total * factor + crate::dispatch::sum_lanes(sums);
    *largest = most;
    factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;

    /// Softmax attention in f64, row by row.
    pub fn plain(
        queries: &[f32],
        group: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
        d: usize,
    ) -> Vec<f64> {
        let mut out = Vec::new();
        for (row, query) in queries.chunks(d).enumerate() {
            let seen = position + row / group + 1;
            let dot =
                |key: &[f32]| query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let weights: Vec<f64> = keys.chunks(d).take(seen).map(|key| dot(key).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| {
                weights.iter().enumerate().map(|(j, w)| w * f64::from(values[j * d + i])).sum::<f64>() / total
            }));
        }
        out
    }

    /// Keys and values as the cache has them; NaN where no row may look.
    pub fn cache(keys: &[f32], values: &[f32], n: usize, d: usize) -> (Vec<f32>, Vec<f32>) {
        let capacity = n.next_multiple_of(LANES);
        let (mut tiles, mut rows) = (vec![f32::NAN; capacity * d], vec![f32::NAN; capacity * padded(d)]);
        for k in 0..n {
            let (first, apart) = key_place(k, d);
            (0..d).for_each(|i| tiles[first + i * apart] = keys[k * d + i]);
            rows[k * padded(d)..(k + 1) * padded(d)].fill(0.0);
            rows[k * padded(d)..][..d].copy_from_slice(&values[k * d..(k + 1) * d]);
        }
        (tiles, rows)
    }

    /// In spans of 128 keys, as the engine does it.
    fn attend(queries: &[f32], group: usize, position: usize, head: CachedHead<'_>, n: usize) -> Vec<f32> {
        let (n_rows, d) = (queries.len() / head.d, head.d);
        let mut all = Softmax::default();
        all.reset(n_rows, d);
        for from in (0..n).step_by(128) {
            let mut span = Softmax::default();
            span.reset(n_rows, d);
            span.absorb(queries, group, position, head, from..n.min(from + 128));
            all.merge(&span);
        }
        let mut out = vec![0.0; n_rows * d];
        out.chunks_mut(d).enumerate().for_each(|(row, out)| all.finish(row, out));
        out
    }

    #[test]
    fn follows_plain_attention_and_rows_do_not_see_each_other() {
        // Heads of half a register, of one and a half, of a small model's; keys around a tile, a stretch and a span;
        // rows with every remainder of what registers hold.
        for (d, group, n_positions, position) in
            [(8, 1, 1, 0), (8, 2, 7, 9), (24, 3, 1, 63), (24, 3, 5, 126), (64, 3, 11, 190), (64, 1, 16, 0)]
        {
            let n = position + n_positions;
            let queries = numbers(n_positions * group * d, 1);
            let (keys, values) = (numbers(n * d, 2), numbers(n * d, 3));
            let expected = plain(&queries, group, position, &keys, &values, d);
            let (tiles, rows) = cache(&keys, &values, n, d);
            let head = CachedHead { keys: Cached::F32(&tiles), values: Cached::F32(&rows), d };
            let found = attend(&queries, group, position, head, n);
            let worst = crate::testing::worst(&found, &expected);
            assert!(worst < 2e-6, "{d} {group} {n_positions} {position}: {worst}");
            for p in 0..n_positions {
                let rows = p * group * d..(p + 1) * group * d;
                let alone = attend(&queries[rows.clone()], group, position + p, head, position + p + 1);
                assert_eq!(alone, found[rows], "position {p} alone");
            }
        }
    }

    /// Runs a job on the best instruction set and on the portable one.
    #[track_caller]
    fn assert_same_bits_everywhere<N: Number>(job: &Job<'_>, held: [Held<'_, N>; 2]) {
        let on = |isa: Isa| {
            let mut state = Softmax::default();
            state.reset(job.queries.len() / job.d, job.d);
            match isa {
                Isa::Portable(s) => stretches(s, job, &mut state, held),
                _ => run(job, &mut state, held),
            }
            (state.largest, state.total, state.mix)
        };
        assert_eq!(on(Isa::best()), on(Isa::Portable(crate::packed::Portable)));
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits_in_f16_too() {
        let (d, group, n) = (40, 3, 150);
        let queries = numbers(7 * group * d, 4);
        let (keys, values) = (numbers(n * d, 5), numbers(n * d, 6));
        let (tiles, rows) = cache(&keys, &values, n, d);
        let halves = |x: &[f32]| x.iter().map(|&x| slmc_blocks::f32_to_f16(x)).collect::<Vec<_>>();
        let (tiles, rows) = (halves(&tiles), halves(&rows));
        let held = [&tiles[..], &rows[..]].map(Held::plain);
        let job = Job { queries: &queries, group, position: n - 7, d, keys: 0..n };
        assert_same_bits_everywhere(&job, held);
    }

    /// Keys and values as bytes, in the cache's places, and the scales of whole tiles.
    pub fn byte_cache(keys: &[f32], values: &[f32], n: usize, d: usize) -> ([Vec<i8>; 2], [Vec<f32>; 2]) {
        let capacity = n.next_multiple_of(LANES);
        let mut numbers = [vec![99; capacity * d], vec![99; capacity * padded(d)]];
        let mut scales = [vec![0.0; capacity], vec![0.0; capacity]];
        let mut key = vec![0; d];
        for k in 0..n {
            scales[0][k] = to_bytes(&keys[k * d..(k + 1) * d], &mut key);
            let (first, apart) = key_place(k, d);
            (0..d).for_each(|i| numbers[0][first + i * apart] = key[i]);
            let value = &mut numbers[1][k * padded(d)..][..padded(d)];
            value.fill(0);
            scales[1][k] = to_bytes(&values[k * d..(k + 1) * d], &mut value[..d]);
        }
        (numbers, scales)
    }

    #[test]
    fn bytes_are_numbers_times_their_keys_scales_on_every_instruction_set() {
        let (d, group, n) = (40, 3, 150);
        let queries = numbers(7 * group * d, 4);
        let (keys, values) = (numbers(n * d, 5), numbers(n * d, 6));
        let ([tiles, rows], [key_scales, value_scales]) = byte_cache(&keys, &values, n, d);
        // What the bytes stand for, in f64.
        let rounded = |numbers: &[f32]| -> Vec<f32> {
            let mut bytes = vec![0; d];
            let decode = |numbers: &[f32]| {
                let scale = to_bytes(numbers, &mut bytes);
                bytes.iter().map(|&byte| f32::from(byte) * scale).collect::<Vec<_>>()
            };
            numbers.chunks(d).flat_map(decode).collect()
        };
        let expected = plain(&queries, group, n - 7, &rounded(&keys), &rounded(&values), d);
        let head = CachedHead {
            keys: Cached::Int8 { numbers: &tiles, scales: &key_scales },
            values: Cached::Int8 { numbers: &rows, scales: &value_scales },
            d,
        };
        let found = attend(&queries, group, n - 7, head, n);
        let worst = crate::testing::worst(&found, &expected);
        assert!(worst < 2e-6, "{worst}");
        // And near what was rounded.
        let worst = crate::testing::worst(&found, &plain(&queries, group, n - 7, &keys, &values, d));
        assert!(worst > 1e-6 && worst < 1e-2, "{worst}");

        let held = [
            Held { numbers: &tiles[..], scales: &key_scales },
            Held { numbers: &rows[..], scales: &value_scales },
        ];
        let job = Job { queries: &queries, group, position: n - 7, d, keys: 0..n };
        assert_same_bits_everywhere(&job, held);
    }

    #[test]
    fn bytes_of_what_is_not_finite_or_nothing() {
        let mut bytes = [9; 3];
        assert_eq!((to_bytes(&[0.0; 3], &mut bytes), bytes), (0.0, [0; 3]));
        assert_eq!((to_bytes(&[1.0, -2.0, 0.5], &mut bytes), bytes), (2.0 / 127.0, [64, -127, 32]));
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!to_bytes(&[1.0, bad, 0.5], &mut bytes).is_finite());
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let d = 16;
        let (keys, mut values) = (numbers(3 * d, 7), numbers(3 * d, 8));
        values[d] = f32::NAN;
        let (tiles, rows) = cache(&keys, &values, 3, d);
        let head = CachedHead { keys: Cached::F32(&tiles), values: Cached::F32(&rows), d };
        assert!(attend(&numbers(d, 9), 1, 2, head, 3)[0].is_nan());
        let query = vec![f32::NAN; d];
        assert!(attend(&query, 1, 2, head, 3)[0].is_nan());
    }
}
