//! Losses of rows of logits, and their gradients in the logits' place.

use rayon::prelude::*;

use crate::{
    dispatch::{LANES, dispatched, maximum, sum_lanes},
    exp::exp,
};

/// `Σ f(x)` with sixteen lanes.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] += f(x[i]);
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        lanes[i] += f(x);
    }
    sum_lanes(lanes)
}

dispatched! {
    fn cross_entropy_row(logits: &mut [f32], target: usize, weight: f32) -> f32 {
        let top = maximum(logits);
        let picked = logits[target] - top;
        let mut lanes = [0.0_f32; LANES];
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for x in whole {
            for i in 0..LANES {
                x[i] = exp(x[i] - top);
                lanes[i] += x[i];
            }
        }
        for (i, x) in rest.iter_mut().enumerate() {
            *x = exp(*x - top);
            lanes[i] += *x;
        }
        let sum = sum_lanes(lanes);
        let factor = weight / sum;
        logits.iter_mut().for_each(|x| *x *= factor);
        logits[target] -= weight;
        sum.ln() - picked
    }
}

/// Cross entropy of each row against its target, in nats; the logits become the gradient of
/// `Σ weight · cross entropy`.
///
/// # Panics
/// When the sizes do not fit or a target is outside the vocabulary.
pub fn cross_entropy(logits: &mut [f32], targets: &[u32], weights: &[f32], losses: &mut [f32]) {
    let vocab_size = logits.len().checked_div(targets.len()).unwrap_or(0);
    assert_eq!(logits.len(), vocab_size * targets.len());
    assert!([weights.len(), losses.len()] == [targets.len(); 2], "one a row");
    if logits.is_empty() {
        return;
    }
    let rows = logits.par_chunks_mut(vocab_size).zip(targets).zip(weights).zip(losses);
    rows.for_each(|(((row, &target), &weight), loss)| {
        *loss = cross_entropy_row(row, target as usize, weight);
    });
}

/// What distillation mixes (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// Both distributions' logits are divided by it.
    pub temperature: f32,
    /// Weight of `T² · KL`; cross entropy weighs the rest.
    pub alpha: f32,
}

dispatched! {
    fn distillation_row(
        student: &mut [f32],
        teacher: &[f32],
        target: usize,
        weight: f32,
        settings: Distillation,
    ) -> [f32; 2] {
        let inverse = 1.0 / settings.temperature;
        let (top_s, top_t) = (maximum(student), maximum(teacher));
        let picked = student[target] - top_s;
        let sum_teacher = sum_of(teacher, |x| exp((x - top_t) * inverse));
        let sum_soft = sum_of(student, |x| exp((x - top_s) * inverse));
        let sum_hard = sum_of(student, |x| exp(x - top_s));
        // d/ds of alpha·T²·KL is alpha·T·(softmax(s/T) - softmax(t/T)).
        let soft_weight = weight * settings.alpha * settings.temperature;
        let hard_weight = weight * (1.0 - settings.alpha);
        let (over_teacher, over_soft) = (1.0 / sum_teacher, 1.0 / sum_soft);
        let over_hard = hard_weight / sum_hard;
        let mut lanes = [0.0_f32; LANES];
        let one = |s: &mut f32, t: f32| {
            let (s_shifted, t_shifted) = ((*s - top_s) * inverse, (t - top_t) * inverse);
            let p = exp(t_shifted) * over_teacher;
            let soft = exp(s_shifted) * over_soft;
            let gap = p * (t_shifted - s_shifted);
            *s = soft_weight * (soft - p) + over_hard * exp(*s - top_s);
            gap
        };
        let (s_whole, s_rest) = student.as_chunks_mut::<LANES>();
        let (t_whole, t_rest) = teacher.as_chunks::<LANES>();
        for (s, t) in s_whole.iter_mut().zip(t_whole) {
            for i in 0..LANES {
                lanes[i] += one(&mut s[i], t[i]);
            }
        }
        for (i, (s, &t)) in s_rest.iter_mut().zip(t_rest).enumerate() {
            lanes[i] += one(s, t);
        }
        student[target] -= hard_weight;
        let kl = sum_lanes(lanes) - sum_teacher.ln() + sum_soft.ln();
        [kl, sum_hard.ln() - picked]
    }
}

/// For each row `[KL(teacher ‖ student) at the temperature, cross entropy]`, in nats; the student's logits
/// become the gradient of `Σ weight · (alpha · T² · KL + (1 - alpha) · cross entropy)`.
///
/// # Panics
/// When the sizes do not fit or a target is outside the vocabulary.
pub fn distillation(
    student: &mut [f32],
    teacher: &[f32],
    targets: &[u32],
    weights: &[f32],
    settings: Distillation,
    losses: &mut [[f32; 2]],
) {
    let vocab_size = student.len().checked_div(targets.len()).unwrap_or(0);
    assert_eq!(student.len(), vocab_size * targets.len());
    assert_eq!(student.len(), teacher.len());
    assert!([weights.len(), losses.len()] == [targets.len(); 2], "one a row");
    if student.is_empty() {
        return;
    }
    let rows = student.par_chunks_mut(vocab_size).zip(teacher.par_chunks(vocab_size));
    let rows = rows.zip(targets).zip(weights).zip(losses);
    rows.for_each(|((((student, teacher), &target), &weight), loss)| {
        *loss = distillation_row(student, teacher, target as usize, weight, settings);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads, slope, wide, worst};

    const VOCAB: usize = 37;
    const TARGETS: [u32; 3] = [5, 36, 0];
    const WEIGHTS: [f32; 3] = [0.5, 0.0, 0.25];

    fn log_softmax(row: &[f64], temperature: f64) -> Vec<f64> {
        let sum: f64 = row.iter().map(|x| (x / temperature).exp()).sum();
        row.iter().map(|x| x / temperature - sum.ln()).collect()
    }

    fn logits(seed: u64) -> Vec<f32> {
        numbers(3 * VOCAB, seed).iter().map(|x| 6.0 * x).collect()
    }

    #[test]
    fn cross_entropy_follows_the_definition_and_its_slope() {
        let before = logits(1);
        let (gradient, losses) = same_on_any_threads(|| {
            let (mut x, mut losses) = (before.clone(), [0.0; 3]);
            cross_entropy(&mut x, &TARGETS, &WEIGHTS, &mut losses);
            (x, losses)
        });
        let rows = |x: &[f64]| -> Vec<f64> {
            let loss = |(row, &t): (&[f64], &u32)| -log_softmax(row, 1.0)[t as usize];
            x.chunks(VOCAB).zip(&TARGETS).map(loss).collect()
        };
        assert!(worst(&losses, &rows(&wide(&before))) < 1e-6);
        let total = |x: &[f64]| rows(x).iter().zip(WEIGHTS).map(|(l, w)| l * f64::from(w)).sum::<f64>();
        assert!(worst(&gradient, &slope(&wide(&before), total)) < 1e-6);
    }

    #[test]
    fn distillation_follows_the_definition_and_its_slope() {
        let (before, teacher) = (logits(1), logits(2));
        for (temperature, alpha) in [(1.0, 1.0), (2.5, 0.7), (0.5, 0.0)] {
            let settings = Distillation { temperature, alpha };
            let (gradient, losses) = same_on_any_threads(|| {
                let (mut x, mut losses) = (before.clone(), [[0.0; 2]; 3]);
                distillation(&mut x, &teacher, &TARGETS, &WEIGHTS, settings, &mut losses);
                (x, losses)
            });
            let (t, a) = (f64::from(temperature), f64::from(alpha));
            let rows = |x: &[f64]| -> Vec<[f64; 2]> {
                let loss = |((s, q), &target): ((&[f64], &[f32]), &u32)| {
                    let (ls, lq) = (log_softmax(s, t), log_softmax(&wide(q), t));
                    let kl: f64 = ls.iter().zip(&lq).map(|(s, q)| q.exp() * (q - s)).sum();
                    [kl, -log_softmax(s, 1.0)[target as usize]]
                };
                x.chunks(VOCAB).zip(teacher.chunks(VOCAB)).zip(&TARGETS).map(loss).collect()
            };
            let expected = rows(&wide(&before));
            assert!(worst(losses.as_flattened(), expected.as_flattened()) < 1e-6);
            let total = |x: &[f64]| {
                let weighed =
                    |([kl, ce], w): ([f64; 2], f32)| f64::from(w) * (a * t * t * kl + (1.0 - a) * ce);
                rows(x).into_iter().zip(WEIGHTS).map(weighed).sum::<f64>()
            };
            assert!(worst(&gradient, &slope(&wide(&before), total)) < 2e-6);
        }
    }

    #[test]
    fn huge_logits_overflow_nothing() {
        let mut x = vec![-1e4, 3e4, 3e4, 0.0];
        let mut losses = [0.0];
        cross_entropy(&mut x, &[1], &[1.0], &mut losses);
        assert!((losses[0] - 2_f32.ln()).abs() < 1e-6);
        assert!((x[1] + 0.5).abs() < 1e-6 && (x[2] - 0.5).abs() < 1e-6 && x[0].abs() < 1e-6);
    }
}
