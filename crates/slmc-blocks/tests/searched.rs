//! Scales that are searched for, against searches that try everything.

use slmc_blocks::{BlockError, Grid, decode, encode, encode_weighted, fit, unpack};
use slmc_ir::Format;

/// A fixed sequence of numbers, roughly normal with deviation 1 (sums of twelve uniform ones).
fn numbers(n: usize, mut state: u32) -> Vec<f32> {
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24)
    };
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) as f32).collect()
}

fn packed_formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| !format.is_float())
}

fn decoded(format: Format, bytes: &[u8], n: usize) -> Vec<f32> {
    let mut weights = vec![0.0; n];
    decode(format, bytes, &mut weights).unwrap();
    weights
}

fn searched(format: Format, weights: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0; format.bytes_for(weights.len()).unwrap()];
    encode_weighted(format, weights, importance, &mut bytes).unwrap();
    decoded(format, &bytes, weights.len())
}

/// Squared error over squares.
fn relative_error(weights: &[f32], decoded: &[f32]) -> f64 {
    let error: f64 = weights.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()
}

#[test]
fn a_searched_scale_is_no_worse_than_the_plain_one() {
    let weights = numbers(32 * 400, 7);
    for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0] {
        let mut bytes = vec![0; format.bytes_for(weights.len()).unwrap()];
        encode(format, &weights, &mut bytes).unwrap();
        let plain = decoded(format, &bytes, weights.len());
        let ours = searched(format, &weights, None);
        for ((weights, plain), ours) in weights.chunks(32).zip(plain.chunks(32)).zip(ours.chunks(32)) {
            let (plain, ours) = (relative_error(weights, plain), relative_error(weights, ours));
            assert!(ours <= plain * 1.000_001, "{format}: {ours} > {plain}");
        }
        let gain = relative_error(&weights, &ours) / relative_error(&weights, &plain);
        assert!(gain < 0.97, "{format}: {gain}");
    }
}

/// The least squared error of one scale for a block, over 4001 scales of both signs.
fn least_error(weights: &[f32], steps: &[f32]) -> f64 {
    let farthest = weights.iter().fold(0.0_f64, |far, w| far.max(f64::from(w.abs())));
    let reach = f64::from(steps.iter().fold(0.0_f32, |far, s| far.max(s.abs())));
    let mut least = f64::INFINITY;
    for i in 0..=4000 {
        let scale = farthest / reach * (0.5 + f64::from(i) / 2000.0);
        for scale in [scale, -scale] {
            let error: f64 = weights
                .iter()
                .map(|&w| {
                    let of = |&step: &f32| (f64::from(w) - scale * f64::from(step)).powi(2);
                    steps.iter().map(of).fold(f64::INFINITY, f64::min)
                })
                .sum();
            least = least.min(error);
        }
    }
    least
}

#[test]
fn one_scale_comes_close_to_trying_all() {
    let weights = numbers(32 * 40, 11);
    // Tries lie a tenth of a level apart, exhaustive ones much closer.
    for (format, slack) in [(Format::Q4_0, 1.01), (Format::Q5_0, 1.02), (Format::Iq4Nl, 1.02)] {
        let ours = searched(format, &weights, None);
        let mut block = vec![0; format.block_bytes()];
        encode_weighted(format, &weights[..32], None, &mut block).unwrap();
        let steps = Grid::new(format, &unpack(format, &block).unwrap()).unwrap().layout().steps;
        let (mut error, mut least) = (0.0, 0.0);
        for (weights, ours) in weights.chunks(32).zip(ours.chunks(32)) {
            error += weights.iter().zip(ours).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            least += least_error(weights, steps);
        }
        assert!(error <= least * slack, "{format}: {error} against {least}");
    }
}

#[test]
fn error_falls_with_bits() {
    let weights = numbers(256 * 60, 13);
    let of = |format| relative_error(&weights, &searched(format, &weights, None));
    let errors = [Format::Q2K, Format::Q3K, Format::Iq4Xs, Format::Q4K, Format::Q5K, Format::Q6K].map(of);
    // Normal numbers: each further bit takes the error down to between a half and a fifth.
    for (bounds, error) in
        [(0.05, 0.12), (0.015, 0.04), (0.004, 0.01), (0.004, 0.009), (0.001, 0.0025), (0.0002, 0.0007)]
            .into_iter()
            .zip(errors)
    {
        assert!((bounds.0..bounds.1).contains(&error), "{errors:?}");
    }
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
}

#[test]
fn important_columns_come_out_closer() {
    let n_columns = 512;
    let weights = numbers(n_columns * 40, 17);
    let importance: Vec<f32> = (0..n_columns).map(|c| if c % 8 == 3 { 50.0 } else { 1.0 }).collect();
    let of = |decoded: &[f32]| -> f64 {
        let squares = weights.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2));
        squares.enumerate().map(|(i, e)| e * f64::from(importance[i % n_columns])).sum()
    };
    for format in packed_formats().filter(|&f| f != Format::Mxfp4) {
        let (plain, weighted) =
            (searched(format, &weights, None), searched(format, &weights, Some(&importance)));
        let gain = of(&weighted) / of(&plain);
        assert!(gain < 0.97, "{format}: {gain}");
        // Only proportions count, and no importance at all is equal importance.
        let scaled: Vec<f32> = importance.iter().map(|x| x * 1024.0).collect();
        assert!(searched(format, &weights, Some(&scaled)) == weighted, "{format}");
        assert!(searched(format, &weights, Some(&vec![0.0; n_columns])) == plain, "{format}");
    }
}

#[test]
fn zeros_stay_zeros() {
    for format in packed_formats() {
        let weights = vec![0.0; 512];
        assert!(searched(format, &weights, None).iter().all(|w| *w == 0.0), "{format}");
    }
}

#[test]
fn one_block_is_fitted_as_in_a_matrix() {
    let weights = numbers(256, 19);
    for format in packed_formats() {
        let weights = &weights[..format.block_weights()];
        let parts = fit(format, weights, None).unwrap();
        let grid = Grid::new(format, &parts).unwrap();
        let mut out = vec![0.0; weights.len()];
        grid.decode(&parts.levels, &mut out);
        assert!(out == searched(format, weights, None), "{format}");
    }
    assert!(matches!(fit(Format::Q4K, &weights[..32], None), Err(BlockError::PartialBlock { .. })));
}

#[test]
fn importances_are_checked() {
    let weights = numbers(512, 23);
    let mut bytes = vec![0; 288];
    let mut check =
        |importance: &[f32]| encode_weighted(Format::Q4_0, &weights, Some(importance), &mut bytes);
    check(&[1.0; 256]).unwrap();
    assert!(matches!(check(&[1.0; 48]), Err(BlockError::Columns { n_columns: 48, n_weights: 512, .. })));
    assert!(matches!(check(&[1.0; 96]), Err(BlockError::Columns { .. })));
    assert!(matches!(check(&[]), Err(BlockError::Columns { .. })));
    let mut importance = [1.0; 64];
    importance[5] = -1.0;
    assert!(matches!(check(&importance), Err(BlockError::Importance { column: 5, .. })));
    importance[5] = f32::NAN;
    assert!(matches!(check(&importance), Err(BlockError::Importance { column: 5, .. })));
}

#[test]
fn what_no_scale_can_hold_is_an_error() {
    for format in packed_formats() {
        let mut weights = numbers(1024, 29);
        let mut bytes = vec![0; format.bytes_for(weights.len()).unwrap()];
        weights[700] = f32::NAN;
        let error = encode_weighted(format, &weights, None, &mut bytes).unwrap_err();
        assert!(matches!(error, BlockError::NotFinite { index: 700, .. }), "{format}: {error}");
        weights[700] = -3e38;
        let error = encode_weighted(format, &weights, None, &mut bytes).unwrap_err();
        assert_eq!(error, BlockError::TooLarge { format, index: 700, value: -3e38 });
    }
}
