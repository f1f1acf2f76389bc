//! The command line as users and scripts meet it: help, exit codes, messages.

mod common;

use common::{check_refused, run, run_json, stderr, tiny_teacher, tiny_text};

#[test]
fn every_verb_has_help_with_an_example() {
    let top = run(["--help"]);
    let text = String::from_utf8(top.stdout).unwrap();
    assert!(text.contains("Exit codes: 0 done"));
    let verbs: &[&[&str]] = &[
        &["run"],
        &["check"],
        &["inspect"],
        &["convert"],
        &["export"],
        &["train"],
        &["distill"],
        &["prune"],
        &["quantize"],
        &["eval", "ppl"],
        &["eval", "kld"],
        &["eval", "tasks"],
        &["eval", "compare"],
        &["gate"],
        &["report"],
        &["sweep"],
        &["generate"],
        &["chat"],
        &["bench"],
        &["data", "inspect"],
        &["completions"],
        &["man"],
    ];
    for verb in verbs {
        assert!(text.contains(verb[0]), "{verb:?} is not in the help");
        let help = run(verb.iter().chain(&["--help"]));
        assert_eq!(help.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&help.stdout).contains("Example: slmc "), "{verb:?} has no example");
    }
}

#[test]
fn wrong_commands_end_with_2_and_a_hint() {
    check_refused(["quantise"], "quantize");
    check_refused(["inspect", "no/such/model.gguf"], "no/such/model.gguf");
    check_refused(["inspect", "hf:org/name"], "hf:org/name");
    check_refused(["run", "no/such/recipe.toml"], "no/such/recipe.toml");
    let teacher = tiny_teacher();
    let teacher = teacher.to_str().unwrap();
    check_refused(["quantize", teacher, "--format", "q9", "--out", "x.gguf"], "q9");
    check_refused(["quantize", teacher, "--format", "q4_0", "--out", "folder"], ".gguf");
    check_refused(["quantize", teacher, "--method", "magic", "--format", "q4_0", "--out", "x.gguf"], "gptq");
    check_refused(["quantize", teacher, "--out", "x.gguf"], "--target-size");
    let text = tiny_text("train.jsonl");
    let text = text.to_str().unwrap();
    check_refused(
        ["prune", teacher, "--student", "n_layers=9", "--calibration", text, "--out", "x"],
        "n_layers = 9",
    );
    check_refused(
        ["prune", teacher, "--student", "n_heads=2", "--calibration", text, "--out", "x"],
        "cannot be carved",
    );
    check_refused(
        ["prune", teacher, "--method", "wanda", "--student", "d_ff=64", "--out", "x"],
        "structured",
    );
    check_refused(["convert", teacher, "--dtype", "f8", "--out", "x.gguf"], "f32, f16 or bf16");
    check_refused(["export", teacher, "--target", "vlm", "--out", "x"], "vllm");
    check_refused(["eval", "ppl", teacher, "--data", "no/such.txt"], "no/such.txt");
    check_refused(
        ["--device", "tpu", "eval", "ppl", teacher, "--data", tiny_text("eval.jsonl").to_str().unwrap()],
        "tpu",
    );
}

#[test]
fn inspect_says_what_the_model_is() {
    let teacher = tiny_teacher();
    let found = run_json([teacher.to_str().unwrap(), "inspect"].iter().rev());
    assert_eq!(found["architecture"], "llama");
    assert_eq!(found["parameters"], 3_640_512);
    assert_eq!(found["bits_per_weight"].as_f64().unwrap().round(), 16.0);
    assert_eq!(found["tensors"].as_array().unwrap().len(), 2 + 8 * 9);
    assert_eq!(found["tokenizer"]["kind"], "BPE");
    assert_eq!(found["tokenizer"]["n_tokens"], 4096);
    assert_eq!(found["tokenizer"]["eos"]["text"], "<|endoftext|>");
    let text = run(["inspect", teacher.to_str().unwrap(), "--tensors"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("block 7 down"), "{}", stderr(&text));
}

#[test]
fn a_run_that_needs_too_much_memory_is_refused_before_it_starts() {
    let recipe = common::root().join("recipes/quickstart.toml");
    check_refused(["--max-mem", "10MB", "run", recipe.to_str().unwrap()], "--max-mem");
    let found = run_json(["check", recipe.to_str().unwrap(), "--target", "llama.cpp"]);
    assert_eq!(found["estimates"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_measured_on_is_not_calibrated_on() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = common::root().join("recipes/quickstart.toml");
    let (out, eval) = (folder.path().join("run"), tiny_text("eval.jsonl"));
    let calibration = format!("carve.calibration={}", eval.to_str().unwrap());
    check_refused(
        ["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap(), "--set", &calibration],
        "% of what [eval] measures on is in calibration",
    );
    assert!(!out.exists());
}

#[test]
fn prune_leaves_the_shape_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small");
    let out = out.to_str().unwrap();
    let (teacher, text) = (tiny_teacher(), tiny_text("train.jsonl"));
    let found = run_json([
        "prune",
        teacher.to_str().unwrap(),
        "--student",
        "n_layers=6,d_ff=320",
        "--calibration",
        text.to_str().unwrap(),
        "--set",
        "n_sequences=2",
        "--set",
        "seq_len=64",
        "--out",
        out,
    ]);
    assert_eq!(found["removed_blocks"].as_array().unwrap().len(), 2);
    let small = run_json(["inspect", out]);
    assert_eq!(small["parameters"], found["parameters"]);
    assert_eq!(small["tensors"].as_array().unwrap().len(), 2 + 6 * 9);
    let gate = small["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "block 5 gate");
    assert_eq!(gate.unwrap()["shape"][0], 320, "{small}");
    assert!(!folder.path().join("small.run").exists(), "the work's folder is left");
}
