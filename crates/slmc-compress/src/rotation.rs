//! Rotations that spread what a few channels carry over all of them (QuaRot, arXiv:2404.00456, sections 3 and 4.1: the part
//! that is done to the weights once).
//!
//! `Q = diag(s) (C (x) H) / sqrt(p)` for `n = m p` with `p` the largest power of two in `n`: signs `s`, the Sylvester-Hadamard
//! matrix `H` of `p` and the Hartley matrix `C` of the odd `m`, `C_jk = (cos + sin)(2 pi j k / m) / sqrt(m)`, symmetric and orthogonal
//! as `H / sqrt(p)` is. No entry is larger than `sqrt(2 / n)`, and a row is rotated in `n (m + log p)` steps.

use rayon::prelude::*;

/// An orthogonal matrix of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    signs: Vec<f64>,
    /// Row order, `[m, m]`.
    hartley: Vec<f64>,
}

impl Rotation {
    /// The rotation of `n` channels whose signs follow from `seed`.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn new(n: usize, seed: u64) -> Self {
        assert!(n > 0, "a rotation of some channels");
        let m = n >> n.trailing_zeros();
        let entry = |j: usize, k: usize| {
            let angle = std::f64::consts::TAU * ((j * k) % m) as f64 / m as f64;
            (angle.cos() + angle.sin()) / (m as f64).sqrt()
        };
        let signs = (0..n as u64).map(|i| if mixed(seed, i) >> 63 == 0 { 1.0 } else { -1.0 });
        Self { signs: signs.collect(), hartley: (0..m * m).map(|at| entry(at / m, at % m)).collect() }
    }

    /// Channels.
    pub fn n_channels(&self) -> usize {
        self.signs.len()
    }

    /// `row <- row Q`.
    ///
    /// # Panics
    /// When the row is not as long as the rotation.
    pub fn rotate(&self, row: &mut [f64]) {
        let n = self.n_channels();
        assert_eq!(row.len(), n, "a row of the rotation's channels");
        row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        let m = n >> n.trailing_zeros();
        let p = n / m;
        let scale = 1.0 / (p as f64).sqrt();
        for part in row.chunks_exact_mut(p) {
            hadamard(part);
            part.iter_mut().for_each(|x| *x *= scale);
        }
        if m > 1 {
            let parts = row.to_vec();
            for (out, column) in row.chunks_exact_mut(p).zip(self.hartley.chunks_exact(m)) {
                out.fill(0.0);
                for (part, factor) in parts.chunks_exact(p).zip(column) {
                    out.iter_mut().zip(part).for_each(|(out, x)| *out += factor * x);
                }
            }
        }
    }

    /// Rotates each stretch of `n` numbers: a matrix that reads rotated channels, `W Q`.
    ///
    /// # Panics
    /// When the numbers are no whole stretches.
    pub fn rotate_rows(&self, numbers: &mut [f32]) {
        let n = self.n_channels();
        assert_eq!(numbers.len() % n, 0, "whole rows");
        numbers.par_chunks_exact_mut(n).for_each_init(
            || vec![0.0; n],
            |wide, row| {
                wide.iter_mut().zip(&*row).for_each(|(wide, &x)| *wide = f64::from(x));
                self.rotate(wide);
                row.iter_mut().zip(&*wide).for_each(|(x, &wide)| *x = wide as f32);
            },
        );
    }

    /// Rotates each column of each stretch of `n` rows: a matrix that writes rotated channels, `Q^T W`.
    ///
    /// # Panics
    /// When the numbers are no whole stretches of such rows.
    pub fn rotate_columns(&self, numbers: &mut [f32], n_columns: usize) {
        let n = self.n_channels();
        assert_eq!(numbers.len() % (n * n_columns), 0, "whole columns");
        for rows in numbers.chunks_exact_mut(n * n_columns) {
            let mut turned: Vec<f32> =
                (0..n_columns).flat_map(|j| rows[j..].iter().step_by(n_columns).copied()).collect();
            self.rotate_rows(&mut turned);
            for (i, row) in rows.chunks_exact_mut(n_columns).enumerate() {
                row.iter_mut().zip(turned[i..].iter().step_by(n)).for_each(|(x, &turned)| *x = turned);
            }
        }
    }
}

/// Sylvester's Hadamard matrix times a row, in place: its size is a power of two.
fn hadamard(row: &mut [f64]) {
    let mut half = 1;
    while half < row.len() {
        for pair in row.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// Steele, Lea and Flood 2014, SplitMix64: number `i` of a seed's.
fn mixed(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of `Q`.
    fn matrix(rotation: &Rotation) -> Vec<Vec<f64>> {
        let n = rotation.n_channels();
        let unit = |i: usize| {
            let mut row = vec![0.0; n];
            row[i] = 1.0;
            rotation.rotate(&mut row);
            row
        };
        (0..n).map(unit).collect()
    }

    #[test]
    fn any_size_is_orthogonal_and_spreads() {
        // Powers of two, odd ones, SmolLM2's 576 and a head's 80.
        for n in [1, 2, 3, 15, 64, 80, 576] {
            let q = matrix(&Rotation::new(n, 7));
            for (i, a) in q.iter().enumerate() {
                assert!(a.iter().all(|x| x.abs() <= (2.0 / n as f64).sqrt() + 1e-12), "{n}");
                for (j, b) in q.iter().enumerate() {
                    let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12, "{n}: {i} {j} {product}");
                }
            }
        }
    }

    #[test]
    fn it_is_what_the_definition_says() {
        let n = 12;
        let rotation = Rotation::new(n, 3);
        for (i, row) in matrix(&rotation).iter().enumerate() {
            for (j, found) in row.iter().enumerate() {
                let (a, b, c, d) = (i / 4, i % 4, j / 4, j % 4);
                let angle = 2.0 * std::f64::consts::PI * (a * c) as f64 / 3.0;
                // Of Sylvester's matrix: minus one to the number of bits that both indices have.
                let sylvester = if (b & d).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
                let wanted = rotation.signs[i] * (angle.cos() + angle.sin()) / 3_f64.sqrt() * sylvester / 2.0;
                assert!((found - wanted).abs() < 1e-12, "{i} {j}");
            }
        }
        let ones = |seed| Rotation::new(64, seed).signs.iter().filter(|&&sign| sign > 0.0).count();
        assert!((20..45).contains(&ones(0)) && Rotation::new(64, 0) != Rotation::new(64, 1));
    }

    #[test]
    fn a_writer_and_a_reader_of_rotated_channels_are_the_same_function() {
        // B A for A [6, 4] and B [3, 6].
        let number = |i: usize| ((i * 37) % 23) as f32 / 8.0 - 1.0;
        let (mut a, mut b): (Vec<f32>, Vec<f32>) =
            ((0..24).map(number).collect(), (24..42).map(number).collect());
        let product = |a: &[f32], b: &[f32]| -> Vec<f32> {
            let at = |i: usize, j: usize| (0..6).map(|k| b[i * 6 + k] * a[k * 4 + j]).sum();
            (0..12).map(|ij| at(ij / 4, ij % 4)).collect()
        };
        let before = product(&a, &b);
        let rotation = Rotation::new(6, 1);
        rotation.rotate_columns(&mut a, 4);
        rotation.rotate_rows(&mut b);
        for (before, after) in before.iter().zip(product(&a, &b)) {
            assert!((before - after).abs() < 1e-5, "{before} {after}");
        }
    }
}
