//! A rotated model from outside: other weights, the same function, and every kind of model can take it.

mod common;

use std::path::Path;

use common::{check_refused, run_json, tiny_teacher, tiny_text};
use serde_json::Value;

/// Runs a recipe of one rotation.
fn rotate(folder: &Path, settings: &str) -> Value {
    let recipe = folder.join("rotate.toml");
    let text = format!(
        "name = \"rotate\"\nmodel = {:?}\nseed = 3\n[[stage]]\nuse = \"rotate\"\ndtype = \"f32\"\n{settings}\n",
        tiny_teacher()
    );
    std::fs::write(&recipe, text).unwrap();
    let out = folder.join("run");
    run_json(["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()])
}

/// KL divergence from the model that was rotated, with activations in floats.
fn kld(model: &Path) -> f64 {
    let (model, data) = (model.to_str().unwrap(), tiny_text("eval.jsonl"));
    let (teacher, data) = (tiny_teacher(), data.to_str().unwrap());
    let found = run_json([
        "eval",
        "kld",
        model,
        "--baseline",
        teacher.to_str().unwrap(),
        "--data",
        data,
        "--ctx",
        "128",
        "--chunks",
        "20",
        "--exact",
    ]);
    found["kld"].as_f64().unwrap()
}

#[test]
fn rotations_change_the_weights_and_not_the_function() {
    for (settings, has_own_head) in
        [("heads = true", false), ("stream = true\nheads = false", true), ("stream = true", true)]
    {
        let folder = tempfile::tempdir().unwrap();
        rotate(folder.path(), settings);
        let model = folder.path().join("run/01-rotate/model");
        let found = kld(&model);
        // Not a bit of it is the same sum; f32 leaves some 1e-9 of a nat.
        assert!(found.abs() < 1e-6, "{settings}: KL {found}");
        let config: Value =
            serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], !has_own_head, "{settings}");
        let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert!(weights(&model) != weights(&tiny_teacher()), "{settings}");
    }
}

#[test]
fn a_rotated_model_is_rounded_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let rounded = "stream = true\n[[stage]]\nuse = \"quantize\"\nmethod = \"rtn\"\nformat = \"q4_0\"";
    rotate(folder.path(), rounded);
    let found = kld(&folder.path().join("run/02-quantize/model.gguf"));
    assert!(found > 1e-4 && found < 0.2, "KL {found}");
}

#[test]
fn what_there_is_not_to_rotate_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let found = rotate(folder.path(), "");
    assert!(found["stages"].to_string().contains("its head is the embedding"), "{found}");
    let recipe = folder.path().join("none.toml");
    let text = format!(
        "name = \"none\"\nmodel = {:?}\n[[stage]]\nuse = \"rotate\"\nheads = false\n",
        tiny_teacher()
    );
    std::fs::write(&recipe, text).unwrap();
    check_refused(["check", recipe.to_str().unwrap()], "nothing is left to rotate");
}
