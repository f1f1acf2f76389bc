//! Exports to ONNX, from outside: what the program says without a runtime, and what onnx's checker, onnxruntime and
//! onnxruntime-genai make of the files.

// The figures are the tests' other result.
#![allow(clippy::print_stdout)]

mod common;
#[path = "common/python.rs"]
mod python;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{check_refused, data_root, real_models, root, run_json, slmc, stderr, tiny_teacher};
use python::{reference, reference_text, write_npy};
use serde_json::{Value, json};
use slmc_engine::{Engine, EngineOptions, Session};
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{
    Activation, Biases, Checkpoint, Extras, Family, LanguageModel, Lineage, MemorySource, ModelSpec,
    RopeScaling, SilentHost, TensorKey, Weight,
};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn teacher() -> String {
    text(&tiny_teacher())
}

#[test]
fn an_export_says_whether_it_was_compared() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let found = run_json([
        "export",
        &teacher(),
        "--target",
        "onnxruntime",
        "--precision",
        "int4",
        "--out",
        &text(&out),
    ]);
    for name in
        ["model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert!(found["embedding"].as_str().unwrap().contains("GatherBlockQuantized, q8_0"), "{found}");
    let notes = found["notes"].to_string();
    assert!(notes.contains("f16 to q4_0: rounded to nearest") && notes.contains("f16 to q8_0"), "{notes}");
    // Most machines have no onnxruntime; then that is said, with the remedy.
    if found["agreement"].is_null() {
        assert!(found["onnxruntime"].as_str().unwrap().contains("ORT_DYLIB_PATH"), "{found}");
    }
    let file = folder.path().join("model.onnx");
    let found = run_json(["convert", &teacher(), "--out", &text(&file), "--dtype", "f32", "--plain"]);
    assert!(file.is_file() && folder.path().join("model.onnx.data").is_file());
    assert_eq!(found["embedding"], "Gather, f32");
}

#[test]
fn wrong_exports_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out"));
    let export = ["export", &teacher(), "--target", "onnxruntime", "--out", &out];
    check_refused(export.iter().chain(&["--precision", "int3"]), "int3");
    check_refused(export.iter().chain(&["--dtype", "f16", "--precision", "int4"]), "not both");
    check_refused(["convert", &teacher(), "--out", &out, "--plain"], "--plain");
    let mut command = slmc();
    let output = command.args(export).env("ORT_DYLIB_PATH", "no/such/library.so").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("no/such/library.so"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_plan_is_checked_against_the_runtime() {
    let recipe = text(&root().join("recipes/quickstart.toml"));
    let check = ["check", &recipe, "--target", "onnxruntime"];
    assert_eq!(run_json(check)["target"], "onnxruntime");
    check_refused(check.iter().chain(&["--set", "quantize.format=q5_0"]), "MatMulNBits has no such levels");
}

#[test]
fn without_a_runtime_an_export_is_not_measured_and_the_reason_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out"));
    run_json(["export", &teacher(), "--target", "onnxruntime", "--out", &out]);
    let data = text(&root().join("datasets/tiny-text/eval.jsonl"));
    let mut command = slmc();
    let measured =
        command.args(["eval", "ppl", &out, "--data", &data]).env("ORT_DYLIB_PATH", "no/such/library.so");
    let output = measured.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("no/such/library.so"), "{}", stderr(&output));
}

/// The environment's `libonnxruntime`.
fn runtime() -> PathBuf {
    let lib = real_models().join("venv-onnx/lib");
    let pythons =
        std::fs::read_dir(&lib).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask fetch`", lib.display()));
    let folders = pythons.map(|python| python.unwrap().path().join("site-packages/onnxruntime/capi"));
    let files = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let is_library =
        |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("libonnxruntime.so");
    files.map(|file| file.unwrap().path()).find(is_library).expect("the wheel holds the library")
}

/// Exports a model, compared by the program itself, and returns the folder's graph.
#[track_caller]
fn exported(model: &str, out: &Path, more: &[&str]) -> (String, Value) {
    let mut command = slmc();
    command.env("ORT_DYLIB_PATH", runtime()).args(["--json", "export", model, "--target", "onnxruntime"]);
    let output = command.args(["--out", &text(out)]).args(more).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{more:?}: {}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["agreement"]["kld"].is_f64(), "{found}");
    (text(&out.join("model.onnx")), found)
}

/// Tokens as a file of ids.
fn write_ids(path: &Path, ids: &[u32]) -> String {
    std::fs::write(path, ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")).unwrap();
    text(path)
}

fn number(found: &Value, field: &str) -> f64 {
    found[field].as_f64().unwrap_or_else(|| panic!("{field}: {found}"))
}

const PRECISIONS: [&str; 4] = ["f32", "f16", "int8", "int4"];

#[test]
#[ignore = "needs the real model: cargo xtask fetch (onnxruntime)"]
fn every_precision_is_the_model_that_was_exported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let ids: Vec<u32> = (0..48).map(|i| i * 97 % 4000).collect();
    let ids = write_ids(&path("ids"), &ids);
    reference_text("llama_numpy.py", &["logits", &teacher(), &ids, &text(&path("numpy.npy"))]);
    for precision in PRECISIONS {
        for form in [&["--accuracy-level", "1"][..], &["--plain"][..]] {
            let out = path(&format!("{precision}{}", form[0]));
            let (model, found) = exported(&teacher(), &out, &[&["--precision", precision], form].concat());
            let checked = reference("onnx_check.py", &["check", &model]);
            assert_eq!(checked["opsets"]["ai.onnx"], 21);
            assert_eq!(checked["opsets"]["com.microsoft"].is_null(), form == ["--plain"], "{checked}");
            let logits = text(&path("logits.npy"));
            assert_eq!(reference("onnx_check.py", &["logits", &model, &ids, &logits])["finite"], true);
            if precision.starts_with('f') {
                let apart = reference("compare_logits.py", &[&text(&path("numpy.npy")), &logits]);
                let limit = if precision == "f32" { 1e-3 } else { 0.1 };
                assert!(number(&apart, "max_abs") <= limit, "{precision} {form:?}: {apart}");
            }
            println!("{precision} {form:?}: {}", found["agreement"]);
        }
    }
}

#[test]
#[ignore = "needs the real model: cargo xtask fetch (onnxruntime)"]
fn an_export_is_measured_in_its_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    exported(&teacher(), &out, &["--precision", "f32"]);
    let (out, data) = (text(&out), text(&root().join("datasets/tiny-text/eval.jsonl")));
    let asked = ["--data", &data, "--ctx", "128", "--chunks", "10"];
    let in_runtime = |verb: &[&str]| eval_in_runtime(&[verb, &asked].concat());
    let theirs = number(&in_runtime(&["ppl", &out]), "ppl");
    let ours = number(&run_json(["eval", "ppl", &teacher(), "--exact"].iter().chain(&asked)), "ppl");
    assert!((theirs / ours - 1.0).abs() < 1e-4, "{theirs} in onnxruntime, {ours} in the engine");
    let apart = in_runtime(&["kld", &out, "--baseline", &out]);
    assert!(number(&apart, "kld") < 1e-9 && number(&apart, "same_top") == 1.0, "{apart}");
    println!("perplexity {theirs} in onnxruntime, {ours} in the engine");
    let paired = in_runtime(&["compare", &teacher(), &out]);
    assert!(number(&paired["text"]["kld"], "estimate") < 1e-2, "{paired}");
}

/// `slmc eval` with the environment's runtime.
#[track_caller]
fn eval_in_runtime(args: &[&str]) -> Value {
    let mut command = slmc();
    let output =
        command.args(["--json", "eval"]).args(args).env("ORT_DYLIB_PATH", runtime()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
#[ignore = "needs the real model: cargo xtask fetch (onnxruntime)"]
fn an_export_does_tasks_in_its_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    exported(&teacher(), &path("out"), &["--precision", "f32"]);
    let items: Vec<String> = ["The ship", "She said that", "In the morning", "Of all the"]
        .map(|begin| json!({"q": begin, "choices": [" and the sea.", " of of.", " was a little house."], "gold": 0}))
        .iter()
        .map(Value::to_string)
        .collect();
    std::fs::write(path("items.jsonl"), items.join("\n")).unwrap();
    let choice = "name = 'choice'\nkind = 'multiple_choice'\ndata = 'items.jsonl'\ndoc_to_text = '{{ q }}'\n\
        doc_to_choice = 'choices'\ndoc_to_target = 'gold'\n";
    let writing = "name = 'writing'\nkind = 'generation'\ndata = 'items.jsonl'\ndoc_to_text = '{{ q }}'\n\
        doc_to_target = 'q'\nmax_gen_toks = 24\n";
    std::fs::write(path("choice.toml"), choice).unwrap();
    std::fs::write(path("writing.toml"), writing).unwrap();
    let (choice, writing, out) =
        (text(&path("choice.toml")), text(&path("writing.toml")), text(&path("out")));
    let asked = ["--task", &choice, &writing];
    let theirs = eval_in_runtime(&[&["tasks", &out], &asked[..]].concat());
    let ours = run_json(["eval", "tasks", &teacher(), "--exact"].iter().chain(&asked));
    for (their, our) in both(&theirs["tasks"][0]["items"], &ours["tasks"][0]["items"]) {
        for (a, b) in both(&their["log_likelihoods"], &our["log_likelihoods"]) {
            assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-3, "{a} and {b}");
        }
        assert_eq!(their["greedy"], our["greedy"]);
    }
    for (their, our) in both(&theirs["tasks"][1]["items"], &ours["tasks"][1]["items"]) {
        assert_eq!(their["written"]["text"], our["written"]["text"]);
        assert!(!our["written"]["text"].as_str().unwrap().is_empty());
    }
}

/// Two lists that are equally long.
#[track_caller]
fn both<'a>(a: &'a Value, b: &'a Value) -> impl Iterator<Item = (&'a Value, &'a Value)> {
    let (a, b) = (a.as_array().unwrap(), b.as_array().unwrap());
    assert!(!a.is_empty() && a.len() == b.len(), "{a:?} and {b:?}");
    a.iter().zip(b)
}

/// Small models with every choice that a spec has, in f32 against numpy.
#[test]
#[ignore = "needs the real model: cargo xtask fetch (onnxruntime)"]
fn every_kind_of_spec_is_the_same_function() {
    let base = ModelSpec {
        family: Family::Llama,
        vocab_size: 300,
        context_len: 256,
        d_model: 64,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 16,
        d_ff: 96,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        activation: Activation::Silu,
        biases: Biases::default(),
        qk_norm: false,
        tied_head: true,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context_len: 64,
    };
    let all = Biases { qkv: true, attn_output: true, mlp: true };
    let specs = [
        ("biases, head of its own", ModelSpec { biases: all, tied_head: false, ..base.clone() }),
        ("llama 3 scaling", ModelSpec { rope_scaling: llama3, ..base.clone() }),
        ("linear scaling", ModelSpec { rope_scaling: RopeScaling::Linear { factor: 2.5 }, ..base.clone() }),
        ("wide heads", ModelSpec { family: Family::Mistral, d_head: 32, tied_head: false, ..base.clone() }),
        ("all heads", ModelSpec { n_kv_heads: 4, ..base.clone() }),
        ("one key head", ModelSpec { n_kv_heads: 1, ..base.clone() }),
        (
            "qwen 2",
            ModelSpec {
                family: Family::Qwen2,
                biases: Biases { qkv: true, ..Biases::default() },
                ..base.clone()
            },
        ),
        ("qwen 3", ModelSpec { family: Family::Qwen3, qk_norm: true, d_head: 32, ..base }),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let ids = write_ids(&path("ids"), &(0..200).map(|i| i * 7 % 300).collect::<Vec<u32>>());
    for (i, (what, spec)) in specs.into_iter().enumerate() {
        let model = path(&format!("model {i}"));
        write_hf_folder(&made_up(spec), &model, &WriteOptions::default(), &SilentHost).unwrap();
        let (numpy, logits) = (text(&path("numpy.npy")), text(&path("logits.npy")));
        reference_text("llama_numpy.py", &["logits", &text(&model), &ids, &numpy]);
        for form in [&[][..], &["--plain"][..]] {
            let out = path(&format!("out {i} {}", form.len()));
            let (graph, _) = exported(&text(&model), &out, &[&["--precision", "f32"], form].concat());
            reference("onnx_check.py", &["logits", &graph, &ids, &logits]);
            let apart = reference("compare_logits.py", &[&numpy, &logits]);
            assert!(number(&apart, "max_abs") <= 1e-3, "{what} {form:?}: {apart}");
        }
    }
}

/// A model without a tokenizer, whose weights have the spread of a trained one's.
fn made_up(spec: ModelSpec) -> Checkpoint {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let mut weights = BTreeMap::new();
    for key in TensorKey::all(&spec) {
        let shape = key.shape(&spec);
        let is_gain = shape.len() == 1 && key.part == slmc_ir::Part::Weight;
        let n = shape.iter().product::<usize>();
        let numbers: Vec<f32> =
            (0..n).map(|_| if is_gain { 1.0 + 0.2 * uniform() } else { 0.2 * uniform() }).collect();
        weights.insert(key, Weight::from_f32(shape, &numbers).unwrap());
    }
    Checkpoint {
        weights: Arc::new(MemorySource::new(spec, weights).unwrap()),
        tokenizer: None,
        generation: None,
        extras: Extras::new(),
        lineage: Lineage::default(),
    }
}

fn float_smollm2() -> String {
    text(&real_models().join("smollm2-float"))
}

/// The first tokens of WikiText-2's test part.
fn wikitext_ids(n: usize) -> Vec<u32> {
    let gguf = text(&real_models().join("smollm2-float/model-f32.gguf"));
    let text_file = text(&data_root().join("wikitext-2-raw/wiki.test.raw"));
    let tokens = reference_text("oracle.py", &["tokens", &gguf, &text_file]);
    tokens.split_whitespace().take(n).map(|id| id.parse().unwrap()).collect()
}

fn engine(model: &str, options: EngineOptions) -> Engine {
    Engine::load(&slmc_stages::open_model(model).unwrap(), options).unwrap()
}

/// The engine's logits in windows of 250 tokens.
fn engine_logits(model: &str, options: EngineOptions, ids: &[u32], out: &Path) {
    let (mut engine, mut logits) = (engine(model, options), Vec::new());
    for window in ids.chunks(250) {
        engine.forward(window, 0, &mut |_, row| logits.extend_from_slice(row)).unwrap();
    }
    write_npy(out, ids.len(), engine.vocab_size(), &logits);
}

#[test]
#[ignore = "needs the real model: cargo xtask fetch"]
fn smollm2_in_floats_equals_numpy() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let ids = write_ids(&path("ids"), &wikitext_ids(256));
    let (numpy, logits) = (text(&path("numpy.npy")), text(&path("logits.npy")));
    reference_text("llama_numpy.py", &["logits", &float_smollm2(), &ids, &numpy]);
    for (precision, form, limit) in
        [("f32", &[][..], 1e-3), ("f32", &["--plain"], 1e-3), ("f16", &[], 0.5), ("f16", &["--plain"], 0.5)]
    {
        let out = path(&format!("{precision}{}", form.len()));
        let (model, _) = exported(&float_smollm2(), &out, &[&["--precision", precision], form].concat());
        reference("onnx_check.py", &["check", &model]);
        reference("onnx_check.py", &["logits", &model, &ids, &logits]);
        let apart = reference("compare_logits.py", &[&numpy, &logits]);
        println!("{precision} {form:?}: {apart}");
        assert!(number(&apart, "max_abs") <= limit, "{precision} {form:?}: {apart}");
    }
}

/// The engine and onnxruntime on the same codes: with float activations on both sides, and with int8 on both.
#[test]
#[ignore = "needs the real model: cargo xtask fetch"]
fn smollm2_in_4_bits_has_the_engines_top_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let q4_0 = text(&path("q4_0.gguf"));
    run_json(["quantize", &float_smollm2(), "--method", "rtn", "--format", "q4_0", "--out", &q4_0]);
    let (exact, fast) = (path("exact.npy"), path("fast.npy"));
    for (level, n_positions) in [("1", 2000), ("4", 500)] {
        let ids = wikitext_ids(n_positions);
        let file = write_ids(&path("ids"), &ids);
        engine_logits(&q4_0, EngineOptions::exact(2), &ids, &exact);
        let out = path(&format!("level {level}"));
        let (model, found) = exported(&q4_0, &out, &["--accuracy-level", level]);
        assert_eq!(found["notes"].as_array().unwrap().len(), 0, "all codes pass: {found}");
        let logits = text(&path("logits.npy"));
        reference("onnx_check.py", &["logits", &model, &file, &logits, "--ctx", "250"]);
        let apart = reference("compare_logits.py", &[&text(&exact), &logits]);
        println!("accuracy level {level}: {}", brief(&apart));
        if level == "1" {
            assert_eq!(apart["n_tokens"], n_positions);
            assert!(number(&apart, "same_top") >= 0.995, "{apart}");
            assert!(number(&apart, "max_abs") <= 1e-2, "{apart}");
        } else {
            // What activations in int8 cost in the engine: level 4 rounds them likewise and may not cost much more.
            engine_logits(&q4_0, EngineOptions::alike(2), &ids, &fast);
            let floor = reference("compare_logits.py", &[&text(&exact), &text(&fast)]);
            println!("the engine's int8 activations: {}", brief(&floor));
            assert!(number(&apart, "kld") <= 1.5 * number(&floor, "kld"), "{apart}\n{floor}");
        }
    }
}

/// A comparison without its list.
fn brief(apart: &Value) -> String {
    ["n_tokens", "kld", "same_top", "max_abs"].map(|field| format!("{field} {}", apart[field])).join(", ")
}

#[test]
#[ignore = "needs the real model: cargo xtask fetch"]
fn smollm2_writes_the_engines_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let q4_0 = text(&path("q4_0.gguf"));
    // The head in 4 bits, too: onnxruntime has no fast product of 8 bits with float activations.
    let bits = ["--method", "rtn", "--format", "q4_0", "--embedding-format", "q4_0"];
    run_json(["quantize", &float_smollm2(), "--out", &q4_0].iter().chain(&bits));
    let prompt = wikitext_ids(32);
    let file = write_ids(&path("ids"), &prompt);
    let engine = engine(&q4_0, EngineOptions::exact(2));
    let expected = greedy(&mut engine.session(128).unwrap(), &prompt, 64);
    for form in [&["--accuracy-level", "1"][..], &["--plain"][..]] {
        let out = path(form[0]);
        let (model, _) = exported(&q4_0, &out, form);
        let found = reference("onnx_check.py", &["generate", &model, &file]);
        println!("{form:?}: {} tokens/s", found["tg_tokens_per_s"]);
        if form != ["--plain"] {
            assert_eq!(found["tokens"].as_array().unwrap(), &expected, "{form:?}");
        }
        let genai =
            reference("onnx_check.py", &["genai", &text(&out), &file, "--text", "Hello, world! It's 2024."]);
        println!("genai {form:?}: {} tokens/s", genai["tg_tokens_per_s"]);
        let theirs = genai["tokens"].as_array().unwrap();
        assert_eq!(theirs[..], found["tokens"].as_array().unwrap()[..theirs.len()], "{form:?}");
    }
}

/// The likeliest token again and again, through the cache.
fn greedy(session: &mut Session<'_>, prompt: &[u32], n: usize) -> Vec<Value> {
    let mut next = prompt.to_vec();
    let mut found = Vec::new();
    while found.len() < n {
        let logits = session.append(&next).unwrap();
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        found.push(Value::from(best));
        next = vec![u32::try_from(best).unwrap()];
    }
    found
}

/// The GGUF that came from elsewhere: Q4_1, with minima, and a head tied to a packed embedding.
#[test]
#[ignore = "needs the real model: SmolLM2-135M-Instruct.Q4_1.gguf"]
fn levels_with_minima_pass_too() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = text(&real_models().join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    let (model, found) = exported(&gguf, &folder.path().join("out"), &["--accuracy-level", "1"]);
    assert!(number(&found["agreement"], "max_abs") <= 1e-2, "{found}");
    reference("onnx_check.py", &["check", &model]);
    println!("{found}");
}
