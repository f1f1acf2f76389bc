//! What changes weights and not the function, from outside: rotated and scaled models, and what rounding makes of them.

mod common;

use std::path::{Path, PathBuf};

use common::{check_refused, run_json, tiny_teacher, tiny_text};
use serde_json::Value;

/// Runs a recipe of one rotation, and then a rounding.
fn rotate(folder: &Path, settings: &str) -> Value {
    run_recipe(folder, &format!("[[stage]]\nuse = \"rotate\"\ndtype = \"f32\"\n{settings}\n{ROUNDED}"))
}

const ROUNDED: &str = "[[stage]]\nuse = \"quantize\"\nmethod = \"rtn\"\nformat = \"q4_0\"";

/// Runs a recipe of some stages on the small teacher, in `run` of a folder.
fn run_recipe(folder: &Path, stages: &str) -> Value {
    let recipe = write_recipe(folder, stages);
    let out = folder.join("run");
    run_json(["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()])
}

fn write_recipe(folder: &Path, stages: &str) -> PathBuf {
    let recipe = folder.join("recipe.toml");
    std::fs::write(&recipe, format!("model = {:?}\nseed = 3\n{stages}\n", tiny_teacher())).unwrap();
    recipe
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
    rotate(folder.path(), "stream = true");
    let found = kld(&folder.path().join("run/02-quantize/model.gguf"));
    assert!(found > 1e-4 && found < 0.2, "KL {found}");
}

#[test]
fn what_there_is_not_to_rotate_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let found = rotate(folder.path(), "");
    assert!(found["stages"].to_string().contains("its head is the embedding"), "{found}");
    let check = |stages: &str, expected: &str| {
        check_refused(["check", write_recipe(folder.path(), stages).to_str().unwrap()], expected);
    };
    check(&format!("[[stage]]\nuse = \"rotate\"\nheads = false\n{ROUNDED}"), "nothing is left to rotate");
    check(&format!("{ROUNDED}\n[[stage]]\nuse = \"rotate\""), "add a `quantize` stage");
    let scaled = format!("{}\nformat = \"f16\"\n{ROUNDED}", scale_stage());
    check(&scaled, "where nothing is rounded");
    let scale = format!("{}\nformat = \"q4_0\"", scale_stage());
    check(&format!("{scale}\n[[stage]]\nuse = \"rotate\"\n{ROUNDED}"), "put the rotation first");
}

fn scale_stage() -> String {
    let data = tiny_text("train.jsonl");
    format!(
        "[[stage]]\nuse = \"scale\"\ncalibration = {data:?}\nn_sequences = 16\nseq_len = 128\ndtype = \"f32\""
    )
}

#[test]
fn scales_and_rotations_go_together_with_what_rounds() {
    let (folder, data) = (tempfile::tempdir().unwrap(), tiny_text("train.jsonl"));
    for format in ["q4_0", "w4g64-asym"] {
        let run = folder.path().join("run");
        let _ = std::fs::remove_dir_all(&run);
        let gptq = format!(
            "[[stage]]\nuse = \"quantize\"\nmethod = \"gptq\"\nformat = \"{format}\"\ncalibration = {data:?}\n\
             n_sequences = 16\nseq_len = 128"
        );
        let scale = format!("{}\nformat = \"{format}\"", scale_stage());
        run_recipe(folder.path(), &format!("[[stage]]\nuse = \"rotate\"\ndtype = \"f32\"\n{scale}\n{gptq}"));
        let scaled = run.join("02-scale/model");
        assert!(kld(&scaled).abs() < 1e-6, "{format}: another function");
        let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert!(weights(&scaled) != weights(&run.join("01-rotate/model")), "{format}: nothing is scaled");
        let all = kld(&run.join("03-quantize/model.gguf"));
        run_recipe(folder.path(), &ROUNDED.replace("q4_0", format));
        let rtn = kld(&run.join("01-quantize/model.gguf"));
        assert!(all < 0.25 * rtn, "{format}: KL {all}, {rtn} by rounding alone");
    }
}
