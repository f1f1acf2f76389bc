//! Which of the teacher's blocks each of a carved student's came from.

use slmc_ir::{Checkpoint, Role, TensorKey};
use slmc_recipe::StageError;

use super::failed;

/// A carved block's queries are its teacher's; a trained one's may have moved by this share of their norm.
const LARGEST_DISTANCE: f64 = 0.5;

/// Of each of the student's blocks, the teacher's block that it came from: the one with its queries.
pub fn origins(student: &Checkpoint, teacher: &Checkpoint) -> Result<Vec<usize>, StageError> {
    let [ours, theirs] = [student, teacher].map(|model| model.spec().d_model);
    if ours != theirs {
        return Err(StageError::Input(format!(
            "fit_tokens: the student's d_model is {ours} and the teacher's {theirs}: leave it at 0"
        )));
    }
    let queries = |model: &Checkpoint, block: usize| {
        let weight = model.weights.read(TensorKey::block(block, Role::Query)).map_err(failed)?;
        slmc_blocks::decode_weight(&weight).map_err(failed)
    };
    let n_teacher = teacher.spec().n_layers;
    let teachers: Vec<Vec<f32>> =
        (0..n_teacher).map(|block| queries(teacher, block)).collect::<Result<_, _>>()?;
    let mut origins: Vec<usize> = Vec::new();
    for block in 0..student.spec().n_layers {
        let own = queries(student, block)?;
        let first = origins.last().map_or(0, |last| last + 1);
        let distances = (first..n_teacher).map(|other| (other, distance(&own, &teachers[other])));
        let nearest = distances.min_by(|a, b| a.1.total_cmp(&b.1));
        match nearest.filter(|&(_, distance)| distance < LARGEST_DISTANCE) {
            Some((origin, _)) => origins.push(origin),
            None => {
                return Err(StageError::Input(format!(
                    "fit_tokens: the student's block {block} is none of the teacher's: only a student that was carved \
                     out of its teacher can be fitted to it; leave it at 0"
                )));
            }
        }
    }
    Ok(origins)
}

/// As a share of the other's norm; none is too far where the sizes differ.
fn distance(own: &[f32], other: &[f32]) -> f64 {
    if own.len() != other.len() {
        return f64::INFINITY;
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = own.iter().zip(other).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = other.iter().map(|&x| square(x)).sum();
    (apart / norm.max(f64::MIN_POSITIVE)).sqrt()
}
