//! The verbs of the engine, from outside, on the small model that ships with the project.

mod common;

use std::{
    io::Write,
    process::{Output, Stdio},
};

use common::{check_refused, run, run_json, slmc, stderr, tiny_teacher, tiny_text};

fn teacher() -> String {
    tiny_teacher().to_str().unwrap().to_owned()
}

#[test]
fn generate_writes_the_same_text_again() {
    let arguments = ["generate", &teacher(), "--prompt", "Once", "--max-tokens", "12", "--seed", "5"];
    let found = run_json(arguments);
    assert!(found["tokens"].as_u64().unwrap() <= 12);
    let text = found["text"].as_str().unwrap();
    let plain = run(arguments.iter().chain(&["--threads", "1"]));
    assert_eq!(plain.status.code(), Some(0), "{}", stderr(&plain));
    assert_eq!(String::from_utf8_lossy(&plain.stdout).trim_end(), text.trim_end());
    assert!(stderr(&plain).contains("tokens written at"), "{}", stderr(&plain));
}

#[test]
fn a_draft_leaves_a_greedy_text_as_it_is() {
    let greedy = ["generate", &teacher(), "--prompt", "Once", "--max-tokens", "12", "--temperature", "0"];
    let alone = run_json(greedy);
    let drafted = run_json(greedy.iter().chain(&["--draft", &*teacher()]));
    assert_eq!(alone["text"], drafted["text"]);
    assert!(drafted["accepted"].as_u64().unwrap() > 0, "{drafted}");
}

#[test]
fn wrong_settings_of_the_engine_end_with_2() {
    let teacher = teacher();
    check_refused(["generate", &teacher, "--prompt", "x", "--top-p", "2"], "top_p");
    check_refused(["generate", &teacher, "--prompt", "x", "--ctx", "99999999"], "context");
    check_refused(["generate", "no/such/model", "--prompt", "x"], "no/such/model");
    check_refused(["bench", &teacher, "--runs", "0"], "--runs");
    check_refused(["--json", "chat", &teacher], "slmc generate");
    let text = tiny_text("eval.jsonl");
    let text = text.to_str().unwrap();
    check_refused(["--device", "flex", "eval", "ppl", &teacher, "--data", text, "--exact"], "--exact");
}

#[test]
fn bench_says_what_it_measured() {
    let found = run_json(["bench", &teacher(), "--pp", "16", "--tg", "4", "--runs", "2", "--threads", "2"]);
    assert_eq!(found["threads"], 2);
    for field in ["pp_tokens_per_s", "tg_tokens_per_s", "bytes_per_token", "read_gb_per_s", "int8_gops"] {
        assert!(found[field].as_f64().unwrap() > 0.0, "{field}: {found}");
    }
    assert_eq!(found["pp_runs"].as_array().unwrap().len(), 2);
}

#[test]
fn the_engine_and_the_training_code_measure_the_same() {
    let text = tiny_text("eval.jsonl");
    let measure = |more: &[&str]| {
        let first =
            ["eval", "ppl", &teacher(), "--data", text.to_str().unwrap(), "--chunks", "2", "--ctx", "64"];
        run_json(first.iter().chain(more))["ppl"].as_f64().unwrap()
    };
    let (exact, burn, fast) = (measure(&["--exact"]), measure(&["--device", "flex"]), measure(&[]));
    assert!((exact / burn - 1.0).abs() < 1e-4, "f32 on both sides: {exact} and {burn}");
    assert!((fast / exact - 1.0).abs() < 0.02, "int8 activations: {fast} and {exact}");
}

/// Feeds lines to `slmc chat`.
fn chat(arguments: &[&str], lines: &str) -> Output {
    let mut command = slmc();
    command.arg("chat").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("slmc starts");
    // A chat that refuses its model has closed its end already.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn a_chat_answers_until_it_is_told_to_end() {
    let without = chat(&[&teacher()], "hello\n");
    assert_eq!(without.status.code(), Some(2), "{}", stderr(&without));
    assert!(stderr(&without).contains("no chat template"), "{}", stderr(&without));

    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny_teacher()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = folder.path().join("tokenizer_config.json");
    let mut document: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    document["chat_template"] = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}".into();
    std::fs::write(&config, document.to_string()).unwrap();
    let model = folder.path().to_str().unwrap();
    let output = chat(&[model, "--max-tokens", "5"], "hello\n\n/new\nhello\n/exit\nnot read\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("a second").count(), 2, "{}", stderr(&output));
}

#[test]
fn a_cache_of_bytes_changes_little_and_is_not_exact() {
    let data = tiny_text("eval.jsonl");
    let data = data.to_str().unwrap();
    let ppl = |more: &[&str]| {
        let asked = ["eval", "ppl", &teacher(), "--data", data, "--ctx", "128", "--chunks", "10"];
        run_json(asked.iter().chain(more))["ppl"].as_f64().unwrap()
    };
    let (halves, bytes) = (ppl(&[]), ppl(&["--cache", "int8"]));
    // Steps of 1/127 of the largest number of a head, beside activations that are rounded likewise.
    assert!(bytes != halves && (bytes / halves - 1.0).abs() < 0.01, "{bytes} and {halves}");
    let refused = ["generate", &teacher(), "--prompt", "The sea", "--cache", "int8", "--exact"];
    check_refused(refused, "--exact");
}

#[test]
fn a_baseline_that_is_kept_runs_once_and_changes_no_figure_by_much() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (packed, text) = (path("q4_0.gguf"), tiny_text("eval.jsonl").to_str().unwrap().to_owned());
    run_json(["quantize", &teacher(), "--method", "rtn", "--format", "q4_0", "--out", &packed]);
    let fixed =
        ["eval", "kld", &packed, "--baseline", &teacher(), "--data", &text, "--ctx", "64", "--chunks", "6"]
            .map(str::to_owned);
    let kept = [&fixed[..], &["--keep-baseline".to_owned(), path("kept")]].concat();
    let [without, first, second] = [run_json(&fixed), run_json(&kept), run_json(&kept)];
    assert_eq!(first, second);
    let figure = |document: &serde_json::Value, name: &str| document[name].as_f64().unwrap();
    assert!(figure(&first, "kld") > 5e-4, "{first}");
    for name in ["kld", "ppl", "ppl_base", "same_top"] {
        assert!(
            (figure(&first, name) - figure(&without, name)).abs() < 1e-4 * figure(&without, name).max(1.0),
            "{name}"
        );
    }
    let files: Vec<_> = std::fs::read_dir(path("kept")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    // What is kept is what is used: damaged, it is made again.
    let mut bytes = std::fs::read(&files[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&files[0], bytes).unwrap();
    let output = run(&kept);
    assert!(stderr(&output).contains("run again"), "{}", stderr(&output));
}
