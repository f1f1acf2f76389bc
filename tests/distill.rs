//! What comes before and after the training loop, from outside: a carved student fitted to its teacher in closed form, and
//! the scales of a packed model learning from its float teacher.

mod common;

use std::path::Path;

use common::{check_refused, run_json, tiny_teacher, tiny_text};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Distils the small teacher into a student, on rows that a test has time for.
fn distill(student: &Path, out: &Path, more: &[&str]) -> serde_json::Value {
    let (student, teacher, out) = (text(student), text(&tiny_teacher()), text(out));
    let (data, held_out) = (text(&tiny_text("train.jsonl")), text(&tiny_text("eval.jsonl")));
    let mut arguments =
        vec!["distill", "--student", &student, "--teacher", &teacher, "--data", &data, "--out", &out];
    arguments.extend(["--eval-data", &held_out]);
    for setting in ["alpha=1.0", "seq_len=128", "batch_size=4"] {
        arguments.extend(["--set", setting]);
    }
    arguments.extend(more);
    run_json(arguments)
}

/// Cuts a student of this shape out of the small teacher, by what its blocks and channels are worth on a little text.
fn carve(shape: &str, n_sequences: usize, out: &Path) {
    let (teacher, data, out) = (text(&tiny_teacher()), text(&tiny_text("train.jsonl")), text(out));
    let n_sequences = format!("n_sequences={n_sequences}");
    let prune = ["prune", &teacher, "--student", shape, "--calibration", &data, "--out", &out];
    run_json(prune.iter().chain(&["--set", &n_sequences, "--set", "seq_len=128"]));
}

/// KL divergence from the float teacher on the held-out text, with the weights as they decode.
fn kld(model: &Path) -> f64 {
    let (model, teacher, data) = (text(model), text(&tiny_teacher()), text(&tiny_text("eval.jsonl")));
    let fixed = ["eval", "kld", &model, "--baseline", &teacher, "--data", &data];
    let found = run_json(fixed.iter().chain(&["--ctx", "128", "--chunks", "40", "--exact"]));
    found["kld"].as_f64().unwrap()
}

#[test]
fn a_carved_student_is_fitted_to_its_teacher_before_it_trains() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    carve("n_layers=6,d_ff=320", 16, &path("carved"));

    // One step that changes nothing: what is measured is the fit.
    let still = ["--steps", "1", "--set", "learning_rate=1e-12", "--set", "weight_decay=0"];
    let fitted =
        distill(&path("carved"), &path("fitted"), &[&still[..], &["--set", "fit_tokens=8192"]].concat());
    let [before, after] = [kld(&path("carved")), kld(&path("fitted"))];
    assert!(after < 0.35 * before, "KL {before} before the fit, {after} after it");

    let fit = &fitted["prepared"]["fit"];
    let origins: Vec<u64> = fit["origins"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap()).collect();
    assert!(origins.len() == 6 && origins.is_sorted_by(|a, b| a < b) && origins[5] <= 7, "{origins:?}");
    let shares = |error: &serde_json::Value| [0, 1].map(|i| error[i].as_f64().unwrap());
    for [before, after] in fit["errors"].as_array().unwrap().iter().map(shares) {
        assert!(after <= before && after >= 0.0, "{before} {after}");
    }
}

#[test]
fn a_student_that_lacks_nothing_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let fitted = folder.path().join("fitted");
    let still = ["--steps", "1", "--set", "learning_rate=1e-12", "--set", "weight_decay=0"];
    distill(&tiny_teacher(), &fitted, &[&still[..], &["--set", "fit_tokens=4096"]].concat());
    let found = kld(&fitted);
    assert!(found < 1e-6, "KL {found}");
}

#[test]
fn what_there_is_no_time_for_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    carve("d_ff=320", 4, &path("carved"));
    let more = ["--minutes", "0.1", "--set", "sampled_tokens=1000000", "--set", "fit_tokens=400000"];
    let found = distill(&path("carved"), &path("out"), &more);
    let said = found["fallbacks"].to_string();
    assert!(said.contains("had time to write") && said.contains("of 1000000 tokens"), "{said}");
    assert!(said.contains("no time for a fit") || said.contains("time to fit the student to"), "{said}");
}

#[test]
fn a_teacher_in_bytes_teaches_what_it_does_in_floats() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    carve("n_layers=6,d_ff=320", 8, &path("carved"));
    let [float, bytes] = ["f32", "int8"].map(|precision| {
        let setting = format!("teacher_precision={precision}");
        distill(&path("carved"), &path(precision), &["--steps", "12", "--set", &setting]);
        kld(&path(precision))
    });
    let carved = kld(&path("carved"));
    assert!(float < 0.8 * carved, "KL {carved} before, {float} after");
    assert!((bytes - float).abs() < 0.02 * float, "KL {float} learnt from floats, {bytes} from bytes");
    let weights = |name: &str| std::fs::read(path(name).join("model.safetensors")).unwrap();
    assert!(weights("f32") != weights("int8"), "the setting changes something");
}

#[test]
fn only_a_student_of_the_teachers_blocks_is_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = text(&tiny_teacher());
    let config = text(&tiny_teacher().join("config.json"));
    let (data, out) = (text(&tiny_text("train.jsonl")), text(&folder.path().join("out")));
    let fixed = ["distill", "--student", &config, "--teacher", &teacher, "--data", &data, "--out", &out];
    let more = ["--steps", "1", "--set", "seq_len=128", "--set", "fit_tokens=512"];
    check_refused(fixed.iter().chain(&more), "block 0 is none of the teacher's");
}

#[test]
fn the_scales_of_a_packed_model_learn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let teacher = text(&tiny_teacher());
    let learn = ["--steps", "20", "--set", "learn=scales", "--set", "learning_rate=2e-3"];
    for format in ["q4_0", "q4_1", "iq4_nl"] {
        let packed = path(&format!("{format}.gguf"));
        run_json(["quantize", &teacher, "--method", "rtn", "--format", format, "--out", &text(&packed)]);
        let tuned = path(&format!("{format}-tuned.gguf"));
        distill(&packed, &tuned, &learn);
        let [before, after] = [kld(&packed), kld(&tuned)];
        assert!(after < 0.8 * before, "{format}: KL {before} as rounded, {after} after learning");
        let tensors = |model: &Path| {
            let found = run_json(["inspect", &text(model)]);
            let tensors = found["tensors"].as_array().unwrap().clone();
            tensors.iter().map(|t| (t["name"].clone(), t["format"].clone())).collect::<Vec<_>>()
        };
        assert_eq!(tensors(&packed), tensors(&tuned), "{format}");
    }
    // From the same seed the same bytes.
    let again = path("again.gguf");
    distill(&path("q4_0.gguf"), &again, &learn);
    assert!(std::fs::read(again).unwrap() == std::fs::read(path("q4_0-tuned.gguf")).unwrap());
}

#[test]
fn float_models_have_no_scales() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = text(&tiny_teacher());
    let (data, out) = (text(&tiny_text("train.jsonl")), text(&folder.path().join("out.gguf")));
    let fixed = ["distill", "--student", &teacher, "--teacher", &teacher, "--data", &data, "--out", &out];
    check_refused(fixed.iter().chain(&["--steps", "1", "--set", "learn=scales"]), "quantize it first");
}
