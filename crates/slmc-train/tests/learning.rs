//! Whether the student learns, from the data and from a teacher.

mod common;

use common::{Counting, bits, device, inputs, lines, settings};
use slmc_ir::SilentHost;
use slmc_train::{
    BatchSource, Budget, DistillSettings, Stopped, TrainError, TrainInputs, TrainSettings, train,
};

#[test]
fn the_loss_falls_on_a_pattern() {
    let settings = settings(60);
    let source = Counting::of(&settings);
    let folder = tempfile::tempdir().unwrap();
    let held_out = [source.batch(1000).unwrap()];
    let inputs = TrainInputs { eval: &held_out, ..inputs(&source, folder.path()) };
    let outcome = train(inputs, &settings, &device(), &SilentHost).unwrap();

    assert_eq!((outcome.stopped, outcome.steps, outcome.tokens), (Stopped::Completed, 60, 60 * 32));
    let lines = lines(&outcome.metrics);
    let first = lines[1].losses.unwrap().loss;
    assert!((first - 64_f64.ln()).abs() < 0.1, "a fresh model guesses evenly, but its loss is {first}");
    assert!(outcome.final_loss < first * 0.6, "{first} -> {}", outcome.final_loss);
    let eval = outcome.eval.unwrap();
    assert!(eval.nll < first * 0.8 && eval.perplexity == eval.nll.exp() && eval.tokens == 32, "{eval:?}");
    let evaluated: Vec<u64> = lines.iter().filter(|line| line.eval.is_some()).map(|line| line.step).collect();
    assert_eq!(evaluated, (0..=60).step_by(4).collect::<Vec<_>>());
}

/// A teacher that has learned to count.
fn teacher() -> slmc_model::Decoder {
    let settings = settings(60);
    let source = Counting::of(&settings);
    let folder = tempfile::tempdir().unwrap();
    train(inputs(&source, folder.path()), &settings, &device(), &SilentHost).unwrap().student
}

#[test]
fn distillation_brings_the_student_to_its_teacher() {
    let teacher = teacher();
    let distill = Some(DistillSettings { temperature: 2.0, alpha: 0.7, hidden_weight: 0.0 });
    let settings = TrainSettings { distill, ..settings(60) };
    let source = Counting::of(&settings);
    let folder = tempfile::tempdir().unwrap();
    let student = slmc_model::Decoder::fresh(&common::tiny_spec(), 99, &device());
    let inputs = TrainInputs { student, teacher: Some(&teacher), ..inputs(&source, folder.path()) };
    let outcome = train(inputs, &settings, &device(), &SilentHost).unwrap();

    let lines = lines(&outcome.metrics);
    let (first, last) = (lines[0].losses.unwrap(), outcome.losses);
    let (kl, ce) = (last.kl.unwrap(), last.ce.unwrap());
    assert!(kl < first.kl.unwrap() * 0.3, "{first:?} -> {last:?}");
    assert!((last.loss - (0.7 * 4.0 * kl + 0.3 * ce)).abs() < 1e-4, "{last:?}");
}

#[test]
fn distillation_learns_nothing_from_masked_positions() {
    let teacher = teacher();
    let settings = TrainSettings {
        distill: Some(DistillSettings { alpha: 0.5, ..DistillSettings::default() }),
        ..settings(3)
    };
    let run = |masked_target| {
        let source = Counting { masked: true, masked_target, ..Counting::of(&settings) };
        let folder = tempfile::tempdir().unwrap();
        let inputs = TrainInputs { teacher: Some(&teacher), ..inputs(&source, folder.path()) };
        bits(&train(inputs, &settings, &device(), &SilentHost).unwrap().student)
    };
    assert_eq!(run(0), run(63));
}

#[test]
fn two_half_batches_are_one_whole_batch() {
    for (masked, distill) in [(false, None), (true, None), (true, Some(DistillSettings::default()))] {
        let teacher = distill.map(|_| teacher());
        let run = |batch_size, accumulate| {
            let settings = TrainSettings { batch_size, accumulate, distill, ..settings(6) };
            let source = Counting { masked, ..Counting::of(&settings) };
            let folder = tempfile::tempdir().unwrap();
            let inputs = TrainInputs {
                teacher: teacher.as_ref().map(|teacher| teacher as &dyn slmc_train::Teacher),
                ..inputs(&source, folder.path())
            };
            lines(&train(inputs, &settings, &device(), &SilentHost).unwrap().metrics)
        };
        for (halves, whole) in run(2, 2).into_iter().zip(run(4, 1)) {
            assert_eq!(halves.tokens, whole.tokens);
            let (a, b) = (halves.losses.unwrap(), whole.losses.unwrap());
            assert!((a.loss - b.loss).abs() < 1e-5, "step {}: {a:?} against {b:?}", halves.step);
            let (a, b) = (halves.grad_norm.unwrap(), whole.grad_norm.unwrap());
            assert!((a - b).abs() < 1e-5 * b.max(1.0), "step {}: norm {a} against {b}", halves.step);
        }
    }
}

#[test]
fn recomputing_blocks_changes_nothing_but_memory() {
    let run = |recompute| {
        let settings = TrainSettings { recompute, ..settings(6) };
        let source = Counting::of(&settings);
        let folder = tempfile::tempdir().unwrap();
        train(inputs(&source, folder.path()), &settings, &device(), &SilentHost).unwrap().final_loss
    };
    let (kept, recomputed) = (run(false), run(true));
    assert!((kept - recomputed).abs() < 1e-5, "{kept} against {recomputed}");
}

#[test]
fn a_device_without_autodiff_trains_as_well() {
    let settings = settings(6);
    let source = Counting::of(&settings);
    let run = |device: &burn::tensor::Device| {
        let folder = tempfile::tempdir().unwrap();
        let fresh = || slmc_model::Decoder::fresh(&common::tiny_spec(), 1, device);
        for stop_at_tokens in [Some(3 * 32), None] {
            let host = common::FakeHost { stop_at_tokens, ..Default::default() };
            let inputs = TrainInputs { student: fresh(), ..inputs(&source, folder.path()) };
            let outcome = train(inputs, &settings, device, &host).unwrap();
            if outcome.stopped == Stopped::Completed {
                return bits(&outcome.student);
            }
        }
        panic!("not completed");
    };
    assert_eq!(run(&device()), run(&device().inner()));
    assert_ne!(run(&device()), bits(&common::student()));
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let good = settings(2);
    let source = Counting::of(&good);
    let folder = tempfile::tempdir().unwrap();
    let check = |settings: TrainSettings| {
        train(inputs(&source, folder.path()), &settings, &device(), &SilentHost).err().expect("refused")
    };
    let long = check(TrainSettings { seq_len: 65, ..good.clone() });
    assert!(matches!(long, TrainError::Setting { field: "seq_len", .. }), "{long}");
    let shape = check(TrainSettings { batch_size: 3, ..good.clone() });
    assert!(matches!(shape, TrainError::BatchShape { expected: [3, 16], found: [2, 16] }), "{shape}");
    let alone = check(TrainSettings { distill: Some(DistillSettings::default()), ..good.clone() });
    assert!(matches!(alone, TrainError::Teacher(_)), "{alone}");
    let none = check(TrainSettings { budget: Budget::Steps(0), ..good.clone() });
    assert!(matches!(none, TrainError::Setting { field: "budget.steps", .. }), "{none}");
    let still = check(TrainSettings { budget: Budget::Minutes(1.0), ..good });
    assert!(still.to_string().contains("clock"), "{still}");

    let small = slmc_ir::ModelSpec { vocab_size: 32, ..common::tiny_spec() };
    let student = slmc_model::Decoder::fresh(&small, 1, &device());
    let empty = tempfile::tempdir().unwrap();
    let inputs = TrainInputs { student, ..inputs(&source, empty.path()) };
    let foreign = train(inputs, &settings(9), &device(), &SilentHost).err().expect("refused");
    assert!(foreign.to_string().contains("outside the vocabulary of 32"), "{foreign}");
}
