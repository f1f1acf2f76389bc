//! An adapter against readers that share no code with slmc: numpy (f64) on PEFT's folder, and llama.cpp on the GGUF. On the
//! small model that ships with the project; the interpreter and llama.cpp are those of `cargo xtask fetch`.

mod common;
#[path = "common/python.rs"]
mod python;

use common::{run_json, tiny_teacher, tiny_text};
use python::{reference, reference_text};

#[test]
#[ignore = "needs the references: cargo xtask fetch"]
fn an_adapter_is_the_same_in_numpy_and_in_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let base = tiny_teacher().to_str().unwrap().to_owned();
    let data = tiny_text("train.jsonl").to_str().unwrap().to_owned();
    let (adapter, merged, gguf) = (path("adapter"), path("merged"), path("adapter.gguf"));
    // Few steps at a high rate: what the adapter does is far above rounding.
    run_json([
        "--seed",
        "3",
        "lora",
        "train",
        "--base",
        &base,
        "--data",
        &data,
        "--steps",
        "8",
        "--set",
        "learning_rate=3e-3",
        "--set",
        "seq_len=64",
        "--out",
        &adapter,
    ]);
    run_json(["lora", "merge", "--base", &base, "--adapter", &adapter, "--dtype", "f32", "--out", &merged]);
    run_json(["lora", "export", "--base", &base, "--adapter", &adapter, "--out", &gguf]);
    let base_gguf = path("base.gguf");
    run_json(["convert", &base, "--dtype", "f32", "--out", &base_gguf]);

    let ids = (5..400).step_by(7).map(|id: u32| id.to_string()).collect::<Vec<_>>().join(" ");
    let tokens = path("tokens.txt");
    std::fs::write(&tokens, ids).unwrap();
    let logits = |script: &str, model: &str, name: &str, more: [&str; 2]| {
        let out = path(name);
        let arguments: Vec<&str> = ["logits", model, &tokens, &out].into_iter().chain(more).collect();
        reference_text(script, &arguments);
        out
    };
    let beside = logits("llama_numpy.py", &base, "beside.npy", ["--adapter", &adapter]);
    let within = logits("llama_numpy.py", &merged, "within.npy", ["--tokens", "400"]);
    let without = logits("llama_numpy.py", &base, "without.npy", ["--tokens", "400"]);
    let llama = logits("oracle.py", &base_gguf, "llama.npy", ["--lora", &gguf]);
    let apart = |a: &str, b: &str| reference("compare_logits.py", &[a, b])["max_abs"].as_f64().unwrap();
    // Merged in f32; llama.cpp computes in f32. The base alone is as near to llama.cpp: 3e-6.
    assert!(apart(&beside, &within) < 1e-5, "merged");
    assert!(apart(&beside, &llama) < 5e-5, "llama.cpp");
    assert!(apart(&beside, &without) > 0.05, "the adapter does nothing");
}
