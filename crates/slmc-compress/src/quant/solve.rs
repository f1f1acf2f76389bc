//! GPTQ on a grid (Frantar et al. 2022, arXiv:2210.17323, section 3): columns are rounded one after the other, and those
//! not rounded yet make up for the error. The scale of each group is searched with the error feedback running, so
//! what is compared is what each scale would cost the layer.

use faer::{Accum, MatMut, MatRef as FaerRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{
    codes::Codes,
    factor::Factor,
    grid::{Grid, Scales},
    propose::{UnitScales, closer_looks, half, n_wide, narrow, wide},
    refine::refine,
    round::{Round, with_round},
    trial::{Block, Candidates, LANES, cheapest, commit, costs},
    widest::widest,
};
use crate::{CompressError, MatRef};

/// Rows that are one piece of work: fixed, so that results do not depend on the number of threads; enough that the
/// factor is read from memory once for many of them.
const CHUNK_ROWS: usize = 64;

/// How hard to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SolveSettings {
    /// Most passes of coordinate descent over levels and scales after the rounding; 0 for none.
    pub n_passes: usize,
}

impl Default for SolveSettings {
    fn default() -> Self {
        Self { n_passes: 4 }
    }
}

/// Rounds a weight `[n_rows, n_columns]` to a grid, by the factor of its layer's Hessian made for that grid.
///
/// # Errors
/// [`CompressError::Channels`] when weight and factor are of different layers, [`CompressError::NotFinite`] for weights
/// that are no numbers or scales beyond f16.
pub fn solve(
    weight: MatRef<'_>,
    factor: &Factor,
    grid: &Grid,
    settings: SolveSettings,
) -> Result<Codes, CompressError> {
    solve_in_chunks(weight, factor, grid, settings, CHUNK_ROWS)
}

/// As [`solve`], in pieces of work of so many rows.
pub(super) fn solve_in_chunks(
    weight: MatRef<'_>,
    factor: &Factor,
    grid: &Grid,
    settings: SolveSettings,
    chunk_rows: usize,
) -> Result<Codes, CompressError> {
    let (n_rows, n) = weight.dim();
    if n != factor.n_columns() {
        return Err(CompressError::Channels { columns: n, channels: factor.n_columns() });
    }
    if let Some(((_, channel), &value)) = weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
        return Err(CompressError::NotFinite { what: "a weight", channel, value: value.into() });
    }
    let blocks = Blocks::new(factor, grid);
    let chunks: Vec<Rows> = (0..n_rows.div_ceil(chunk_rows))
        .into_par_iter()
        .map(|chunk| {
            let range = chunk * chunk_rows..n_rows.min((chunk + 1) * chunk_rows);
            let mut rows = Rows::new(weight, range, factor, grid);
            widest(
                #[inline(always)]
                || with_round!(&grid.points, round => rows.run(round, factor, grid, &blocks, settings)),
            );
            // Levels and scales say it all; together the weights would take eight times as much.
            (rows.original, rows.w) = (Vec::new(), Vec::new());
            rows
        })
        .collect();
    let codes = join(chunks, n_rows, factor, grid);
    match codes.groups.iter().position(|[scale, min]| !(scale.is_finite() && min.is_finite())) {
        Some(at) => {
            let channel = at % codes.n_groups() * grid.group;
            Err(CompressError::NotFinite { what: "the scale", channel, value: codes.groups[at][0].into() })
        }
        None => Ok(codes),
    }
}

/// The factor's parts within groups, compact.
struct Blocks {
    upper: Vec<Vec<f32>>,
    over_diagonal: Vec<f32>,
}

impl Blocks {
    fn new(factor: &Factor, grid: &Grid) -> Self {
        let n = factor.n_columns();
        let compact = |first: usize| {
            let end = n.min(first + grid.group);
            (first..end).flat_map(|row| factor.upper[row * n + first..row * n + end].to_vec()).collect()
        };
        Self {
            upper: (0..n).step_by(grid.group).map(compact).collect(),
            over_diagonal: (0..n).map(|i| 1.0 / factor.upper[i * n + i]).collect(),
        }
    }

    fn group(&self, index: usize, columns: std::ops::Range<usize>) -> Block<'_> {
        Block { upper: &self.upper[index], over_diagonal: &self.over_diagonal[columns] }
    }
}

/// Some rows of a weight, columns in the order of rounding.
pub(super) struct Rows {
    pub n: usize,
    /// As they were.
    pub original: Vec<f32>,
    /// With errors made up for; rounded where that is done.
    pub w: Vec<f32>,
    pub levels: Vec<u8>,
    /// Scale and min of each group, in the order of rounding.
    pub groups: Vec<[f32; 2]>,
    pub units: Vec<UnitScales>,
    /// Weighted output error of each row, once it is done.
    pub errors: Vec<f64>,
}

impl Rows {
    fn new(weight: MatRef<'_>, range: std::ops::Range<usize>, factor: &Factor, grid: &Grid) -> Self {
        let (n_rows, n) = (range.len(), weight.ncols());
        let original: Vec<f32> =
            range.flat_map(|row| factor.order.iter().map(move |&column| weight[[row, column]])).collect();
        Self {
            n,
            w: original.clone(),
            original,
            levels: vec![0; n_rows * n],
            groups: vec![[0.0; 2]; n_rows * n.div_ceil(grid.group)],
            units: vec![UnitScales { scale: 1.0, min: 1.0 }; n_rows * n.div_ceil(grid.unit())],
            errors: Vec::with_capacity(n_rows),
        }
    }

    #[inline(always)]
    fn run<R: Round>(
        &mut self,
        round: R,
        factor: &Factor,
        grid: &Grid,
        blocks: &Blocks,
        settings: SolveSettings,
    ) {
        let n = self.n;
        let n_rows = self.w.len() / n;
        let mut room = vec![[0.0; LANES]; grid.group];
        let mut errors = vec![0.0; n_rows * grid.group];
        for (index, first) in (0..n).step_by(grid.group).enumerate() {
            let columns = first..n.min(first + grid.group);
            let g = columns.len();
            if first.is_multiple_of(grid.unit()) {
                self.scale_units(round, grid, blocks, first, &mut room);
            }
            let block = blocks.group(index, columns.clone());
            let (n_groups, n_units) = (n.div_ceil(grid.group), n.div_ceil(grid.unit()));
            for row in 0..n_rows {
                let unit = self.units[row * n_units + first / grid.unit()];
                let place = row * n + columns.start..row * n + columns.end;
                let w = &mut self.w[place.clone()];
                let scale = search::<R, true>(round, grid, w, block, unit, &mut room);
                self.groups[row * n_groups + index] = scale;
                commit(round, w, block, scale, &mut self.levels[place], &mut errors[row * g..(row + 1) * g]);
            }
            make_up_for(&mut self.w, &errors[..n_rows * g], &factor.upper, columns, n);
        }
        refine(self, round, factor, grid, settings.n_passes);
    }

    /// The scales that a unit's groups share: so that the group with the largest gets the largest integer.
    #[inline(always)]
    fn scale_units<R: Round>(
        &mut self,
        round: R,
        grid: &Grid,
        blocks: &Blocks,
        first: usize,
        room: &mut [[f32; LANES]],
    ) {
        let (high, has_min) = match grid.scales {
            Scales::Integers { low, high, .. } => (high.min(-low), false),
            Scales::IntegersAndMin { high, .. } => (high, true),
            _ => return,
        };
        let n = self.n;
        // Groups' scales before they have to be multiples of anything.
        let free = Grid { scales: if has_min { Scales::HalfAndMin } else { Scales::Half }, ..grid.clone() };
        let none = UnitScales { scale: 1.0, min: 1.0 };
        for row in 0..self.w.len() / n {
            let (mut scale, mut min) = (0.0_f32, 0.0_f32);
            for group in 0..grid.scales.n_groups() {
                let start = first + group * grid.group;
                let columns = start..start + grid.group;
                let w = &self.w[row * n + columns.start..row * n + columns.end];
                let block = blocks.group(start / grid.group, columns);
                let [s, m] = search::<R, false>(round, &free, w, block, none, room);
                (scale, min) = (scale.max(s.abs()), min.max(m));
            }
            let unit = UnitScales { scale: half(scale / high as f32), min: half(min / high as f32) };
            self.units[row * n.div_ceil(grid.unit()) + first / grid.unit()] = unit;
        }
    }
}

/// The cheapest scale and min of a group: a wide look, then closer ones around its best.
#[inline(always)]
fn search<R: Round, const FEEDBACK: bool>(
    round: R,
    grid: &Grid,
    w: &[f32],
    block: Block<'_>,
    unit: UnitScales,
    room: &mut [[f32; LANES]],
) -> [f32; 2] {
    let mut cheapest_of = |candidates: &Candidates| {
        let (at, cost) = cheapest(&costs::<R, FEEDBACK>(round, w, block, candidates, room));
        ([candidates.scale[at], candidates.min[at]], cost)
    };
    // Where no cost is a number, the first candidate stays, and its scale tells: see `solve`.
    let (mut best, mut least) = cheapest_of(&wide(grid, w, unit, 0));
    for set in 1..n_wide(grid) {
        let (found, cost) = cheapest_of(&wide(grid, w, unit, set));
        if cost < least {
            (best, least) = (found, cost);
        }
    }
    for &fineness in closer_looks(grid) {
        let (found, cost) = cheapest_of(&narrow(grid, unit, best, fineness));
        if cost < least {
            (best, least) = (found, cost);
        }
    }
    best
}

/// Takes the errors of a group's columns times their rows of `U` from all columns after it.
fn make_up_for(w: &mut [f32], errors: &[f32], upper: &[f32], columns: std::ops::Range<usize>, n: usize) {
    let (rest, g) = (n - columns.end, columns.len());
    if rest == 0 {
        return;
    }
    let n_rows = w.len() / n;
    let w = MatMut::from_row_major_slice_mut(w, n_rows, n).subcols_mut(columns.end, rest);
    let errors = FaerRef::from_row_major_slice(errors, n_rows, g);
    let upper = FaerRef::from_row_major_slice(upper, n, n).submatrix(columns.start, columns.end, g, rest);
    matmul(w, Accum::Add, errors, upper, -1.0, Par::Seq);
}

/// All rows, columns where they belong.
fn join(chunks: Vec<Rows>, n_rows: usize, factor: &Factor, grid: &Grid) -> Codes {
    let n = factor.n_columns();
    let (n_groups, n_units) = (n.div_ceil(grid.group), n.div_ceil(grid.unit()));
    let mut codes = Codes {
        grid: grid.clone(),
        n_rows,
        n_columns: n,
        levels: vec![0; n_rows * n],
        groups: vec![[0.0; 2]; n_rows * n_groups],
        units: vec![[1.0; 2]; n_rows * n_units],
        row_errors: chunks.iter().flat_map(|chunk| chunk.errors.iter().copied()).collect(),
    };
    let rows = chunks.iter().flat_map(|chunk| (0..chunk.errors.len()).map(move |row| (chunk, row)));
    for (out, (chunk, row)) in rows.enumerate() {
        for (i, &column) in factor.order.iter().enumerate() {
            codes.levels[out * n + column] = chunk.levels[row * n + i];
        }
        for i in 0..n_groups {
            let group = factor.order[i * grid.group] / grid.group;
            codes.groups[out * n_groups + group] = chunk.groups[row * n_groups + i];
        }
        for i in 0..n_units {
            let unit = factor.order[i * grid.unit()] / grid.unit();
            let UnitScales { scale, min } = chunk.units[row * n_units + i];
            codes.units[out * n_units + unit] = [scale, min];
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::{
        LayerStats,
        quant::{
            Hessian,
            test_support::{moments, numbers},
        },
    };

    fn layer(n: usize) -> (Array2<f32>, Hessian) {
        (numbers(70, n, 3), moments(n, 1))
    }

    fn grids() -> Vec<Grid> {
        let blocks = [
            Grid::q4_0(),
            Grid::q4_1(),
            Grid::q5_0(),
            Grid::q5_1(),
            Grid::q8_0(),
            Grid::iq4_nl(),
            Grid::mxfp4(),
        ];
        let units = [Grid::q2_k(), Grid::q3_k(), Grid::q4_k(), Grid::q5_k(), Grid::q6_k(), Grid::iq4_xs()];
        let integers =
            [Grid::integers(4, 128, true), Grid::integers(4, 128, false), Grid::integers(8, 64, true)];
        blocks.into_iter().chain(units).chain(integers).collect()
    }

    /// GPTQ column by column in f64, written from the paper's section 3.2 with the inverse updated as in equation 3; scales are
    /// given. No blocks, no Cholesky, no candidates.
    fn by_the_paper(weight: &Array2<f32>, factor: &Factor, codes: &Codes) -> Vec<u8> {
        let n = factor.n_columns();
        let at = |i: usize, j: usize| f64::from(factor.hessian[i * n + j]);
        let mut inverse = inverse(n, at);
        let mut w: Vec<Vec<f64>> = weight
            .rows()
            .into_iter()
            .map(|row| factor.order.iter().map(|&c| f64::from(row[c])).collect())
            .collect();
        let mut levels = vec![0; codes.levels.len()];
        let points: Vec<(u8, f64)> = (0..=u8::MAX)
            .filter(|&level| codes.decode_point(level).is_finite())
            .map(|level| (level, f64::from(codes.decode_point(level))))
            .collect();
        for i in 0..n {
            let column = factor.order[i];
            for (row, w) in w.iter_mut().enumerate() {
                let [scale, min] =
                    codes.groups[row * codes.n_groups() + column / codes.grid.group].map(f64::from);
                let value = |point: f64| scale * point - min;
                let &(level, point) = points
                    .iter()
                    .min_by(|a, b| (value(a.1) - w[i]).abs().total_cmp(&(value(b.1) - w[i]).abs()))
                    .unwrap();
                levels[row * n + column] = level;
                let error = (w[i] - value(point)) / inverse[i][i];
                for j in i..n {
                    w[j] -= error * inverse[i][j];
                }
            }
            let pivot = inverse[i].clone();
            for (j, row) in inverse.iter_mut().enumerate().skip(i + 1) {
                for k in i + 1..n {
                    row[k] -= pivot[j] * pivot[k] / pivot[i];
                }
            }
        }
        levels
    }

    fn inverse(n: usize, at: impl Fn(usize, usize) -> f64) -> Vec<Vec<f64>> {
        let mut rows: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                (0..2 * n).map(|j| if j < n { at(i, j) } else { f64::from(u8::from(j - n == i)) }).collect()
            })
            .collect();
        for i in 0..n {
            let pivot = rows[i][i];
            rows[i].iter_mut().for_each(|x| *x /= pivot);
            let row = rows[i].clone();
            for (j, other) in rows.iter_mut().enumerate().filter(|(j, _)| *j != i) {
                let _ = j;
                let factor = other[i];
                other.iter_mut().zip(&row).for_each(|(x, r)| *x -= factor * r);
            }
        }
        rows.into_iter().map(|row| row[n..].to_vec()).collect()
    }

    impl Codes {
        fn decode_point(&self, level: u8) -> f32 {
            match &self.grid.points {
                crate::quant::Points::Integers { low, high } if i32::from(level) + low > *high => f32::NAN,
                crate::quant::Points::Table { levels, .. } if !levels.contains(&level) => f32::NAN,
                _ => self.grid.point(level),
            }
        }
    }

    #[test]
    fn levels_are_those_of_the_paper_for_the_scales_that_were_found() {
        for grid in [
            Grid::q4_0(),
            Grid::q4_1(),
            Grid::iq4_nl(),
            Grid::integers(4, 32, false),
            Grid::integers(4, 128, true),
        ] {
            let (weight, hessian) = layer(96);
            for by_importance in [false, true] {
                let factor = Factor::new(&hessian, &grid, 0.01, by_importance).unwrap();
                let codes = solve(weight.view(), &factor, &grid, SolveSettings { n_passes: 0 }).unwrap();
                let expected = by_the_paper(&weight, &factor, &codes);
                let same = codes.levels.iter().zip(&expected).filter(|(a, b)| a == b).count();
                // Where f32 and f64 fall to different sides of a half, the rest of a row may differ.
                assert!(
                    same as f64 >= 0.995 * expected.len() as f64,
                    "{grid:?}: {same} of {}",
                    expected.len()
                );
            }
        }
    }

    #[test]
    fn every_step_lessens_the_layers_error() {
        for grid in grids() {
            let (weight, hessian) = layer(512);
            let factor = Factor::new(&hessian, &grid, 0.01, true).unwrap();
            let error = |codes: &Codes| hessian.error((&weight - &codes.decode()).view(), None);
            let [feedback, refined] = [0, 4].map(|n_passes| {
                let codes = solve(weight.view(), &factor, &grid, SolveSettings { n_passes }).unwrap();
                assert!(codes.decode().iter().all(|w| w.is_finite()));
                error(&codes)
            });
            // Rounding by itself: as if no two channels had anything in common.
            let mut alone = Hessian::empty(512);
            for i in 0..512 {
                let mut one = Array2::zeros((1, 512));
                one[[0, i]] = hessian.at(i, i).sqrt();
                alone.observe(one.view());
            }
            let plain = Factor::new(&alone, &grid, 0.01, true).unwrap();
            let plain = error(&solve(weight.view(), &plain, &grid, SolveSettings { n_passes: 0 }).unwrap());
            assert!(feedback < 0.8 * plain, "{grid:?}: {feedback} against {plain}");
            assert!(refined < feedback, "{grid:?}: {refined} against {feedback}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (weight, hessian) = layer(256);
        let grid = Grid::q4_k();
        let factor = Factor::new(&hessian, &grid, 0.01, true).unwrap();
        let run = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| solve(weight.view(), &factor, &grid, SolveSettings::default()).unwrap())
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn zeros_and_bad_weights() {
        let (_, hessian) = layer(256);
        for grid in grids() {
            let factor = Factor::new(&hessian, &grid, 0.01, true).unwrap();
            let zeros = Array2::zeros((3, 256));
            let codes = solve(zeros.view(), &factor, &grid, SolveSettings::default()).unwrap();
            assert!(codes.decode().iter().all(|w| w.abs() < 1e-30), "{grid:?}");
            let mut bad = Array2::zeros((3, 256));
            bad[[1, 7]] = f32::INFINITY;
            let error = solve(bad.view(), &factor, &grid, SolveSettings::default()).unwrap_err();
            assert!(matches!(error, CompressError::NotFinite { channel: 7, .. }));
            // A scale that no f16 holds is not taken for none.
            if grid.scales != Scales::PowerOfTwo {
                bad[[1, 7]] = 1e30;
                let error = solve(bad.view(), &factor, &grid, SolveSettings::default()).unwrap_err();
                assert!(
                    matches!(error, CompressError::NotFinite { what: "the scale", .. }),
                    "{grid:?}: {error}"
                );
            }
        }
    }
}
