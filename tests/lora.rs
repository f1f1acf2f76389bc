//! Adapters from outside: trained, killed and resumed, merged both ways, averaged, refused.

mod common;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use common::{check_refused, run, run_json, slmc, stderr, tiny_teacher, tiny_text};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Questions with answers, cut out of the small text that ships with the project.
fn questions(folder: &Path) -> PathBuf {
    let stories = std::fs::read_to_string(tiny_text("train.jsonl")).unwrap();
    let mut lines = String::new();
    for line in stories.lines().take(120) {
        let story: serde_json::Value = serde_json::from_str(line).unwrap();
        let words: Vec<&str> = story["text"].as_str().unwrap().split_whitespace().take(40).collect();
        let (question, answer) = words.split_at(words.len() / 2);
        let document = serde_json::json!({"question": question.join(" "), "answer": answer.join(" ")});
        lines += &format!("{document}\n");
    }
    let path = folder.join("questions.jsonl");
    std::fs::write(&path, lines).unwrap();
    path
}

fn train(folder: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let mut arguments =
        ["--seed", "5", "lora", "train", "--steps", "12", "--rank", "4"].map(str::to_owned).to_vec();
    arguments.extend(["--base".to_owned(), text(&tiny_teacher())]);
    arguments.extend(["--data".to_owned(), text(&folder.join("questions.jsonl"))]);
    for setting in ["batch_size=2", "seq_len=64", "checkpoint_every=2", "eval_every=6", "learning_rate=2e-3"]
    {
        arguments.extend(["--set".to_owned(), setting.to_owned()]);
    }
    arguments.extend(["--out".to_owned(), text(out)]);
    arguments.extend(more.iter().map(|&word| word.to_owned()));
    arguments
}

fn factors(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("adapter_model.safetensors")).expect("the adapter is there")
}

#[test]
fn an_adapter_killed_and_resumed_has_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    questions(folder.path());
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let started = Instant::now();
    let output = run(train(folder.path(), &whole, &[]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let duration = started.elapsed();
    let mut arguments = train(folder.path(), &broken, &[]);
    let mut n_killed = 0;
    for share in [0.3, 0.5, 0.4] {
        let mut child = slmc().args(&arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * share));
        n_killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let begun = folder.path().join("broken.run/plan.json").exists();
        if begun && !arguments.contains(&"--resume".to_owned()) {
            arguments.push("--resume".to_owned());
        }
        if broken.exists() {
            break;
        }
    }
    assert!(n_killed > 0, "every kill came too late");
    if !broken.exists() {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert!(factors(&whole) == factors(&broken), "after {n_killed} kills the factors differ");
}

#[test]
fn a_rounded_base_is_merged_both_ways_and_the_better_kept() {
    for format in ["q4_0", "iq4_nl", "nf4"] {
        let folder = tempfile::tempdir().unwrap();
        merged_both_ways(folder.path(), format);
    }
}

fn merged_both_ways(folder: &Path, format: &str) {
    let data = text(&questions(folder));
    let (adapter, merged) = (folder.join("adapter"), folder.join("merged"));
    let trained = run_json(train(folder, &adapter, &["--base-format", format, "--eval-data", &data]));
    let held_out = &trained["report"]["held_out"];
    assert!(held_out["interval"][1].as_f64().unwrap() < 0.0, "{held_out}");
    let arguments =
        ["lora", "merge", "--base", &text(&tiny_teacher()), "--adapter", &text(&adapter), "--data", &data]
            .map(str::to_owned)
            .to_vec();
    let found = run_json(arguments.into_iter().chain(["--out".to_owned(), text(&merged)]));
    let figure = |name: &str| found["merge"][name].as_f64().unwrap_or_else(|| panic!("{name}: {found}"));
    let (stored, rounded) = (figure("stored_nll"), figure("rounded_nll"));
    assert!(stored < figure("base_nll") && rounded < figure("base_nll"), "{found}");
    assert_eq!(found["merge"]["kept"], if rounded < stored { format } else { "as stored" });
    // The merged model is a model like any other.
    let packed = text(&folder.join("packed.gguf"));
    let output = run(["quantize", &text(&merged), "--format", "q4_0", "--out", &packed]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn an_adapter_of_a_base_with_other_channels_fits_the_model_before() {
    for (method, done) in [("gptq", "channels_reordered"), ("awq", "channels_scaled")] {
        check_adapter_of_a_base_with_other_channels(method, done);
    }
}

fn check_adapter_of_a_base_with_other_channels(method: &str, done: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = text(&questions(folder.path()));
    let path = |name: &str| text(&folder.path().join(name));
    let (base, adapter) = (path("base.gguf"), folder.path().join("adapter"));
    let calibration = text(&tiny_text("train.jsonl"));
    let fixed = ["quantize", &text(&tiny_teacher()), "--method", method, "--format", "q8_0", "--out", &base];
    let small = ["--calibration", &calibration, "--set", "n_sequences=4", "--set", "seq_len=128"];
    let made = run_json(fixed.iter().chain(&small));
    assert_eq!(made[done], true, "{made}");
    let mut training = train(folder.path(), &adapter, &["--eval-data", &data, "--set", "learning_rate=5e-3"]);
    for (option, value) in [("--base", base.as_str()), ("--steps", "60")] {
        let at = training.iter().position(|word| word == option).unwrap() + 1;
        value.clone_into(&mut training[at]);
    }
    let held_out = run_json(training)["report"]["held_out"].clone();
    let after = held_out["after"].as_f64().unwrap_or_else(|| panic!("{held_out}"));
    let before = held_out["before"].as_f64().unwrap();
    assert!(after < 0.97 * before, "{held_out}");
    if method == "awq" {
        // One for a model whose channels are as they were, and this one: there is no mean of both.
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(adapter.join(name), other.join(name)).unwrap();
        }
        let both = [text(&adapter), text(&other)];
        let fixed = ["lora", "average", &both[0], &both[1], "--out", &path("mean")];
        check_refused(fixed, "scaled in other ways");
        // That one says nothing of its model any more.
        let fixed = ["lora", "export", "--base", &base, "--adapter", &both[1], "--out", &path("other.gguf")];
        let output = run(fixed);
        assert!(
            output.status.success() && stderr(&output).contains("does not say which model"),
            "{}",
            stderr(&output)
        );
    }
    // A folder made of it has its channels where they were, if not of the size.
    let folder_of_it = path("folder");
    run_json(["convert", &base, "--out", &folder_of_it]);
    for (name, base) in [("float", &text(&tiny_teacher())), ("packed", &base), ("folder", &folder_of_it)] {
        let out = path(&format!("merged-{name}"));
        let fixed = ["lora", "merge", "--base", base, "--adapter", &text(&adapter), "--data", &data];
        let found = run_json(fixed.iter().chain(&["--out", out.as_str()]));
        let merged = found["merge"]["stored_nll"].as_f64().unwrap();
        // The losses are over the same questions, if not over the same number of them.
        assert!(
            merged < before - 0.7 * (before - after),
            "{name}: {merged} where it was {before}, then {after}"
        );
    }
}

#[test]
fn the_mean_of_an_adapter_and_itself_is_itself() {
    let folder = tempfile::tempdir().unwrap();
    questions(folder.path());
    let paths = ["one", "mean", "a.gguf"].map(|name| folder.path().join(name));
    let [one, mean, gguf] = paths.each_ref().map(|path| text(path));
    run_json(train(folder.path(), &paths[0], &["--target", "q,v"]));
    let found = run_json(["lora", "average", &one, &one, "--out", &mean]);
    assert_eq!(found["rank"], 8);
    let data = text(&folder.path().join("questions.jsonl"));
    let base = text(&tiny_teacher());
    let loss = |adapter: &str, out: &str| {
        let out = text(&folder.path().join(out));
        let found = run_json([
            "lora",
            "merge",
            "--base",
            &base,
            "--adapter",
            adapter,
            "--data",
            &data,
            "--out",
            &out,
        ]);
        found["merge"]["stored_nll"].as_f64().unwrap()
    };
    assert!((loss(&one, "merged-one") - loss(&mean, "merged-mean")).abs() < 1e-5);
    run_json(["lora", "export", "--base", &base, "--adapter", &mean, "--out", &gguf]);
    assert!(std::fs::read(&paths[2]).unwrap().starts_with(b"GGUF"));
}

#[test]
fn a_dry_run_marks_what_is_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("d.jsonl");
    std::fs::write(&data, "{\"prompt\": \"Once upon\", \"completion\": \" a time\"}\n").unwrap();
    let base = text(&tiny_teacher());
    let output = run(["lora", "train", "--base", &base, "--data", &text(&data), "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("d.jsonl:1") && shown.contains("Once upon⟦ a time"), "{shown}");
}

#[test]
fn every_bad_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("d.jsonl");
    std::fs::write(&data, "{\"text\": \"a\"}\n{oops\n{\"prompt\": \"p\"}\n{\"text\": \"b\"}\n{}\n").unwrap();
    let (base, out) = (text(&tiny_teacher()), text(&folder.path().join("out")));
    let arguments = ["lora", "train", "--base", &base, "--data", &text(&data), "--steps", "1", "--out", &out];
    let output = run(arguments);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for place in ["d.jsonl:2: is not JSON", "d.jsonl:3: has no field `completion`", "d.jsonl:5: has none"] {
        assert!(said.contains(place), "{said}");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    questions(folder.path());
    let out = folder.path().join("out");
    let with = |more: &[&str]| train(folder.path(), &out, more);
    check_refused(with(&["--base-format", "nf5"]), "q4_0, iq4_nl or nf4");
    check_refused(with(&["--base-format", "f16"]), "q4_0, iq4_nl or nf4");
    check_refused(with(&["--target", "q,everything"]), "target `everything`");
    check_refused(with(&["--alpha", "0"]), "alpha");
    check_refused(with(&["--resume"]), "nothing to resume");
    let base = text(&tiny_teacher());
    check_refused(["lora", "merge", "--base", &base, "--adapter", &base, "--out", "x"], "no adapter");
}
