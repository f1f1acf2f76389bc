//! AWQ, version `gemm` (AutoAWQ `modules/linear/gemm.py`): inputs are rows, levels packed along the outputs, eight a
//! word, even ones first.

use bytes::Bytes;
use slmc_formats::{Dtype, FloatType};
use slmc_ir::{Quantized, QuantizedParts};

use super::{PackError, PackedScheme, PackedTensor, Size, words};

const BITS: u8 = 4;
const PER_WORD: usize = words::per_word(BITS);
/// Which output of eight lies where in a word.
const ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

const QWEIGHT: usize = 0;
const QZEROS: usize = 1;
const SCALES: usize = 2;

pub(super) fn tensors(scheme: &PackedScheme, (rows, columns): Size) -> Result<Vec<PackedTensor>, PackError> {
    scheme.check_bits("4", &[BITS])?;
    if scheme.column_order {
        return Err(PackError::ColumnOrder(scheme.layout));
    }
    scheme.check_multiple("the number of columns,", columns, scheme.group_size_of(columns))?;
    scheme.check_multiple("the number of rows,", rows, PER_WORD)?;
    let n_groups = scheme.n_groups(columns);
    Ok(vec![
        PackedTensor::new("qweight", Dtype::I32, &[columns, rows / PER_WORD]),
        PackedTensor::new("qzeros", Dtype::I32, &[n_groups, rows / PER_WORD]),
        PackedTensor::new("scales", Dtype::Float(FloatType::F16), &[n_groups, rows]),
    ])
}

pub(super) fn pack(matrix: &Quantized) -> Vec<Vec<u8>> {
    let QuantizedParts { rows, columns, levels, scales, zero_points, .. } = matrix.parts();
    let n_groups = matrix.n_groups();
    let pack = |numbers: &[u8], columns: usize| {
        words::to_bytes(&words::pack(&words::transpose(numbers, columns), *rows, BITS, |i| ORDER[i]))
    };
    vec![
        pack(levels, *columns),
        pack(zero_points, n_groups),
        words::half_bytes(&words::transpose(scales, n_groups)),
    ]
}

pub(super) fn unpack(
    scheme: &PackedScheme,
    size @ (rows, columns): Size,
    tensors: &[Bytes],
) -> QuantizedParts {
    QuantizedParts {
        rows,
        columns,
        bits: BITS,
        group_size: scheme.group_size_of(columns),
        levels: unpack_one(&tensors[QWEIGHT], rows),
        scales: words::transpose(&words::from_halves(&tensors[SCALES]), rows),
        zero_points: zero_points(scheme, size, tensors),
        column_order: None,
    }
}

/// Zero points `[rows, n_groups]`.
pub(super) fn zero_points(_: &PackedScheme, (rows, _): Size, tensors: &[Bytes]) -> Vec<u8> {
    unpack_one(&tensors[QZEROS], rows)
}

fn unpack_one(bytes: &[u8], rows: usize) -> Vec<u8> {
    words::transpose(&words::unpack(&words::from_bytes(bytes), rows, BITS, |i| ORDER[i]), rows)
}
