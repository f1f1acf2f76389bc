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

#[inline(always)]
pub(super) fn refine<R: Round>(rows: &mut Rows, round: R, factor: &Factor, grid: &Grid, n_passes: usize) {
    if n_passes == 0 {
        return;
    }
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
    let mut step = vec![0.0; n];
    for row in 0..n_rows {
        let pull = &mut pull[row * n..(row + 1) * n];
        for pass in 0..n_passes {
            let mut has_changed = false;
            for (index, first) in (0..n).step_by(grid.group).enumerate() {
                let columns = first..n.min(first + grid.group);
                let mut group = Group { rows, row, index, columns, hessian: &factor.hessian };
                has_changed |= group.settle_levels(round, pull);
                if pass < SCALE_PASSES {
                    has_changed |= group.settle_scale(round, grid, pull, &mut points, &mut step);
                }
            }
            if !has_changed {
                break;
            }
        }
    }
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
        step: &mut [f32],
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
        if let Some(best) = self.best_step(&points[..g], pull, step) {
            let [better, _] = representable(grid, unit, [scale + best.by, min]);
            if best.helps(better - scale) && (better > 0.0 || grid.scales == Scales::Half) {
                next = [better, if has_zero { zero * better } else { min }];
                self.shift(better - scale, &points[..g], pull, step, &place);
                has_changed = true;
            }
        }
        if matches!(grid.scales, Scales::HalfAndMin | Scales::IntegersAndMin { .. }) {
            points[..g].fill(-1.0);
            if let Some(best) = self.best_step(&points[..g], pull, step) {
                let [_, better] = representable(grid, unit, [next[0], next[1] + best.by]);
                if best.helps(better - next[1]) {
                    self.shift(better - next[1], &points[..g], pull, step, &place);
                    next[1] = better;
                    has_changed = true;
                }
            }
        }
        if has_changed {
            *self.scales(grid.group) = next;
            self.store_exactly(round, grid, next, &place);
        }
        has_changed
    }

    /// How far to move along a direction within the group. Leaves `H · direction` in `step`.
    #[inline(always)]
    fn best_step(&self, direction: &[f32], pull: &[f32], step: &mut [f32]) -> Option<Best> {
        let n = self.rows.n;
        step.fill(0.0);
        for (&d, j) in direction.iter().zip(self.columns.clone()) {
            if d != 0.0 {
                let row = &self.hessian[j * n..(j + 1) * n];
                step.iter_mut().zip(row).for_each(|(step, h)| *step += d * h);
            }
        }
        let along =
            |x: &[f32]| -> f32 { direction.iter().zip(&x[self.columns.clone()]).map(|(d, x)| d * x).sum() };
        let (slope, curvature) = (along(pull), along(step));
        (curvature > 0.0).then(|| Best { by: slope / curvature, slope, curvature })
    }

    #[inline(always)]
    fn shift(
        &mut self,
        by: f32,
        direction: &[f32],
        pull: &mut [f32],
        step: &[f32],
        place: &std::ops::Range<usize>,
    ) {
        pull.iter_mut().zip(step).for_each(|(pull, step)| *pull -= by * step);
        self.rows.w[place.clone()].iter_mut().zip(direction).for_each(|(v, d)| *v += by * d);
    }

    /// The weights as their levels and the new scale give them, without what the shift rounded off.
    #[inline(always)]
    fn store_exactly<R: Round>(
        &mut self,
        round: R,
        grid: &Grid,
        [scale, min]: [f32; 2],
        place: &std::ops::Range<usize>,
    ) {
        let _ = round;
        for at in place.clone() {
            self.rows.w[at] = grid.point(self.rows.levels[at]) * scale - min;
        }
    }
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
