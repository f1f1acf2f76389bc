//! GPTQ (GPTQModel `nn_modules/qlinear`): levels packed along the inputs, eight of four bits a word, and everything
//! turned over: inputs are rows.

use bytes::Bytes;
use slmc_formats::{Dtype, FloatType};
use slmc_ir::{Quantized, QuantizedParts};

use super::{PackError, PackedLayout, PackedScheme, PackedTensor, Size, words};

/// Of the tensors, in the order of [`tensors`].
const QWEIGHT: usize = 0;
const QZEROS: usize = 1;
const SCALES: usize = 2;
pub(super) const G_IDX: usize = 3;

pub(super) fn tensors(scheme: &PackedScheme, (rows, columns): Size) -> Result<Vec<PackedTensor>, PackError> {
    scheme.check_bits("2, 4 or 8", &[2, 4, 8])?;
    let n = words::per_word(scheme.bits);
    scheme.check_multiple("the number of columns,", columns, n)?;
    scheme.check_multiple("the number of rows,", rows, n)?;
    let n_groups = scheme.n_groups(columns);
    let half = Dtype::Float(FloatType::F16);
    Ok(vec![
        PackedTensor::new("qweight", Dtype::I32, &[columns / n, rows]),
        PackedTensor::new("qzeros", Dtype::I32, &[n_groups, rows / n]),
        PackedTensor::new("scales", half, &[n_groups, rows]),
        PackedTensor::new("g_idx", Dtype::I32, &[columns]),
    ])
}

pub(super) fn pack(scheme: &PackedScheme, matrix: &Quantized) -> Result<Vec<Vec<u8>>, PackError> {
    let QuantizedParts { rows, columns, bits, levels, scales, zero_points, .. } = matrix.parts();
    let along_inputs = words::pack(levels, *columns, *bits, |i| i);
    let qweight = words::transpose(&along_inputs, columns / words::per_word(*bits));
    let less = u8::from(scheme.layout == PackedLayout::Gptq);
    let stored = zero_points.iter().map(|zero| zero.checked_sub(less)).enumerate();
    let stored = stored
        .map(|(index, zero)| zero.ok_or(PackError::ZeroPoint { index }))
        .collect::<Result<Vec<u8>, _>>()?;
    let n_groups = matrix.n_groups();
    let qzeros = words::pack(&words::transpose(&stored, n_groups), *rows, *bits, |i| i);
    Ok(vec![
        words::to_bytes(&qweight),
        words::to_bytes(&qzeros),
        words::half_bytes(&words::transpose(scales, n_groups)),
        words::to_bytes(&matrix.group_of_columns()),
    ])
}

pub(super) fn unpack(
    scheme: &PackedScheme,
    size @ (rows, columns): Size,
    tensors: &[Bytes],
) -> Result<QuantizedParts, PackError> {
    let bits = scheme.bits;
    let qweight = words::from_bytes(&tensors[QWEIGHT]);
    let along_inputs = words::transpose(&qweight, rows);
    Ok(QuantizedParts {
        rows,
        columns,
        bits,
        group_size: scheme.group_size_of(columns),
        levels: words::unpack(&along_inputs, columns, bits, |i| i),
        scales: words::transpose(&words::from_halves(&tensors[SCALES]), rows),
        zero_points: zero_points(scheme, size, tensors)?,
        column_order: column_order(scheme, columns, &tensors[G_IDX])?,
    })
}

/// Zero points `[rows, n_groups]`.
pub(super) fn zero_points(
    scheme: &PackedScheme,
    (rows, _): Size,
    tensors: &[Bytes],
) -> Result<Vec<u8>, PackError> {
    let stored = words::unpack(&words::from_bytes(&tensors[QZEROS]), rows, scheme.bits, |i| i);
    let mut zeros = words::transpose(&stored, rows);
    if scheme.layout == PackedLayout::Gptq {
        let largest = ((1_u32 << scheme.bits) - 1) as u8;
        if let Some(index) = zeros.iter().position(|&zero| zero == largest) {
            // Readers disagree whether this is 0 or one more than a level can be.
            return Err(PackError::ZeroPoint { index });
        }
        zeros.iter_mut().for_each(|zero| *zero += 1);
    }
    Ok(zeros)
}

/// The order of columns that `g_idx` says; `None` from left to right.
///
/// # Errors
/// When it names a group that is not there, or groups have other sizes than the scheme's.
pub(super) fn column_order(
    scheme: &PackedScheme,
    columns: usize,
    g_idx: &[u8],
) -> Result<Option<Vec<u32>>, PackError> {
    let group_size = scheme.group_size_of(columns);
    let n_groups = scheme.n_groups(columns);
    // Absent in old files.
    if g_idx.is_empty() {
        return Ok(None);
    }
    let mut groups = Vec::with_capacity(columns);
    for (column, word) in words::from_bytes(g_idx).into_iter().enumerate() {
        let found = word as i32;
        let group = usize::try_from(found).ok().filter(|&group| group < n_groups);
        let why = "there is no such group";
        groups.push(group.ok_or(PackError::GroupIndex { column, found: found.into(), why })?);
    }
    if groups.iter().enumerate().all(|(column, &group)| group == column / group_size) {
        return Ok(None);
    }
    // Sorting keeps the columns of a group in their order: which of them comes first changes nothing.
    let mut order: Vec<u32> = (0..columns as u32).collect();
    order.sort_by_key(|&column| groups[column as usize]);
    for (place, &column) in order.iter().enumerate() {
        let column = column as usize;
        if groups[column] != place / group_size {
            let why = "groups have other sizes than `group_size`";
            return Err(PackError::GroupIndex { column, found: groups[column] as i64, why });
        }
    }
    Ok(Some(order))
}
