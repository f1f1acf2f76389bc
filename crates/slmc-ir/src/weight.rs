//! One tensor's numbers, still packed.

use bytes::Bytes;

use crate::Format;

/// A tensor as it is stored: shape, format, bytes (often a slice of a mapped file: cloning is free).
#[derive(Clone, Debug)]
pub struct Weight {
    shape: Vec<usize>,
    format: Format,
    bytes: Bytes,
}

/// Bytes that are not the tensor they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// Rows are not whole blocks.
    #[error("rows of {columns} weights are not whole {format} blocks of {block}", block = format.block_weights())]
    PartialBlock {
        /// Weights in a row.
        columns: usize,
        /// The format asked for.
        format: Format,
    },
    /// The byte count does not follow from shape and format.
    #[error("{found} bytes where {format} of shape {shape:?} has {expected}")]
    Length {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// Its format.
        format: Format,
        /// Bytes that shape and format call for.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The number of weights overflows.
    #[error("shape {0:?} has more weights than memory has addresses")]
    TooLarge(Vec<usize>),
}

impl Weight {
    /// Checks that the bytes are `shape` in `format`. The last dimension is the row's length.
    pub fn new(shape: Vec<usize>, format: Format, bytes: Bytes) -> Result<Self, WeightError> {
        let expected = Self::bytes_for(&shape, format)?;
        if bytes.len() != expected {
            return Err(WeightError::Length { shape, format, expected, found: bytes.len() });
        }
        Ok(Self { shape, format, bytes })
    }

    /// Bytes that a tensor of this shape takes in this format.
    pub fn bytes_for(shape: &[usize], format: Format) -> Result<usize, WeightError> {
        let columns = shape.last().copied().unwrap_or(1);
        let too_large = || WeightError::TooLarge(shape.to_vec());
        let n_weights = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).ok_or_else(too_large)?;
        if !columns.is_multiple_of(format.block_weights()) {
            return Err(WeightError::PartialBlock { columns, format });
        }
        format.bytes_for(n_weights).ok_or_else(too_large)
    }

    /// An f32 tensor from numbers in row order.
    pub fn from_f32(shape: Vec<usize>, numbers: &[f32]) -> Result<Self, WeightError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::new(shape, Format::F32, bytes.into())
    }

    /// `[rows, columns]`, or `[n]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows: all dimensions but the last, multiplied.
    pub fn n_rows(&self) -> usize {
        self.n_weights().checked_div(self.n_columns()).unwrap_or(0)
    }

    /// Weights in a row.
    pub fn n_columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// How the bytes are laid out.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The matrix with rows in another order: row `i` of the result is row `order[i]`. Whole rows are
    /// whole blocks, so packed weights move without being decoded.
    ///
    /// # Panics
    /// When `order` names a row that is not there.
    pub fn with_rows(&self, order: &[usize]) -> Self {
        let row_bytes = self.bytes.len().checked_div(self.n_rows()).unwrap_or(0);
        let mut bytes = Vec::with_capacity(row_bytes * order.len());
        for &row in order {
            bytes.extend_from_slice(&self.bytes[row * row_bytes..(row + 1) * row_bytes]);
        }
        let shape = vec![order.len(), self.n_columns()];
        Self { shape, format: self.format, bytes: bytes.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fit_the_shape() {
        assert!(Weight::new(vec![2, 32], Format::Q4_0, vec![0; 36].into()).is_ok());
        assert!(matches!(
            Weight::new(vec![2, 32], Format::Q4_0, vec![0; 35].into()),
            Err(WeightError::Length { expected: 36, found: 35, .. })
        ));
        assert!(matches!(
            Weight::new(vec![2, 33], Format::Q4_0, vec![0; 36].into()),
            Err(WeightError::PartialBlock { columns: 33, .. })
        ));
        assert!(matches!(Weight::bytes_for(&[usize::MAX, 2], Format::F16), Err(WeightError::TooLarge(_))));
    }

    #[test]
    fn rows_move_whole() {
        let weight = Weight::from_f32(vec![3, 2], &[0., 1., 2., 3., 4., 5.]).unwrap();
        let moved = weight.with_rows(&[2, 0]);
        assert_eq!(moved.shape(), [2, 2]);
        let expected = Weight::from_f32(vec![2, 2], &[4., 5., 0., 1.]).unwrap();
        assert_eq!(moved.bytes(), expected.bytes());
        let vector = Weight::from_f32(vec![3], &[7., 8., 9.]).unwrap();
        assert_eq!(vector.n_rows(), 1);
    }
}
