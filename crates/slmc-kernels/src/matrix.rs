//! Matrix products of slices, by the `gemm` crate: strides instead of copies and transposes.

/// A matrix in a slice.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    shape: Shape,
}

/// A matrix in a slice, to be written.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl Shape {
    /// Rows of `columns` numbers, each `row_stride` after the one before.
    fn new(rows: usize, columns: usize, row_stride: usize, len: usize) -> Self {
        assert!(row_stride >= columns, "rows of {columns} overlap at a stride of {row_stride}");
        let end = if rows == 0 { Some(0) } else { (rows - 1).checked_mul(row_stride) };
        let end = end.and_then(|start| start.checked_add(columns));
        assert!(end.is_some_and(|end| end <= len), "{rows} rows of {columns} do not fit {len} numbers");
        Self { rows, columns, row_stride, column_stride: 1 }
    }
}

impl<'a> Matrix<'a> {
    /// `rows × columns` in row order.
    ///
    /// # Panics
    /// When the slice is too short.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// `rows × columns`, each row `row_stride` numbers after the one before.
    ///
    /// # Panics
    /// When the slice is too short or rows overlap.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, shape: Shape::new(rows, columns, row_stride, data.len()) }
    }

    pub(crate) fn data(self) -> &'a [f32] {
        self.data
    }

    pub(crate) fn shape(self) -> Shape {
        self.shape
    }

    /// The same numbers, rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        let Shape { rows, columns, row_stride, column_stride } = self.shape;
        let shape =
            Shape { rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride };
        Self { data: self.data, shape }
    }
}

impl<'a> MatrixMut<'a> {
    /// `rows × columns` in row order.
    ///
    /// # Panics
    /// When the slice is too short.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// `rows × columns`, each row `row_stride` numbers after the one before.
    ///
    /// # Panics
    /// When the slice is too short or rows overlap.
    pub fn strided(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        let shape = Shape::new(rows, columns, row_stride, data.len());
        Self { data, shape }
    }

    /// The numbers, row by row.
    pub(crate) fn into_data(self) -> &'a mut [f32] {
        self.data
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }
}

/// What a product does to the numbers that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Takes their place.
    Set,
    /// Is added to them.
    Add,
}

/// `out = a · b` or `out += a · b`, over rayon's current pool.
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply(a: Matrix<'_>, b: Matrix<'_>, out: MatrixMut<'_>, update: Update) {
    // The blocks of the product follow from the shapes; threads only share them out.
    product(a, b, out, update, gemm::Parallelism::Rayon(rayon::current_num_threads()));
}

/// As [`multiply`], on the calling thread: for products inside a parallel loop.
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply_one_thread(a: Matrix<'_>, b: Matrix<'_>, out: MatrixMut<'_>, update: Update) {
    product(a, b, out, update, gemm::Parallelism::None);
}

fn product(a: Matrix<'_>, b: Matrix<'_>, out: MatrixMut<'_>, update: Update, threads: gemm::Parallelism) {
    assert_eq!(a.shape.columns, b.shape.rows, "the product's inner sizes");
    assert_eq!((a.shape.rows, b.shape.columns), (out.shape.rows, out.shape.columns), "the product's shape");
    let stride = usize::cast_signed;
    // SAFETY: `Shape::new` proved that every row and column lies inside its slice, transposing keeps the set
    // of places, and `out` is exclusively borrowed, so it overlaps neither input.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            a.shape.rows,
            b.shape.columns,
            a.shape.columns,
            out.data.as_mut_ptr(),
            stride(out.shape.column_stride),
            stride(out.shape.row_stride),
            update == Update::Add,
            a.data.as_ptr(),
            stride(a.shape.column_stride),
            stride(a.shape.row_stride),
            b.data.as_ptr(),
            stride(b.shape.column_stride),
            stride(b.shape.row_stride),
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads, worst};

    /// Sizes around the kernels' tiles (8, 16, 32, 64), and the odd ones of small models.
    const SIZES: [usize; 10] = [1, 2, 7, 16, 37, 48, 65, 172, 288, 576];

    fn triple_loop(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    out[i * n + j] += f64::from(a[i * k + l]) * f64::from(b[l * n + j]);
                }
            }
        }
        out
    }

    fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
    }

    #[test]
    fn every_layout_agrees_with_the_triple_loop() {
        for (m, k, n) in [(1, 1, 1), (37, 65, 172), (65, 8, 37), (7, 288, 16), (130, 48, 130)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let expected = triple_loop(&a, &b, m, k, n);
            let (a_t, b_t) = (transpose(&a, m, k), transpose(&b, k, n));
            let lefts = [Matrix::new(&a, m, k), Matrix::new(&a_t, k, m).transposed()];
            let rights = [Matrix::new(&b, k, n), Matrix::new(&b_t, n, k).transposed()];
            for left in lefts {
                for right in rights {
                    let mut out = vec![7.0; m * (n + 3)];
                    multiply(left, right, MatrixMut::strided(&mut out, m, n, n + 3), Update::Set);
                    multiply(left, right, MatrixMut::strided(&mut out, m, n, n + 3), Update::Add);
                    let found: Vec<f32> =
                        out.chunks(n + 3).flat_map(|row| &row[..n]).map(|x| x / 2.0).collect();
                    assert!(worst(&found, &expected) < 1e-6);
                    assert!(out.chunks(n + 3).all(|row| row[n..] == [7.0; 3]), "beyond the columns");
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for &m in &SIZES {
            for &k in &SIZES {
                for &n in &[37, 288] {
                    let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
                    same_on_any_threads(|| {
                        let mut out = vec![0.0; m * n];
                        let b = Matrix::new(&b, n, k).transposed();
                        multiply(Matrix::new(&a, m, k), b, MatrixMut::new(&mut out, m, n), Update::Set);
                        out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                    });
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_short_slice_is_refused() {
        Matrix::new(&[0.0; 5], 2, 3);
    }
}
