//! Runs that were broken off end in the bytes of an unbroken one.

mod common;

use std::fs;
use std::path::Path;

use common::{Counting, FakeHost, bits, checkpoint, device, inputs, lines, settings};
use slmc_ir::SilentHost;
use slmc_train::{
    BatchSource, DistillSettings, MetricsLine, Outcome, RunState, Stopped, TrainError, TrainInputs,
    TrainSettings, discard, train,
};

const STEPS: u64 = 12;

fn run(run_dir: &Path, settings: &TrainSettings, host: &FakeHost) -> Outcome {
    let source = Counting::of(settings);
    let held_out = [source.batch(1000).unwrap()];
    let inputs = TrainInputs { eval: &held_out, ..inputs(&source, run_dir) };
    train(inputs, settings, &device(), host).unwrap()
}

/// All that a run leaves that does not depend on the time.
fn remains(outcome: &Outcome, run_dir: &Path) -> (Vec<u32>, Vec<Vec<u8>>, Vec<MetricsLine>) {
    let files = ["model.safetensors", "optimizer.safetensors"];
    let files = files.map(|name| fs::read(checkpoint(run_dir, STEPS).join(name)).unwrap());
    let timeless = |line: MetricsLine| MetricsLine { seconds: 0.0, tokens_per_s: None, ..line };
    (bits(&outcome.student), files.to_vec(), lines(&outcome.metrics).into_iter().map(timeless).collect())
}

#[test]
fn a_run_stopped_anywhere_ends_in_the_same_bytes() {
    let settings = settings(STEPS);
    let folder = tempfile::tempdir().unwrap();
    let unbroken = run(folder.path(), &settings, &FakeHost::default());
    let expected = remains(&unbroken, folder.path());

    for stops in [vec![0], vec![1], vec![4], vec![2, 3, 11], (0..STEPS).collect()] {
        let folder = tempfile::tempdir().unwrap();
        for &stop in &stops {
            let host = FakeHost { stop_at_tokens: Some(stop * 32), ..FakeHost::default() };
            let outcome = run(folder.path(), &settings, &host);
            assert_eq!((outcome.stopped, outcome.steps), (Stopped::Interrupted, stop));
        }
        let outcome = run(folder.path(), &settings, &FakeHost::default());
        assert_eq!(outcome.stopped, Stopped::Completed);
        assert!(remains(&outcome, folder.path()) == expected, "stopped at {stops:?}");
    }
}

#[test]
fn a_run_that_died_goes_on_from_its_checkpoint() {
    let settings = TrainSettings { accumulate: 2, ..settings(STEPS) };
    let folder = tempfile::tempdir().unwrap();
    let expected = remains(&run(folder.path(), &settings, &FakeHost::default()), folder.path());

    for dies_at in [3, 8, 15, 23] {
        let folder = tempfile::tempdir().unwrap();
        let source = Counting { dies_at: Some(dies_at), ..Counting::of(&settings) };
        let held_out = [Counting::of(&settings).batch(1000).unwrap()];
        let inputs = TrainInputs { eval: &held_out, ..inputs(&source, folder.path()) };
        assert!(train(inputs, &settings, &device(), &SilentHost).is_err());
        let saved = RunState::latest(folder.path(), &SilentHost).unwrap().map(|state| state.step);
        let last = dies_at / 2 / 4 * 4;
        assert_eq!(saved, (last > 0).then_some(last));
        let outcome = run(folder.path(), &settings, &FakeHost::default());
        assert!(remains(&outcome, folder.path()) == expected, "died at batch {dies_at}");
    }
}

#[test]
fn a_checkpoint_broken_off_in_writing_leaves_the_one_before() {
    let settings = settings(STEPS);
    let folder = tempfile::tempdir().unwrap();
    let expected = remains(&run(folder.path(), &settings, &FakeHost::default()), folder.path());

    let folder = tempfile::tempdir().unwrap();
    let host = FakeHost { stop_at_tokens: Some(7 * 32), ..FakeHost::default() };
    run(folder.path(), &settings, &host);
    let whole = checkpoint(folder.path(), 7);
    let half = folder.path().join("checkpoints/.unfinished-step-0000000008");
    fs::create_dir(&half).unwrap();
    let bytes = fs::read(whole.join("model.safetensors")).unwrap();
    fs::write(half.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    // A file cut short under the final name, as a disk that loses writes would leave it.
    let damaged = checkpoint(folder.path(), 8);
    fs::create_dir(&damaged).unwrap();
    for name in ["optimizer.safetensors", "state.json"] {
        fs::copy(whole.join(name), damaged.join(name)).unwrap();
    }
    fs::write(damaged.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();

    let host = FakeHost::default();
    let outcome = run(folder.path(), &settings, &host);
    assert!(remains(&outcome, folder.path()) == expected);
    assert_eq!(host.warnings.lock().unwrap().len(), 1);
    assert!(!half.exists());
}

#[test]
fn a_distillation_resumes_too() {
    let settings = TrainSettings { distill: Some(DistillSettings::default()), ..settings(STEPS) };
    let teacher = slmc_model::Decoder::fresh(&common::tiny_spec(), 5, &device());
    let source = Counting { masked: true, ..Counting::of(&settings) };
    let run = |run_dir: &Path, host: &FakeHost| {
        let inputs = TrainInputs { teacher: Some(&teacher), ..inputs(&source, run_dir) };
        train(inputs, &settings, &device(), host).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let expected = remains(&run(folder.path(), &FakeHost::default()), folder.path());
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &FakeHost { stop_at_tokens: Some(5 * 32), ..FakeHost::default() });
    let resumed = run(folder.path(), &FakeHost::default());
    assert!(remains(&resumed, folder.path()) == expected);
}

#[test]
fn a_finished_run_is_not_trained_again() {
    let settings = settings(4);
    let folder = tempfile::tempdir().unwrap();
    let first = run(folder.path(), &settings, &FakeHost::default());
    let unread = Counting { dies_at: Some(4), ..Counting::of(&settings) };
    let again = train(inputs(&unread, folder.path()), &settings, &device(), &SilentHost).unwrap();
    assert_eq!((again.stopped, again.steps), (Stopped::Completed, 4));
    // Figures come from the checkpoint's JSON, whose parser may be off by a last bit.
    let close = |a: f64, b: f64| assert!((a - b).abs() <= a * 1e-15, "{a} is not {b}");
    close(first.final_loss, again.final_loss);
    close(first.eval.unwrap().nll, again.eval.unwrap().nll);
    assert_eq!(bits(&again.student), bits(&first.student));
}

#[test]
fn another_run_in_the_folder_is_refused() {
    let settings = settings(4);
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &settings, &FakeHost::default());
    let source = Counting::of(&settings);
    let other = |settings: &TrainSettings, inputs_hash: &str| {
        let inputs_hash = inputs_hash.to_owned();
        let inputs = TrainInputs { inputs_hash, ..inputs(&source, folder.path()) };
        train(inputs, settings, &device(), &SilentHost).err()
    };
    let rate = other(&TrainSettings { learning_rate: 0.5, ..settings.clone() }, "counting").unwrap();
    assert!(rate.to_string().contains("learning_rate is 0.01, not 0.5"), "{rate}");
    assert!(matches!(other(&settings, "elsewhere"), Some(TrainError::OtherRun { .. })));
    assert!(other(&TrainSettings { checkpoint_every: 1, ..settings.clone() }, "counting").is_none());
    discard(folder.path()).unwrap();
    assert!(other(&TrainSettings { learning_rate: 0.5, ..settings }, "counting").is_none());
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint() {
    let settings =
        TrainSettings { learning_rate: 1e30, checkpoint_every: 1, warmup_steps: Some(0), ..settings(8) };
    let source = Counting::of(&settings);
    let folder = tempfile::tempdir().unwrap();
    let error =
        train(inputs(&source, folder.path()), &settings, &device(), &SilentHost).err().expect("diverged");
    let TrainError::NotFinite { step, what } = &error else { panic!("{error}") };
    assert!(what.contains("loss") || what.contains("gradient"), "{error}");
    let state = RunState::latest(folder.path(), &SilentHost).unwrap().unwrap();
    assert_eq!(state.step, step - 1);
}
