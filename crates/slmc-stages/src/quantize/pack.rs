//! From a solver's codes to a format's bytes.

use half::f16;
use slmc_blocks::{MAX_BLOCK, Parts};
use slmc_compress::quant::{Codes, Grid};
use slmc_ir::{Format, Weight};

/// The numbers that a packed format can hold; `None` for plain floats and what no file holds.
pub fn grid_of(format: Format) -> Option<Grid> {
    Some(match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::Nf4 => return None,
        Format::Q4_0 => Grid::q4_0(),
        Format::Q4_1 => Grid::q4_1(),
        Format::Q5_0 => Grid::q5_0(),
        Format::Q5_1 => Grid::q5_1(),
        Format::Q8_0 => Grid::q8_0(),
        Format::Q2K => Grid::q2_k(),
        Format::Q3K => Grid::q3_k(),
        Format::Q4K => Grid::q4_k(),
        Format::Q5K => Grid::q5_k(),
        Format::Q6K => Grid::q6_k(),
        Format::Iq4Nl => Grid::iq4_nl(),
        Format::Iq4Xs => Grid::iq4_xs(),
        Format::Mxfp4 => Grid::mxfp4(),
    })
}

/// The codes as the format stores them.
///
/// # Errors
/// In words, when the codes are not of the format's grid.
pub fn pack(codes: &Codes, format: Format) -> Result<Weight, String> {
    let (block, n_bytes) = (format.block_weights(), format.block_bytes());
    let n_blocks = codes.n_columns / block;
    let mut bytes = vec![0; codes.n_rows * n_blocks * n_bytes];
    for (at, bytes) in bytes.chunks_exact_mut(n_bytes).enumerate() {
        let parts = parts(codes, format, at / n_blocks, at % n_blocks);
        slmc_blocks::pack(format, &parts, bytes).map_err(|e| e.to_string())?;
    }
    let shape = vec![codes.n_rows, codes.n_columns];
    Weight::new(shape, format, bytes.into()).map_err(|e| e.to_string())
}

/// One block's numbers.
fn parts(codes: &Codes, format: Format, row: usize, index: usize) -> Parts {
    let block = format.block_weights();
    let first = row * codes.n_columns + index * block;
    let mut levels = [0; MAX_BLOCK];
    levels[..block].copy_from_slice(&codes.levels[first..first + block]);
    let bits = |x: f32| f16::from_f32(x).to_bits();
    let [scale, min] = codes.groups[row * codes.n_groups() + index * block / codes.grid.group];
    let mut parts = Parts { levels, ..Parts::default() };
    match format {
        Format::Mxfp4 => parts.scale = (scale.log2() as i32 + 128).clamp(0, 254) as u16,
        Format::Q4_1 | Format::Q5_1 => (parts.scale, parts.min) = (bits(scale), bits(-min)),
        // The lowest of the 256 levels is not used: the format's own encoder does not either.
        Format::Q8_0 => {
            parts.scale = bits(scale);
            parts.levels[..block].iter_mut().for_each(|level| *level += 1);
        }
        _ if block == MAX_BLOCK => {
            let [unit_scale, unit_min] = codes.units[row * codes.n_units() + index];
            parts.scale = bits(unit_scale);
            if codes.grid.scales.has_min() {
                parts.min = bits(unit_min);
            }
            let n_groups = codes.grid.scales.n_groups();
            for group in 0..n_groups {
                let [scale, min] = codes.integers(row, index * n_groups + group);
                (parts.group_scales[group], parts.group_mins[group]) = (scale as i8, min as u8);
            }
        }
        _ => parts.scale = bits(scale),
    }
    parts
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use slmc_compress::{
        LayerStats,
        quant::{Factor, Hessian, SolveSettings, solve},
    };

    use super::*;

    #[test]
    fn what_is_packed_decodes_to_the_solvers_weights_bit_for_bit() {
        let numbers = |rows: usize, seed: usize| {
            Array2::from_shape_fn((rows, 512), |(i, j)| {
                ((i * 7919 + j * 104_729 + seed) as f32 * 0.618).sin().powi(3) * 0.05
            })
        };
        let mut hessian = Hessian::empty(512);
        hessian.observe(numbers(600, 1).view());
        for format in Format::stored().filter(|format| !format.is_float()) {
            let grid = grid_of(format).unwrap();
            assert_eq!(grid.unit(), format.block_weights(), "{format}");
            let factor = Factor::new(&hessian, &grid, 0.01, true).unwrap();
            let codes = solve(numbers(5, 2).view(), &factor, &grid, SolveSettings::default()).unwrap();
            let packed = pack(&codes, format).unwrap();
            let decoded = slmc_blocks::decode_weight(&packed).unwrap();
            for (i, (found, expected)) in decoded.iter().zip(codes.decode().iter()).enumerate() {
                // Zeros may differ in their sign.
                assert!(found == expected, "{format} {i}: {found} {expected}");
            }
        }
    }
}
