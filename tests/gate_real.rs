//! Tasks and the gate on a real model, SmolLM2-135M, against llama.cpp.

mod common;
#[path = "common/damage.rs"]
mod damage;
#[path = "common/python.rs"]
mod python;

use std::path::Path;

use common::{data_root, real_models, run_json, slmc};
use damage::{Damage, damaged_gguf};
use python::reference;
use serde_json::Value;
use slmc_ir::{Role, TensorKey};

fn f16_gguf() -> String {
    real_models().join("smollm2-float/model-f16.gguf").to_str().unwrap().to_owned()
}

fn root() -> String {
    data_root().to_str().unwrap().to_owned()
}

/// Items on which the two choose otherwise.
fn differing(ours: &Value, theirs: &Value) -> Vec<usize> {
    let best = |item: &Value| {
        let lls: Vec<f64> =
            item["log_likelihoods"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        (0..lls.len()).fold(0, |best, i| if lls[i] > lls[best] { i } else { best })
    };
    let (ours, theirs) = (ours["tasks"][0]["items"].as_array().unwrap(), theirs["items"].as_array().unwrap());
    assert_eq!(ours.len(), theirs.len());
    let differs = |&i: &usize| {
        assert_eq!(ours[i]["label"], theirs[i]["label"], "item {i}");
        best(&ours[i]) != best(&theirs[i])
            || ours[i]["greedy"] != theirs[i]["greedy"] && ours[i]["greedy"].as_array().unwrap().len() == 1
    };
    (0..ours.len()).filter(differs).collect()
}

#[test]
#[ignore = "needs the real model: cargo xtask fetch"]
fn tasks_choose_what_llama_cpp_chooses() {
    for task in ["hellaswag", "piqa", "arc-easy", "lambada"] {
        let ours = run_json([
            "--data-root",
            &root(),
            "eval",
            "tasks",
            &f16_gguf(),
            "--exact",
            "--task",
            task,
            "--limit",
            "12",
        ]);
        let theirs = reference("tasks.py", &[task, &f16_gguf(), &root(), "--limit", "12"]);
        let differing = differing(&ours, &theirs);
        assert!(differing.is_empty(), "{task}: items {differing:?} differ");
    }
}

#[test]
#[ignore = "needs the real model: cargo xtask fetch"]
fn a_gate_measures_what_llama_cpp_measures() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (packed, text) = (path("q8_0.gguf"), data_root().join("wikitext-2-raw/wiki.test.raw"));
    run_json(["quantize", &f16_gguf(), "--method", "rtn", "--format", "q8_0", "--out", &packed]);
    let gate = format!(
        "[data]\npath = {:?}\nchunks = 8\n[gate]\nperplexity = {{ increase_at_most = 0.01 }}\nkld = {{ at_most = 0.05 }}\n",
        text.to_str().unwrap()
    );
    std::fs::write(path("gate.toml"), gate).unwrap();
    let output = slmc()
        .args([
            "--json",
            "gate",
            "--config",
            &path("gate.toml"),
            "--model",
            &packed,
            "--baseline",
            &f16_gguf(),
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", common::stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let theirs =
        reference("oracle.py", &["kld", &f16_gguf(), &packed, text.to_str().unwrap(), "--chunks", "8"]);
    let figure = |value: &Value| value.as_f64().unwrap();
    let (ppl, kld) = (figure(&report["figures"]["ppl"]), figure(&report["figures"]["kld"]["estimate"]));
    assert!((ppl / figure(&theirs["ppl"]) - 1.0).abs() <= 0.003, "{ppl} and llama.cpp's {theirs}");
    assert!((kld - figure(&theirs["kld"])).abs() <= 0.002, "{kld} and llama.cpp's {theirs}");
}

#[test]
#[ignore = "needs the real model: cargo xtask fetch"]
fn a_damaged_tensor_is_found_without_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("gate.toml"), "[gate]\ndamaged = \"forbid\"\n").unwrap();
    let gate = |model: &str| {
        let output = slmc()
            .args([
                "--json",
                "gate",
                "--config",
                &path("gate.toml"),
                "--model",
                model,
                "--baseline",
                &f16_gguf(),
            ])
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report)
    };
    let model = path("model.gguf");
    for format in ["q8_0", "q4_0"] {
        run_json(["quantize", &f16_gguf(), "--method", "rtn", "--format", format, "--out", &model]);
        let (code, report) = gate(&model);
        assert_eq!(code, Some(0), "{format}: {report}");
    }
    for (key, damage) in [
        (TensorKey::block(12, Role::Down), Damage::Scale(1.05)),
        (TensorKey::block(3, Role::Gate), Damage::SwapRows(7, 900)),
        (TensorKey::block(25, Role::Query), Damage::Bits(2)),
    ] {
        damaged_gguf(Path::new(&f16_gguf()), &[key], damage, Path::new(&model));
        let (code, report) = gate(&model);
        assert_eq!(code, Some(1), "{damage:?}: {report}");
        assert_eq!(report["blame"][0]["tensor"], key.to_string(), "{damage:?}: {report}");
    }
}
