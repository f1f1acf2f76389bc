//! compressed-tensors, format `pack-quantized` (`compressors/quantized_compressors/pack_quantized.py`): rows and
//! columns as they are, levels packed along the columns, zero points along the rows.
//!
//! Levels there are signed, and stored with half their range added: that is our level again.

use bytes::Bytes;
use slmc_formats::{Dtype, FloatType};
use slmc_ir::{Quantized, QuantizedParts};

use super::{PackError, PackedScheme, PackedTensor, Size, middle, words};

const PACKED: usize = 0;
const SCALE: usize = 1;
const ZERO_POINT: usize = 3;

pub(super) fn tensors(
    scheme: &PackedScheme,
    (rows, columns): Size,
    scale: Dtype,
) -> Result<Vec<PackedTensor>, PackError> {
    scheme.check_bits("4 or 8", &[4, 8])?;
    if scheme.column_order {
        return Err(PackError::ColumnOrder(scheme.layout));
    }
    scheme.check_multiple("the number of columns,", columns, scheme.group_size_of(columns))?;
    let n = words::per_word(scheme.bits);
    let n_groups = scheme.n_groups(columns);
    let mut tensors = vec![
        PackedTensor::new("weight_packed", Dtype::I32, &[rows, columns.div_ceil(n)]),
        PackedTensor::new("weight_scale", scale, &[rows, n_groups]),
        PackedTensor::new("weight_shape", Dtype::I64, &[2]),
    ];
    if !scheme.symmetric {
        tensors.push(PackedTensor::new("weight_zero_point", Dtype::I32, &[rows.div_ceil(n), n_groups]));
    }
    Ok(tensors)
}

pub(super) fn pack(scheme: &PackedScheme, matrix: &Quantized) -> Vec<Vec<u8>> {
    let QuantizedParts { rows, columns, bits, levels, scales, zero_points, .. } = matrix.parts();
    let shape = [*rows, *columns].into_iter().flat_map(|n| (n as u64).to_le_bytes());
    let mut tensors = vec![
        words::to_bytes(&words::pack(levels, *columns, *bits, |i| i)),
        words::half_bytes(scales),
        shape.collect(),
    ];
    if !scheme.symmetric {
        let along_rows = words::pack(&words::transpose(zero_points, matrix.n_groups()), *rows, *bits, |i| i);
        let turned = words::transpose(&along_rows, rows.div_ceil(words::per_word(*bits)));
        tensors.push(words::to_bytes(&turned));
    }
    tensors
}

pub(super) fn unpack(
    scheme: &PackedScheme,
    size @ (rows, columns): Size,
    tensors: &[Bytes],
    scale: Dtype,
) -> QuantizedParts {
    let packed = words::from_bytes(&tensors[PACKED]);
    let scales = match scale {
        Dtype::Float(FloatType::F16) => words::from_halves(&tensors[SCALE]),
        Dtype::Float(FloatType::Bf16) => words::from_halves_of(&tensors[SCALE], slmc_blocks::bf16_to_f32),
        _ => words::from_bytes(&tensors[SCALE]).into_iter().map(f32::from_bits).collect(),
    };
    QuantizedParts {
        rows,
        columns,
        bits: scheme.bits,
        group_size: scheme.group_size_of(columns),
        levels: words::unpack(&packed, columns, scheme.bits, |i| i),
        scales,
        zero_points: zero_points(scheme, size, tensors),
        column_order: None,
    }
}

/// Zero points `[rows, n_groups]`.
pub(super) fn zero_points(scheme: &PackedScheme, (rows, columns): Size, tensors: &[Bytes]) -> Vec<u8> {
    let n_groups = scheme.n_groups(columns);
    if scheme.symmetric {
        return vec![middle(scheme.bits); rows * n_groups];
    }
    let along_rows = words::transpose(&words::from_bytes(&tensors[ZERO_POINT]), n_groups);
    words::transpose(&words::unpack(&along_rows, rows, scheme.bits, |i| i), rows)
}

/// Whether `weight_shape` says what the configuration does.
pub(super) fn says_shape(tensors: &[Bytes], (rows, columns): Size) -> bool {
    let stated: Vec<u64> = tensors[2].as_chunks().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
    stated == [rows as u64, columns as u64]
}
