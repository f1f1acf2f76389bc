//! The refitted down projection against numpy's `lstsq`: `tests/golden/compensate.json`, written by
//! `tests/reference/compress_check.py write`.

use ndarray::Array2;
use serde::Deserialize;
use slmc_compress::{GramStats, LayerStats, compensate};

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
