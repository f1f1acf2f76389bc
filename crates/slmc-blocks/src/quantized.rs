//! Between [`Quantized`] and packed blocks, where both say the same weights.

use slmc_ir::{Format, Quantized, QuantizedParts, Weight};

use crate::{
    BlockError,
    float::{f16_to_f32, f32_to_f16},
    parts::{Parts, pack, unpack},
};

/// Weights that share a scale in the formats here.
const GROUP: usize = 32;

/// Formats of a scale for 32 whole levels, smallest first, with the level that stands for 0.
const FORMATS: [(Format, i32); 3] = [(Format::Q4_0, 8), (Format::Q5_0, 16), (Format::Q8_0, 128)];

/// The smallest packed format that holds matrices of these levels exactly, whatever the levels; `None` when there is
/// none. Zero points are from `least_zero` to `largest_zero`.
///
/// Groups must be whole multiples of 32 columns in their order, and rows whole blocks.
pub fn exact_format(
    columns: usize,
    group_size: usize,
    bits: u8,
    (least_zero, largest_zero): (u8, u8),
) -> Option<Format> {
    if !columns.is_multiple_of(GROUP) || !group_size.is_multiple_of(GROUP) || group_size == 0 || bits > 8 {
        return None;
    }
    let (low, high) = (-i32::from(largest_zero), (1 << bits) - 1 - i32::from(least_zero));
    let fits = |&&(_, middle): &&(Format, i32)| -middle <= low && high < middle;
    FORMATS.iter().find(fits).map(|(format, _)| *format)
}

/// The matrix in a packed format, with the same weights.
///
/// # Errors
/// [`BlockError::Inexact`] when the format does not hold them: see [`exact_format`].
pub fn from_quantized(matrix: &Quantized, format: Format) -> Result<Weight, BlockError> {
    let inexact = |why| BlockError::Inexact { format, why };
    let Some(&(_, middle)) = FORMATS.iter().find(|(known, _)| *known == format) else {
        return Err(inexact("it is not one of q4_0, q5_0 and q8_0"));
    };
    let matrix = matrix
        .with_group_size(GROUP)
        .ok_or_else(|| inexact("groups are not whole multiples of 32 columns in their order"))?;
    let QuantizedParts { rows, columns, levels, scales, zero_points, .. } = matrix.parts();
    let shape = vec![*rows, *columns];
    let mut bytes = vec![0; Weight::bytes_for(&shape, format)?];
    let blocks = bytes.chunks_exact_mut(format.block_bytes()).zip(levels.as_chunks::<GROUP>().0);
    for ((block, levels), (&scale, &zero)) in blocks.zip(scales.iter().zip(zero_points)) {
        let mut parts = Parts { scale: f32_to_f16(scale), ..Parts::default() };
        for (to, &level) in parts.levels.iter_mut().zip(levels) {
            let level = i32::from(level) - i32::from(zero) + middle;
            if !(0..2 * middle).contains(&level) {
                return Err(inexact("its levels do not reach as far"));
            }
            *to = level as u8;
        }
        pack(format, &parts, block)?;
    }
    Ok(Weight::new(shape, format, bytes.into())?)
}

/// The levels of a packed matrix: of Q4_0, Q5_0 and Q8_0, in groups of 32 columns. The weights are the same.
///
/// # Errors
/// [`BlockError::Inexact`] for other formats and other shapes than a matrix's, and for scales that are not finite.
pub fn to_quantized(weight: &Weight) -> Result<Quantized, BlockError> {
    let format = weight.format();
    let inexact = |why| BlockError::Inexact { format, why };
    let Some(&(_, middle)) = FORMATS.iter().find(|(known, _)| *known == format) else {
        return Err(inexact("it is not one of q4_0, q5_0 and q8_0"));
    };
    let [rows, columns] = *weight.shape() else { return Err(inexact("it is no matrix")) };
    let n_groups = weight.n_weights() / GROUP;
    let mut levels = Vec::with_capacity(weight.n_weights());
    let mut scales = Vec::with_capacity(n_groups);
    for block in weight.bytes().chunks_exact(format.block_bytes()) {
        let parts = unpack(format, block)?;
        levels.extend_from_slice(&parts.levels[..GROUP]);
        scales.push(f16_to_f32(parts.scale));
    }
    Quantized::new(QuantizedParts {
        rows,
        columns,
        bits: (2 * middle).ilog2() as u8,
        group_size: GROUP,
        levels,
        scales,
        zero_points: vec![middle as u8; n_groups],
        column_order: None,
    })
    .map_err(|_| inexact("a scale is not finite"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode_weight, encode};

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 977.0).collect()
    }

    #[test]
    fn packed_levels_come_back() {
        for (format, bits) in [(Format::Q4_0, 4), (Format::Q5_0, 5), (Format::Q8_0, 8)] {
            let mut bytes = vec![0; format.bytes_for(3 * 64).unwrap()];
            encode(format, &numbers(3 * 64), &mut bytes).unwrap();
            let weight = Weight::new(vec![3, 64], format, bytes.into()).unwrap();
            let matrix = to_quantized(&weight).unwrap();
            assert_eq!((matrix.parts().bits, matrix.is_symmetric()), (bits, true));
            assert_eq!(matrix.decode(), decode_weight(&weight).unwrap(), "{format}");
            let zeros = (1 << (bits - 1), 1 << (bits - 1));
            assert_eq!(exact_format(64, 32, bits, zeros), Some(format));
            assert_eq!(from_quantized(&matrix, format).unwrap().bytes(), weight.bytes());
        }
    }

    #[test]
    fn zero_points_off_the_middle_take_a_wider_format() {
        let parts = QuantizedParts {
            rows: 2,
            columns: 128,
            bits: 4,
            group_size: 64,
            levels: (0..256).map(|i| (i * 5 % 16) as u8).collect(),
            scales: vec![0.5, 0.25, -2.0, 0.125],
            zero_points: vec![0, 15, 7, 8],
            column_order: None,
        };
        let matrix = Quantized::new(parts).unwrap();
        assert_eq!(exact_format(128, 64, 4, (0, 15)), Some(Format::Q5_0));
        let packed = from_quantized(&matrix, Format::Q5_0).unwrap();
        assert_eq!(decode_weight(&packed).unwrap(), matrix.decode());
        let packed = from_quantized(&matrix, Format::Q8_0).unwrap();
        assert_eq!(decode_weight(&packed).unwrap(), matrix.decode());
        assert!(matches!(from_quantized(&matrix, Format::Q4_0), Err(BlockError::Inexact { .. })));
        assert!(matches!(from_quantized(&matrix, Format::Q4K), Err(BlockError::Inexact { .. })));
    }

    #[test]
    fn the_smallest_format_is_chosen() {
        assert_eq!(exact_format(64, 32, 4, (8, 8)), Some(Format::Q4_0));
        assert_eq!(exact_format(64, 32, 3, (0, 7)), Some(Format::Q4_0));
        assert_eq!(exact_format(64, 32, 4, (7, 8)), Some(Format::Q5_0));
        assert_eq!(exact_format(64, 32, 8, (128, 128)), Some(Format::Q8_0));
        assert_eq!(exact_format(64, 32, 8, (127, 128)), None);
        assert_eq!(exact_format(64, 16, 4, (8, 8)), None);
        assert_eq!(exact_format(80, 32, 4, (8, 8)), None);
    }
}
