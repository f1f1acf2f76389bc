//! Against numpy: the refitted down projection, AWQ's scales, rotations. `tests/golden/*.json` are written by
//! `tests/reference/compress_check.py write`.

use ndarray::{Array2, ArrayView2};
use serde::Deserialize;
use slmc_compress::{
    GramStats, LayerStats, Rotation, compensate,
    quant::{Hessian, ScaleSearch},
};

#[derive(Deserialize)]
struct Case {
    name: String,
    damping: f64,
    kept: Vec<usize>,
    activations: Vec<Vec<f32>>,
    weight: Vec<Vec<f32>>,
    fitted: Vec<Vec<f64>>,
    energy: f64,
    error_dropped: f64,
    error: f64,
}

fn matrix(rows: &[Vec<f32>]) -> Array2<f32> {
    Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap()
}

#[test]
fn refits_as_numpy_lstsq_does() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/compensate.json")).unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let (activations, weight) = (matrix(&case.activations), matrix(&case.weight));
        let mut stats = GramStats::empty(weight.ncols());
        stats.observe(activations.view());
        let fitted = compensate(weight.view(), &stats, &case.kept, case.damping).unwrap();
        assert_eq!(fitted.damping, case.damping, "{}", case.name);
        assert_eq!(fitted.weight.dim(), (weight.nrows(), case.kept.len()));
        for (found, expected) in fitted.weight.iter().zip(case.fitted.concat()) {
            assert!((f64::from(*found) - expected).abs() <= 1e-6, "{}: {found} {expected}", case.name);
        }
        let figures = [
            (fitted.energy, case.energy),
            (fitted.error_dropped, case.error_dropped),
            (fitted.error, case.error),
        ];
        for (found, expected) in figures {
            assert!((found - expected).abs() <= 1e-9 * case.energy, "{}: {found} {expected}", case.name);
        }
        assert!(fitted.error < fitted.error_dropped, "{}", case.name);
    }
}

#[derive(Deserialize)]
struct Search {
    name: String,
    tied: Option<Vec<usize>>,
    inputs: Vec<Vec<f32>>,
    weight: Vec<Vec<f32>>,
    costs: Vec<f32>,
    exponent: f64,
    scales: Vec<f64>,
    error_before: f64,
    error: f64,
}

/// To the nearest of fifteen steps of each row's largest.
fn rounded(weight: ArrayView2<'_, f32>, _: &[f32]) -> Array2<f32> {
    let mut rounded = weight.to_owned();
    for mut row in rounded.rows_mut() {
        let step = row.iter().fold(0.0_f32, |most, w| most.max(w.abs())) / 7.0;
        row.mapv_inplace(|w| (w / step).round() * step);
    }
    rounded
}

#[test]
fn scales_are_those_of_a_search_of_all_exponents() {
    let cases: Vec<Search> = serde_json::from_str(include_str!("golden/scales.json")).unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let (inputs, weight) = (matrix(&case.inputs), matrix(&case.weight));
        let mut hessian = Hessian::empty(weight.ncols());
        hessian.observe(inputs.view());
        hessian.scale(1.0 / inputs.nrows() as f32);
        let near = |scales: &[f32]| scales.to_vec();
        let tied = case.tied.as_deref();
        let search = ScaleSearch { hessian: &hessian, tied, round: &rounded, near: &near };
        let found = search.best(&[(weight.view(), &case.costs)]);
        let name = &case.name;
        assert!(
            (found.exponent - case.exponent).abs() < 1e-9,
            "{name}: {} {}",
            found.exponent,
            case.exponent
        );
        for (found, expected) in found.scales.iter().zip(&case.scales) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-5, "{name}: {found} {expected}");
        }
        for (found, expected) in [(found.error_before, case.error_before), (found.error, case.error)] {
            assert!((found / expected - 1.0).abs() < 1e-5, "{name}: {found} {expected}");
        }
    }
}

#[derive(Deserialize)]
struct Rotated {
    n: usize,
    seed: u64,
    matrix: Vec<Vec<f64>>,
}

#[test]
fn rotations_are_the_matrix_of_the_definition() {
    let cases: Vec<Rotated> = serde_json::from_str(include_str!("golden/rotation.json")).unwrap();
    assert_eq!(cases.len(), 3);
    for Rotated { n, seed, matrix } in cases {
        let rotation = Rotation::new(n, seed);
        for (i, expected) in matrix.iter().enumerate() {
            let mut row = vec![0.0; n];
            row[i] = 1.0;
            rotation.rotate(&mut row);
            for (found, expected) in row.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{n} {i}: {found} {expected}");
            }
        }
    }
}
