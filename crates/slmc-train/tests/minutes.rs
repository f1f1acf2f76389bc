//! Budgets in minutes, on a clock that the test moves.

mod common;

use std::sync::atomic::Ordering;

use common::{Counting, FakeHost, bits, device, inputs, settings};
use slmc_data::Batch;
use slmc_train::{BatchSource, Budget, Stopped, TrainError, TrainInputs, TrainSettings, train};

/// Batches that take time: the clock moves when a step's batch is read.
struct Slow<'a> {
    source: Counting,
    host: &'a FakeHost,
    milliseconds: fn(u64) -> u64,
}

impl BatchSource for Slow<'_> {
    fn batch(&self, index: u64) -> Result<Batch, TrainError> {
        self.host.milliseconds.fetch_add((self.milliseconds)(index), Ordering::SeqCst);
        self.source.batch(index)
    }
}

fn minutes(minutes: f64) -> TrainSettings {
    TrainSettings { budget: Budget::Minutes(minutes), warmup_steps: None, ..settings(1) }
}

fn run(
    run_dir: &std::path::Path,
    settings: &TrainSettings,
    host: &FakeHost,
    pace: fn(u64) -> u64,
) -> slmc_train::Outcome {
    let source = Slow { source: Counting::of(settings), host, milliseconds: pace };
    train(TrainInputs { ..inputs(&source, run_dir) }, settings, &device(), host).unwrap()
}

#[test]
fn minutes_are_filled_with_steps() {
    let (settings, host) = (minutes(1.0), FakeHost::default());
    let folder = tempfile::tempdir().unwrap();
    // Six seconds for the first step, two for each of the others: 6 + 27 * 2 = 60.
    let outcome = run(folder.path(), &settings, &host, |index| if index == 0 { 6000 } else { 2000 });
    assert_eq!((outcome.stopped, outcome.steps, outcome.seconds), (Stopped::Completed, 28, 60.0));
    assert_eq!(outcome.plan.total_steps, Some(28));
    let notes = host.notes.lock().unwrap();
    assert!(notes.iter().any(|note| note.contains("16 tok/s")), "{notes:?}");
}

#[test]
fn a_budget_shorter_than_the_timing_ends_at_once() {
    let (settings, host) = (minutes(0.1), FakeHost::default());
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(folder.path(), &settings, &host, |_| 4000);
    assert_eq!((outcome.stopped, outcome.steps), (Stopped::Completed, 2));
}

#[test]
fn a_machine_that_slows_down_is_stopped_aloud() {
    let (settings, host) = (minutes(1.0), FakeHost::default());
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(folder.path(), &settings, &host, |index| if index < 10 { 1000 } else { 10_000 });
    assert_eq!(
        (outcome.stopped, outcome.steps, outcome.plan.total_steps),
        (Stopped::OutOfTime, 16, Some(60))
    );
    assert!(host.warnings.lock().unwrap()[0].contains("16 of 60 steps"));
}

#[test]
fn a_machine_that_speeds_up_does_more() {
    let (settings, host) = (minutes(1.0), FakeHost::default());
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(folder.path(), &settings, &host, |index| if index < 8 { 2000 } else { 1000 });
    // 30 steps by the first five. After 10 of them 42 s are left, 16 / 9 s a step: 33. After 22, 30 s, 28 / 21 s a step: 44.
    assert_eq!((outcome.stopped, outcome.steps, outcome.seconds), (Stopped::Completed, 44, 52.0));
    assert!(host.warnings.lock().unwrap().is_empty());
}

#[test]
fn a_resumed_run_keeps_the_plan_whatever_the_clock_says() {
    let settings = minutes(1.0);
    let folder = tempfile::tempdir().unwrap();
    let unbroken = run(folder.path(), &settings, &FakeHost::default(), |_| 2000);
    assert_eq!(unbroken.steps, 30);

    for stop in [2, 5, 17, 23] {
        let folder = tempfile::tempdir().unwrap();
        let host = FakeHost { stop_at_tokens: Some(stop * 32), ..FakeHost::default() };
        let first = run(folder.path(), &settings, &host, |_| 2000);
        assert_eq!((first.stopped, first.steps), (Stopped::Interrupted, stop));
        // Once the plan was looked at for the last time, another pace changes nothing.
        let pace = if stop < 20 { |_| 2000 } else { |_| 100 };
        let resumed = run(folder.path(), &settings, &FakeHost::default(), pace);
        assert_eq!((resumed.stopped, resumed.steps), (Stopped::Completed, 30));
        assert_eq!(bits(&resumed.student), bits(&unbroken.student), "stopped at {stop}");
    }
}
