//! Coordinate descent after GPTQ: levels, then scales, one at a time, each to where the layer's error is least with all
//! others as they are (as QuantEase does for levels, Behdin et al. 2023, arXiv:2309.01885, section 3).

use faer::{Accum, MatMut, MatRef as FaerRef, Par, linalg::matmul::matmul};

use super::{
    factor::Factor,
    grid::{Grid, Scales},
    propose::representable,
    round::Round,
    solve::Rows,
    trial::over,
};

/// Passes over scales; levels settle later than scales.
const SCALE_PASSES: usize = 2;

/// Runs the passes, and leaves each row's error.
#[inline(always)]
pub(super) fn refine<R: Round>(rows: &mut Rows, round: R, factor: &Factor, grid: &Grid, n_passes: usize) {
    let n = rows.n;
    let n_rows = rows.w.len() / n;
    let error: Vec<f32> = rows.original.iter().zip(&rows.w).map(|(w, v)| w - v).collect();
    // Half of the error's gradient by each weight, with its sign turned.
    let mut pull = vec![0.0; n_rows * n];
    matmul(
        MatMut::from_row_major_slice_mut(&mut pull, n_rows, n),
        Accum::Replace,
        FaerRef::from_row_major_slice(&error, n_rows, n),
        FaerRef::from_row_major_slice(&factor.hessian, n, n),
        1.0,
        Par::Seq,
    );
    let mut points = vec![0.0; grid.group];
    let mut is_settled = vec![false; n_rows];
    for pass in 0..n_passes {
        let mut has_changed = vec![false; n_rows];
        // A group's rows of the Hessian serve all rows of the weight before the next group's are read.
        for (index, first) in (0..n).step_by(grid.group).enumerate() {
            let columns = first..n.min(first + grid.group);
            for row in (0..n_rows).filter(|&row| !is_settled[row]) {
                let pull = &mut pull[row * n..(row + 1) * n];
                let mut group =
                    Group { rows, row, index, columns: columns.clone(), hessian: &factor.hessian };
                has_changed[row] |= group.settle_levels(round, pull);
                if pass < SCALE_PASSES {
                    has_changed[row] |= group.settle_scale(round, grid, pull, &mut points);
                }
            }
        }
        is_settled.iter_mut().zip(has_changed).for_each(|(settled, changed)| *settled |= !changed);
    }
    rows.errors =
        (0..n_rows).map(|row| row_error(rows, row, &pull[row * n..(row + 1) * n], factor.lambda)).collect();
}

/// The row's weighted output error; what damping adds to the Hessian does not count.
fn row_error(rows: &Rows, row: usize, pull: &[f32], lambda: f64) -> f64 {
    let place = row * rows.n..(row + 1) * rows.n;
    let deltas = rows.original[place.clone()].iter().zip(&rows.w[place]).map(|(w, v)| f64::from(w - v));
    let sum: f64 = deltas.zip(pull).map(|(delta, &pull)| delta * (f64::from(pull) - lambda * delta)).sum();
    sum.max(0.0)
}

/// A group of a row.
struct Group<'a> {
    rows: &'a mut Rows,
    row: usize,
    index: usize,
    columns: std::ops::Range<usize>,
    hessian: &'a [f32],
}

impl Group<'_> {
    fn scales(&mut self, group: usize) -> &mut [f32; 2] {
        let n_groups = self.rows.n.div_ceil(group);
        &mut self.rows.groups[self.row * n_groups + self.index]
    }

    /// Each level to the nearest of its best, with the others as they are.
    #[inline(always)]
    fn settle_levels<R: Round>(&mut self, round: R, pull: &mut [f32]) -> bool {
        let n = self.rows.n;
        let n_groups = self.rows.groups.len() / (self.rows.w.len() / n);
        let [scale, min] = self.rows.groups[self.row * n_groups + self.index];
        let inverse = over(scale);
        let mut has_changed = false;
        for j in self.columns.clone() {
            let at = self.row * n + j;
            let (v, diagonal) = (self.rows.w[at], self.hessian[j * n + j]);
            let point = round.nearest((v + pull[j] / diagonal + min) * inverse);
            let better = point * scale - min;
            let change = better - v;
            // Rounding may keep a weight that lies half-way moving to and fro: only what helps counts.
            if change == 0.0 || change * (change * diagonal - 2.0 * pull[j]) >= 0.0 {
                continue;
            }
            self.rows.w[at] = better;
            self.rows.levels[at] = round.level(point);
            let column = &self.hessian[j * n..(j + 1) * n];
            pull.iter_mut().zip(column).for_each(|(pull, h)| *pull -= change * h);
            has_changed = true;
        }
        has_changed
    }

    /// Scale, then min, to the nearest that can be stored of their best for the levels.
    #[inline(always)]
    fn settle_scale<R: Round>(
        &mut self,
        round: R,
        grid: &Grid,
        pull: &mut [f32],
        points: &mut [f32],
    ) -> bool {
        if grid.scales == Scales::PowerOfTwo {
            return false;
        }
        let n = self.rows.n;
        let unit_at = self.row * n.div_ceil(grid.unit()) + self.columns.start / grid.unit();
        let unit = self.rows.units[unit_at];
        let [scale, min] = *self.scales(grid.group);
        let inverse = over(scale);
        let g = self.columns.len();
        let has_zero = grid.scales == Scales::HalfAndZero;
        let zero = if has_zero { min * inverse } else { 0.0 };
        let place = self.row * n + self.columns.start..self.row * n + self.columns.end;
        for (point, v) in points.iter_mut().zip(&self.rows.w[place.clone()]) {
            *point = round.nearest((v + min) * inverse) - zero;
        }
        let mut has_changed = false;
        let mut next = [scale, min];
        if let Some(best) = self.best_step(&points[..g], pull) {
            let [better, _] = representable(grid, unit, [scale + best.by, min]);
            if best.helps(better - scale) && (better > 0.0 || grid.scales == Scales::Half) {
                next = [better, if has_zero { zero * better } else { min }];
                self.shift(better - scale, &points[..g], pull, &place);
                has_changed = true;
            }
        }
        if matches!(grid.scales, Scales::HalfAndMin | Scales::IntegersAndMin { .. }) {
            points[..g].fill(-1.0);
            if let Some(best) = self.best_step(&points[..g], pull) {
                let [_, better] = representable(grid, unit, [next[0], next[1] + best.by]);
                if best.helps(better - next[1]) {
                    self.shift(better - next[1], &points[..g], pull, &place);
                    next[1] = better;
                    has_changed = true;
                }
            }
        }
        if has_changed {
            *self.scales(grid.group) = next;
            self.store_exactly(grid, next, &place);
        }
        has_changed
    }

    /// How far to move along a direction within the group.
    #[inline(always)]
    fn best_step(&self, direction: &[f32], pull: &[f32]) -> Option<Best> {
        let n = self.rows.n;
        let (mut slope, mut curvature) = (0.0_f32, 0.0_f32);
        for (&d, j) in direction.iter().zip(self.columns.clone()) {
            let row = &self.hessian[j * n + self.columns.start..j * n + self.columns.end];
            slope += d * pull[j];
            curvature += d * dot(row, direction);
        }
        (curvature > 0.0).then(|| Best { by: slope / curvature, slope, curvature })
    }

    #[inline(always)]
    fn shift(&mut self, by: f32, direction: &[f32], pull: &mut [f32], place: &std::ops::Range<usize>) {
        let n = self.rows.n;
        for (&d, j) in direction.iter().zip(self.columns.clone()) {
            let (row, change) = (&self.hessian[j * n..(j + 1) * n], by * d);
            pull.iter_mut().zip(row).for_each(|(pull, h)| *pull -= change * h);
        }
        self.rows.w[place.clone()].iter_mut().zip(direction).for_each(|(v, d)| *v += by * d);
    }

    /// The weights as their levels and the new scale give them, without what the shift rounded off.
    #[inline(always)]
    fn store_exactly(&mut self, grid: &Grid, [scale, min]: [f32; 2], place: &std::ops::Range<usize>) {
        for at in place.clone() {
            self.rows.w[at] = grid.point(self.rows.levels[at]) * scale - min;
        }
    }
}

/// A sum of products in eight lanes.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}

/// A move along a direction.
struct Best {
    by: f32,
    slope: f32,
    curvature: f32,
}

impl Best {
    /// Whether a move that can be stored lessens the error.
    fn helps(&self, by: f32) -> bool {
        by != 0.0 && by * (by * self.curvature - 2.0 * self.slope) < 0.0
    }
}
