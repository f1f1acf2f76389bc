//! An adapter learns by the same loop: it lowers the loss, leaves the base alone, and resumes to the same bytes.

mod common;

use std::path::Path;

use common::{Counting, FakeHost, checkpoint, lines, settings, student, tiny_spec};
use slmc_ir::Adapter;
use slmc_model::{Frozen, fresh_adapter};
use slmc_train::{AdapterInputs, BatchSource, Outcome, Stopped, TrainError, TrainSettings, train_adapter};

const STEPS: u64 = 12;

fn run(run_dir: &Path, settings: &TrainSettings, host: &FakeHost) -> Result<Outcome<Adapter>, TrainError> {
    let base = Frozen::load(&student().to_source(), None).unwrap();
    let source = Counting::of(settings);
    let held_out = [source.batch(1000).unwrap()];
    let inputs = AdapterInputs {
        base: &base,
        adapter: fresh_adapter(&tiny_spec(), &Adapter::ROLES, 4, 8.0, 3),
        train: &source,
        eval: &held_out,
        run_dir,
        inputs_hash: "counting".to_owned(),
    };
    train_adapter(inputs, settings, host)
}

#[test]
fn an_adapter_learns_and_resumes_to_the_same_bytes() {
    let settings = TrainSettings { accumulate: 2, ..settings(STEPS) };
    let folder = tempfile::tempdir().unwrap();
    let unbroken = run(folder.path(), &settings, &FakeHost::default()).unwrap();
    let log = lines(&unbroken.metrics);
    let (first, last) = (log[0].eval.unwrap().nll, unbroken.eval.unwrap().nll);
    assert!(last < first - 0.01, "{first} → {last}");
    let files = |folder: &Path| {
        ["adapter.safetensors", "optimizer.safetensors"]
            .map(|name| std::fs::read(checkpoint(folder, STEPS).join(name)).unwrap())
    };
    let expected = files(folder.path());
    for stops in [vec![1, 7], vec![4], (0..STEPS).collect()] {
        let folder = tempfile::tempdir().unwrap();
        for &stop in &stops {
            let host = FakeHost { stop_at_tokens: Some(stop * 64), ..FakeHost::default() };
            let outcome = run(folder.path(), &settings, &host).unwrap();
            assert_eq!((outcome.stopped, outcome.steps), (Stopped::Interrupted, stop));
        }
        let outcome = run(folder.path(), &settings, &FakeHost::default()).unwrap();
        assert_eq!(outcome.student, unbroken.student, "stopped at {stops:?}");
        assert!(files(folder.path()) == expected, "stopped at {stops:?}");
    }
}

#[test]
fn another_models_adapter_is_refused() {
    let base = Frozen::load(&student().to_source(), None).unwrap();
    let mut spec = tiny_spec();
    spec.d_ff = 64;
    let settings = settings(2);
    let folder = tempfile::tempdir().unwrap();
    let source = Counting::of(&settings);
    let inputs = AdapterInputs {
        base: &base,
        adapter: fresh_adapter(&spec, &Adapter::ROLES, 4, 8.0, 3),
        train: &source,
        eval: &[],
        run_dir: folder.path(),
        inputs_hash: String::new(),
    };
    let error = train_adapter(inputs, &settings, &FakeHost::default()).err().unwrap();
    assert!(matches!(&error, TrainError::Adapter(why) if why.contains("another model")), "{error}");
}
