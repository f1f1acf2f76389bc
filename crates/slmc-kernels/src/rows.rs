//! Small passes over rows: bias, sums, gathering and scattering.

use rayon::prelude::*;

use crate::{
    CHUNK,
    dispatch::{LANES, dispatched},
    rows_per_task,
};

dispatched! {
    fn add_chunk(to: &mut [f32], from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

dispatched! {
    fn scale_chunk(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}

dispatched! {
    /// Squares summed in f64, sixteen lanes.
    fn squares_chunk(x: &[f32]) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for x in whole {
            for i in 0..LANES {
                lanes[i] += f64::from(x[i]) * f64::from(x[i]);
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            lanes[i] += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}

/// `to += from`, number by number.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), from.len());
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| add_chunk(to, from));
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| scale_chunk(x, factor));
}

/// `Σ x²`, in f64.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let partial: Vec<f64> = x.par_chunks(CHUNK).map(squares_chunk).collect();
    partial.iter().sum()
}

/// Adds a row (a bias) to each row of `x`; rows lie `row_stride` apart.
///
/// # Panics
/// When the row is longer than the stride.
pub fn add_row(x: &mut [f32], row_stride: usize, row: &[f32]) {
    assert!(row.len() <= row_stride);
    let task = rows_per_task(row_stride) * row_stride;
    x.par_chunks_mut(task)
        .for_each(|x| x.chunks_mut(row_stride).for_each(|x| add_chunk(&mut x[..row.len()], row)));
}

/// Adds the sum of all rows of `x` (which lie `row_stride` apart) to `sums`: a bias's gradient.
///
/// # Panics
/// When `sums` is longer than the stride.
pub fn column_sums(x: &[f32], row_stride: usize, sums: &mut [f32]) {
    assert!(sums.len() <= row_stride);
    let n = sums.len();
    let task = rows_per_task(row_stride) * row_stride;
    let sum = |x: &[f32]| {
        let mut partial = vec![0.0; n];
        x.chunks(row_stride).for_each(|x| add_chunk(&mut partial, &x[..n]));
        partial
    };
    let partial: Vec<Vec<f32>> = x.par_chunks(task).map(sum).collect();
    partial.iter().for_each(|partial| add_chunk(sums, partial));
}

/// Copies rows of a table: `out` row `i` is row `ids[i]`.
///
/// # Panics
/// When an id is outside the table or the sizes do not fit.
pub fn gather_rows(table: &[f32], columns: usize, ids: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * columns);
    for (out, &id) in out.chunks_exact_mut(columns).zip(ids) {
        let start = id as usize * columns;
        out.copy_from_slice(&table[start..start + columns]);
    }
}

/// Adds row `i` of `rows` to row `ids[i]` of the table, in the order of `ids`.
///
/// # Panics
/// When an id is outside the table or the sizes do not fit.
pub fn scatter_add_rows(table: &mut [f32], columns: usize, ids: &[u32], rows: &[f32]) {
    assert_eq!(rows.len(), ids.len() * columns);
    for (row, &id) in rows.chunks_exact(columns).zip(ids) {
        let start = id as usize * columns;
        add_chunk(&mut table[start..start + columns], row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads, wide, worst};

    #[test]
    fn sums_follow_the_definition_on_any_threads() {
        let (n_rows, stride, n) = (1501, 60, 37);
        let x = numbers(n_rows * stride, 1);
        let sums = same_on_any_threads(|| {
            let mut sums = vec![0.5; n];
            column_sums(&x, stride, &mut sums);
            sums
        });
        let expected: Vec<f64> =
            (0..n).map(|j| 0.5 + x.chunks(stride).map(|row| f64::from(row[j])).sum::<f64>()).collect();
        assert!(worst(&sums, &expected) < 1e-5);
        let squares = same_on_any_threads(|| sum_of_squares(&x));
        let expected: f64 = wide(&x).iter().map(|x| x * x).sum();
        assert!((squares - expected).abs() < 1e-9 * expected);
    }

    #[test]
    fn rows_are_gathered_and_scattered() {
        let table = numbers(5 * 3, 1);
        let ids = [4, 0, 4];
        let mut rows = vec![0.0; 9];
        gather_rows(&table, 3, &ids, &mut rows);
        assert_eq!(rows[..3], table[12..]);
        assert_eq!(rows[3..6], table[..3]);
        let mut sums = vec![0.0; 15];
        scatter_add_rows(&mut sums, 3, &ids, &rows);
        assert_eq!(sums[12], 2.0 * table[12]);
        assert_eq!(sums[..3], table[..3]);
        assert_eq!(sums[3..12], [0.0; 9]);
    }

    #[test]
    fn element_wise_passes() {
        let (mut x, y) = (numbers(70_001, 1), numbers(70_001, 2));
        let before = x.clone();
        add_assign(&mut x, &y);
        scale(&mut x, 0.5);
        for i in 0..x.len() {
            assert_eq!(x[i], (before[i] + y[i]) * 0.5);
        }
        let mut x = vec![1.0; 10];
        add_row(&mut x, 5, &[1.0, 2.0]);
        assert_eq!(x, [2.0, 3.0, 1.0, 1.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0]);
    }
}
