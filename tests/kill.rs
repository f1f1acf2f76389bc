//! Nothing is lost: training that is killed at any moment and resumed ends in the same bytes as training that is not.

mod common;

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{run, slmc, stderr, tiny_teacher, tiny_text};

fn distill(out: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let fixed =
        ["--seed", "5", "distill", "--student", "n_layers=4,d_ff=192", "--steps", "24"].map(str::to_owned);
    let mut arguments = fixed.to_vec();
    arguments.extend(["--teacher".to_owned(), text(&tiny_teacher())]);
    arguments.extend(["--data".to_owned(), text(&tiny_text("train.jsonl"))]);
    arguments.extend(["--eval-data".to_owned(), text(&tiny_text("eval.jsonl"))]);
    // Little is written and the fit is short: most kills are to come while it trains.
    let settings =
        ["sampled_tokens=512", "fit_tokens=512", "batch_size=2", "seq_len=64", "checkpoint_every=4"];
    for setting in settings.iter().chain(&["eval_every=8", "eval_batches=2"]) {
        arguments.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    arguments.extend(["--out".to_owned(), text(out)]);
    arguments
}

fn weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).expect("the student's weights are there")
}

/// Kills the run `n_kills` times, spread over the time that an unbroken run takes, then lets it finish.
fn check_kills(n_kills: u32) {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let started = Instant::now();
    let output = run(distill(&whole));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let duration = started.elapsed();
    let mut arguments = distill(&broken);
    let mut n_killed = 0;
    for i in 0..n_kills {
        // Golden-ratio steps: moments spread evenly over the run whatever their number.
        let share = (f64::from(i) * 0.618_033_988_75 + 0.1).fract();
        let mut child = slmc().args(&arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * share * 0.5));
        let still_running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        n_killed += u32::from(still_running);
        if !still_running {
            break;
        }
        if !arguments.contains(&"--resume".to_owned()) && folder.path().join("broken.run/plan.json").exists()
        {
            arguments.push("--resume".to_owned());
        }
    }
    assert!(n_killed > 0, "every kill came too late");
    if !broken.join("model.safetensors").exists() {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert!(weights(&whole) == weights(&broken), "after {n_killed} kills the weights differ");
}

#[test]
fn a_killed_distillation_resumes_to_the_same_bytes() {
    check_kills(4);
}

#[test]
#[ignore = "needs minutes: cargo xtask test --real"]
fn twenty_kills_change_nothing() {
    check_kills(20);
}

#[test]
#[cfg(unix)]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    assert_eq!(run(distill(&whole)).status.code(), Some(0));
    let metrics = folder.path().join("broken.run/02-distill/metrics.jsonl");
    let child = slmc().args(distill(&broken)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    // Interrupted once the first steps are in the log.
    while std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 2
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    let interrupted =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("--resume"), "{}", stderr(&output));
    let mut arguments = distill(&broken);
    arguments.push("--resume".to_owned());
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(weights(&whole) == weights(&broken), "after Ctrl-C the weights differ");
}

/// Interrupts an evaluation until one is met that was not done yet, and lets it finish: the document that it prints then.
#[cfg(unix)]
fn evaluate_with_a_break(arguments: &[String], cache: &Path) -> (bool, Vec<u8>) {
    let start = || {
        let mut command = slmc();
        command.args(arguments).env("SLMC_CACHE", cache);
        command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut was_stopped = false;
    for milliseconds in [150, 300, 500] {
        let child = start();
        std::thread::sleep(Duration::from_millis(milliseconds));
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(130) {
            assert!(stderr(&output).contains("goes on from there"), "{}", stderr(&output));
            was_stopped = true;
        }
    }
    let output = start().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let went_on = stderr(&output).contains("run before");
    assert_eq!(std::fs::read_dir(cache).map_or(0, Iterator::count), 0, "nothing is left of it");
    (was_stopped && went_on, output.stdout)
}

#[test]
#[cfg(unix)]
fn evaluations_that_are_stopped_go_on_and_print_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let long = folder.path().join("long.txt");
    std::fs::copy(tiny_text("eval.jsonl"), &long).unwrap();
    let model = text(&tiny_teacher());
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<String>>();
    let on_text = ["--data", &text(&long), "--ctx", "64", "--json"];
    let task = folder.path().join("long.toml");
    let keys =
        "doc_to_text = 'q'\ndoc_to_choice = '[\"one\", \"two\", \"three\"]'\ndoc_to_target = 'label'\n";
    std::fs::write(&task, format!("name = 'long'\nkind = 'multiple_choice'\ndata = 'items.jsonl'\n{keys}"))
        .unwrap();
    let items: String =
        (0..3000).map(|i| format!("{{\"q\": \"Item {i} is\", \"label\": {}}}\n", i % 3)).collect();
    std::fs::write(folder.path().join("items.jsonl"), items).unwrap();
    let task = text(&task);
    for arguments in [
        words(&[&["eval", "ppl", &model], &on_text[..]].concat()),
        words(&[&["eval", "kld", &model, "--baseline", &model], &on_text[..]].concat()),
        words(&["eval", "tasks", &model, "--task", &task, "--json"]),
    ] {
        let whole = slmc().args(&arguments).env("SLMC_CACHE", folder.path().join("other")).output().unwrap();
        assert_eq!(whole.status.code(), Some(0), "{}", stderr(&whole));
        let (went_on, found) = evaluate_with_a_break(&arguments, &folder.path().join("cache"));
        assert!(went_on, "{arguments:?}: no break came while it ran");
        assert!(found == whole.stdout, "{arguments:?}");
    }
}
