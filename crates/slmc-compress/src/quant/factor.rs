//! The order in which columns are rounded, and how an error in one is made up for by those after it.

use rayon::prelude::*;

use super::{
    cholesky::{damped, of_the_reverse},
    grid::Grid,
    hessian::Hessian,
};
use crate::CompressError;

/// Rows that are turned around at once: a cache line of f64 holds as many.
const STRIP: usize = 8;

/// The order of columns and the factor of the inverse Hessian (GPTQ, Frantar et al. 2022, arXiv:2210.17323,
/// section 3.3, step 3): `H⁻¹ = Uᵀ U` with `U` upper triangular, columns in the order of rounding.
#[derive(Clone, Debug)]
pub struct Factor {
    /// `order[i]` is the column that is rounded `i`-th. Units stay together, and groups within them.
    pub(crate) order: Vec<usize>,
    /// `U`, `[n, n]` in row order.
    pub(crate) upper: Vec<f32>,
    /// The damped Hessian, `[n, n]`, both halves.
    pub(crate) hessian: Vec<f32>,
    /// Damping that was used, as a share of the mean diagonal: more than what was asked for when the matrix could not
    /// be factored with that.
    pub damping: f64,
    /// The damping itself.
    pub(crate) lambda: f64,
    /// Channels that were never active.
    pub n_dead: usize,
}

impl Factor {
    /// Factors a layer's Hessian for a grid. `damping` is a share of the mean diagonal; 0.01 to 0.1 is usual. With
    /// `by_importance` columns with the largest diagonal come first (act-order), as far as units allow: their errors can
    /// still be made up for by all the others.
    ///
    /// # Errors
    /// When nothing or something not finite was observed, rows are not whole units (but for a last, shorter one where
    /// a unit is a group), or the matrix cannot be factored.
    pub fn new(
        hessian: &Hessian,
        grid: &Grid,
        damping: f64,
        by_importance: bool,
    ) -> Result<Self, CompressError> {
        hessian.check()?;
        let n = hessian.n_columns();
        let unit = grid.unit();
        if unit != grid.group && !n.is_multiple_of(unit) {
            return Err(CompressError::Units { columns: n, unit });
        }
        let diagonal = hessian.diagonal();
        let order = if by_importance { order(&diagonal, grid) } else { (0..n).collect() };
        let mean = diagonal.iter().map(|&h| f64::from(h)).sum::<f64>() / n as f64;
        let n_dead = diagonal.iter().filter(|&&h| h == 0.0).count();
        let at = |damping: f64, i: usize, j: usize| {
            let entry = f64::from(hessian.at(order[i], order[j]));
            // A channel that was never active says nothing of the others: it is rounded by itself.
            let own = if entry == 0.0 { mean.max(1e-30) } else { 0.0 };
            if i == j { entry + damping * mean + own } else { entry }
        };
        let (upper, damping) = damped(damping, |damping| inverse_factor(n, |i, j| at(damping, i, j)))?;
        let mut damped = vec![0.0; n * n];
        damped.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, entry)| *entry = at(damping, i, j) as f32);
        });
        Ok(Self { order, upper, hessian: damped, damping, lambda: damping * mean, n_dead })
    }

    /// Columns of the layer.
    pub fn n_columns(&self) -> usize {
        self.order.len()
    }
}

/// Units by their mean diagonal, groups of a unit by theirs, columns of a group by their own: descending, the first
/// of equal ones first.
fn order(diagonal: &[f32], grid: &Grid) -> Vec<usize> {
    let mean = |columns: &[usize]| {
        columns.iter().map(|&c| f64::from(diagonal[c])).sum::<f64>() / columns.len() as f64
    };
    let descending = |parts: &mut Vec<Vec<usize>>| {
        parts.sort_by(|a, b| mean(b).total_cmp(&mean(a)).then(a.iter().min().cmp(&b.iter().min())));
    };
    let all: Vec<usize> = (0..diagonal.len()).collect();
    let mut units: Vec<Vec<usize>> = all.chunks(grid.unit()).map(<[usize]>::to_vec).collect();
    for unit in &mut units {
        let mut groups: Vec<Vec<usize>> = unit.chunks(grid.group).map(<[usize]>::to_vec).collect();
        for group in &mut groups {
            group.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        }
        descending(&mut groups);
        *unit = groups.concat();
    }
    // A last unit that is shorter stays last: the solver cuts rows into equal units.
    let shorter = units.pop_if(|unit| unit.len() < grid.unit());
    descending(&mut units);
    units.extend(shorter);
    units.concat()
}

/// `U`, or `None` when the matrix has no Cholesky factor. With the columns reversed, `H = L Lᵀ`; then the reversed
/// `L⁻¹` is `U`.
fn inverse_factor(n: usize, at: impl Fn(usize, usize) -> f64 + Sync) -> Option<Vec<f32>> {
    let lower = of_the_reverse(n, at)?;
    let inverse = lower.inverse();
    // Of a wide layer each of these is half a gigabyte.
    drop(lower);
    let mut upper = vec![0.0; n * n];
    // A strip of rows at a time: of each column of the inverse, what they hold lies together.
    upper.par_chunks_mut((STRIP * n).max(1)).enumerate().for_each(|(strip, rows)| {
        for j in strip * STRIP..n {
            for (i, row) in (strip * STRIP..=j).zip(rows.chunks_exact_mut(n)) {
                row[j] = inverse.at(n - 1 - i, n - 1 - j) as f32;
            }
        }
    });
    let is_sound = upper.par_iter().all(|x| x.is_finite()) && (0..n).all(|i| upper[i * n + i] > 0.0);
    is_sound.then_some(upper)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;
    use crate::LayerStats;

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let n = 64;
        let inputs = Array2::from_shape_fn((200, n), |(t, c)| {
            ((t * 7919 + c * 104_729) as f32).sin() * (1 + c % 5) as f32
        });
        let mut hessian = Hessian::empty(n);
        hessian.observe(inputs.view());
        for by_importance in [false, true] {
            let factor = Factor::new(&hessian, &Grid::q4_0(), 0.01, by_importance).unwrap();
            // (Uᵀ U) H = 1.
            for i in 0..n {
                for j in 0..n {
                    let inverse = |i: usize, k: usize| -> f64 {
                        (0..n)
                            .map(|l| f64::from(factor.upper[l * n + i]) * f64::from(factor.upper[l * n + k]))
                            .sum()
                    };
                    let product: f64 =
                        (0..n).map(|k| inverse(i, k) * f64::from(factor.hessian[k * n + j])).sum();
                    assert!((product - f64::from(u8::from(i == j))).abs() < 1e-3, "{i} {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn units_and_groups_stay_together() {
        let diagonal: Vec<f32> = (0..512).map(|i| ((i * 37) % 101) as f32).collect();
        let grid = Grid::q6_k();
        let order = order(&diagonal, &grid);
        for unit in order.chunks(256) {
            assert!(unit.iter().all(|c| c / 256 == unit[0] / 256));
            for group in unit.chunks(16) {
                assert!(group.iter().all(|c| c / 16 == group[0] / 16));
                assert!(group.is_sorted_by(|&a, &b| diagonal[a] >= diagonal[b]));
            }
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(i, &c)| i == c));
    }

    #[test]
    fn damping_grows_and_dead_channels_are_counted() {
        let mut hessian = Hessian::empty(32);
        let inputs = Array2::from_shape_fn((3, 32), |(t, c)| if c == 5 { 0.0 } else { (t + c) as f32 });
        hessian.observe(inputs.view());
        let factor = Factor::new(&hessian, &Grid::q4_0(), 0.0, false).unwrap();
        assert!(factor.damping > 0.0);
        assert_eq!(factor.n_dead, 1);
        let mut broken = Hessian::empty(2);
        broken.observe(array![[1.0, f32::NAN]].view());
        assert!(matches!(
            Factor::new(&broken, &Grid::q4_0(), 0.01, false),
            Err(CompressError::NotFinite { channel: 1, .. })
        ));
    }
}
