//! An adapter against readers that share no code with slmc: numpy (f64) on PEFT's folder, and llama.cpp on the GGUF. On the
//! small model that ships with the project; the interpreter and llama.cpp are those of `cargo xtask fetch`.

mod common;
#[path = "common/python.rs"]
mod python;

use common::{run_json, tiny_teacher, tiny_text};
use python::{reference, reference_text};
use slmc_engine::{Engine, EngineOptions};
use slmc_interop::write_adapter_folder;
use slmc_ir::{Adapter, Factors, LanguageModel, ModelSpec, TensorKey};

/// An adapter that anyone can make again: thousandths from a counter, of rank 2, on every projection.
fn counted(spec: &ModelSpec) -> Adapter {
    let numbers = |n: usize, first: usize| -> Vec<f32> {
        (0..n).map(|i| (((first + i) * 7919 % 1009) as f32 - 504.0) / 8192.0).collect()
    };
    let keys = (0..spec.n_layers).flat_map(|block| Adapter::ROLES.map(|role| TensorKey::block(block, role)));
    let factors = keys.enumerate().map(|(i, key)| {
        let shape = key.shape(spec);
        (key, Factors { a: numbers(2 * shape[1], 31 * i), b: numbers(2 * shape[0], 57 * i + 11) })
    });
    Adapter { rank: 2, alpha: 8.0, factors: factors.collect() }
}

/// What peft made of that adapter's folder beside the small model: `tests/reference/peft_golden.py`, by hand.
#[test]
fn an_adapter_has_pefts_logits() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("reference/peft_golden.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let base = tiny_teacher().to_str().unwrap().to_owned();
    let adapter = std::env::var("SLMC_KEEP_ADAPTER").unwrap_or_else(|_| path("adapter"));
    let checkpoint = slmc_stages::open_model(&base).unwrap();
    write_adapter_folder(&counted(checkpoint.weights.spec()), &Default::default(), adapter.as_ref()).unwrap();
    let merged = path("merged");
    run_json(["lora", "merge", "--base", &base, "--adapter", &adapter, "--dtype", "f32", "--out", &merged]);

    let list = |name: &str| golden[name].as_array().unwrap();
    let ids: Vec<u32> = list("ids").iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let vocabulary: Vec<usize> = list("vocabulary").iter().map(|id| id.as_u64().unwrap() as usize).collect();
    let mut engine =
        Engine::load(&slmc_stages::open_model(&merged).unwrap(), EngineOptions::exact(2)).unwrap();
    let (mut apart, mut n) = (0.0_f64, 0);
    let vocab_size = engine.vocab_size();
    let visit = &mut |first: usize, rows: &[f32]| {
        for (row, logits) in (first..).zip(rows.chunks(vocab_size)) {
            for (&id, expected) in vocabulary.iter().zip(golden["logits"][row].as_array().unwrap()) {
                apart = apart.max((f64::from(logits[id]) - expected.as_f64().unwrap()).abs());
                n += 1;
            }
        }
    };
    engine.forward(&ids, 0, visit).unwrap();
    assert_eq!(n, ids.len() * vocabulary.len());
    assert!(golden["moved_at_most"].as_f64().unwrap() > 0.5, "the adapter does nothing");
    // Both compute in f32, of logits up to 13, in other orders: 7e-6 when the golden file was made.
    assert!(apart < 5e-5, "{apart}");
}

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
