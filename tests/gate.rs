//! The quality gate from outside, on the small model that ships with the project: verdicts, exit codes, files, blame.

mod common;
#[path = "common/damage.rs"]
mod damage;

use std::path::Path;

use common::{check_refused, run, run_json, slmc, stderr, tiny_teacher, tiny_text};
use damage::{Damage, damaged_gguf};
use serde_json::Value;
use slmc_ir::{Role, TensorKey};

const GATE: &str = r#"
[data]
path = "TEXT"
ctx = 128
chunks = 16

[gate]
perplexity = { increase_at_most = 0.01 }
kld        = { at_most = 0.02 }
file_size  = { at_most = "6MB" }
fallbacks  = "forbid"
"#;

/// A folder with a gate file and the teacher in 8 bits.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.write_gate(GATE);
        let model = bench.path("model.gguf");
        run_json(["quantize", &teacher(), "--method", "rtn", "--format", "q8_0", "--out", &model]);
        bench
    }

    fn write_gate(&self, text: &str) {
        let text = text.replace("TEXT", tiny_text("eval.jsonl").to_str().unwrap());
        std::fs::write(self.folder.path().join("gate.toml"), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs the gate; its exit code and its report.
    fn gate(&self, model: &str, more: &[&str]) -> (i32, Value, String) {
        let mut command = slmc();
        command.args(["--json", "gate", "--config", &self.path("gate.toml"), "--baseline", &teacher()]);
        let output = command.args(["--model", model]).args(more).output().unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code().unwrap(), report, stderr(&output))
    }
}

fn teacher() -> String {
    tiny_teacher().to_str().unwrap().to_owned()
}

fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {report}"))
}

#[test]
fn a_good_model_passes_and_a_second_gate_runs_only_the_model() {
    let bench = Bench::new();
    let (code, report, said) = bench.gate(&bench.path("model.gguf"), &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(report["verdict"], "pass");
    assert!(report["blame"].as_array().unwrap().is_empty());
    let cache = std::fs::read_dir(bench.folder.path().join(".slmc-cache")).unwrap();
    let files: Vec<_> = cache.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let made = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
    let (_, again, _) = bench.gate(&bench.path("model.gguf"), &[]);
    assert_eq!(again["checks"], report["checks"]);
    assert_eq!(std::fs::metadata(&files[0]).unwrap().modified().unwrap(), made);

    // A damaged cache is made again, with a word about it.
    let mut bytes = std::fs::read(&files[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&files[0], &bytes).unwrap();
    let (code, after, said) = bench.gate(&bench.path("model.gguf"), &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("damaged"), "{said}");
    assert_eq!(after["checks"], report["checks"]);
}

#[test]
fn bounds_compare_unrounded_figures() {
    let bench = Bench::new();
    let (_, report, _) = bench.gate(&bench.path("model.gguf"), &[]);
    let measured = check(&report, "kld.at_most")["measured"].as_f64().unwrap();
    assert!(measured > 0.0);
    for (bound, code) in [(measured, 0), (measured * (1.0 - 1e-9), 1)] {
        bench.write_gate(&GATE.replace("at_most = 0.02", &format!("at_most = {bound:e}")));
        let (found, report, said) = bench.gate(&bench.path("model.gguf"), &[]);
        assert_eq!(found, code, "bound {bound}: {report} {said}");
    }
    let size = std::fs::metadata(bench.path("model.gguf")).unwrap().len();
    for (bound, code) in [(size, 0), (size - 1, 1)] {
        bench.write_gate(&GATE.replace("\"6MB\"", &bound.to_string()));
        assert_eq!(bench.gate(&bench.path("model.gguf"), &[]).0, code, "{bound} of {size} bytes");
    }
}

#[test]
fn a_damaged_tensor_fails_the_gate_and_comes_first() {
    let bench = Bench::new();
    // Whatever is damaged must be named, so the bound is one that any damage breaks.
    bench.write_gate(&GATE.replace("at_most = 0.02", "at_most = 1e-9"));
    let cases = [
        (TensorKey::block(3, Role::Down), Damage::Scale(1.05)),
        (TensorKey::block(6, Role::Query), Damage::SwapRows(5, 40)),
        (TensorKey::block(1, Role::Up), Damage::Bits(2)),
        (TensorKey::block(0, Role::AttnOutput), Damage::Scale(0.95)),
        (TensorKey::model(Role::FinalNorm), Damage::Scale(1.05)),
    ];
    for (key, damage) in cases {
        let path = bench.path("damaged.gguf");
        damaged_gguf(&tiny_teacher(), &[key], damage, Path::new(&path));
        let (code, report, said) = bench.gate(&path, &[]);
        assert_eq!(code, 1, "{said}");
        let blame = report["blame"].as_array().unwrap();
        assert_eq!(blame[0]["tensor"], key.to_string(), "{damage:?}: {blame:?}");
        assert_eq!(blame[0]["kind"], "damaged");
        assert!(blame[0]["hint"].as_str().unwrap().contains(&key.to_string()));
    }
    // A layer in 2 bits: its tensors come first, all of them.
    let layer: Vec<TensorKey> =
        [Role::Query, Role::Key, Role::Value, Role::AttnOutput, Role::Gate, Role::Up, Role::Down]
            .map(|role| TensorKey::block(4, role))
            .to_vec();
    let path = bench.path("layer.gguf");
    damaged_gguf(&tiny_teacher(), &layer, Damage::Bits(2), Path::new(&path));
    let (_, report, _) = bench.gate(&path, &[]);
    for blame in &report["blame"].as_array().unwrap()[..7] {
        assert_eq!(blame["block"], 4, "{blame}");
    }
}

#[test]
fn damage_is_forbidden_whatever_it_costs() {
    let bench = Bench::new();
    bench.write_gate("[gate]\ndamaged = \"forbid\"\n");
    let path = bench.path("m.gguf");
    // What was rounded is not damaged, in whatever format, and in a mixture of them.
    for format in ["q8_0", "q5_0", "q4_1", "q4_0", "iq4_nl"] {
        run_json(["quantize", &teacher(), "--method", "rtn", "--format", format, "--out", &path]);
        let (code, report, said) = bench.gate(&path, &[]);
        assert_eq!(
            (code, check(&report, "damaged")["status"].as_str()),
            (0, Some("pass")),
            "{format}: {report} {said}"
        );
    }
    let data = tiny_text("train.jsonl");
    for size in ["2.3MB", "2.8MB"] {
        let fixed = ["quantize", &teacher(), "--method", "auto", "--target-size", size, "--out", &path];
        let calibration =
            ["--calibration", data.to_str().unwrap(), "--set", "n_sequences=8", "--set", "seq_len=128"];
        run_json(fixed.iter().chain(&calibration));
        let (code, report, said) = bench.gate(&path, &[]);
        assert_eq!(code, 0, "{size}: {report} {said}");
    }
    // That one has its channels in another order; and so has what is damaged of it. Another has them scaled.
    let (reordered, scaled) = (bench.path("reordered"), bench.path("scaled"));
    std::fs::rename(&path, &reordered).unwrap();
    let fixed = ["quantize", &teacher(), "--method", "awq", "--format", "q4_0", "--out", &path];
    let calibration =
        ["--calibration", data.to_str().unwrap(), "--set", "n_sequences=8", "--set", "seq_len=128"];
    run_json(fixed.iter().chain(&calibration));
    let (code, report, said) = bench.gate(&path, &[]);
    assert_eq!(code, 0, "{report} {said}");
    std::fs::rename(&path, &scaled).unwrap();
    for source in [&tiny_teacher(), Path::new(&reordered), Path::new(&scaled)] {
        for (key, damage) in [
            (TensorKey::block(3, Role::Down), Damage::Scale(1.05)),
            (TensorKey::block(6, Role::Query), Damage::SwapRows(5, 40)),
            (TensorKey::block(1, Role::Up), Damage::Bits(2)),
        ] {
            damaged_gguf(source, &[key], damage, Path::new(&path));
            let (code, report, said) = bench.gate(&path, &[]);
            assert_eq!(code, 1, "{damage:?}: {said}");
            assert_eq!(report["blame"][0]["tensor"], key.to_string(), "{report}");
        }
    }
}

#[test]
fn a_lock_holds_the_comparison_together() {
    let bench = Bench::new();
    let model = bench.path("model.gguf");
    let (code, report, said) = bench.gate(&model, &["--update-lock"]);
    assert_eq!((code, &report["lock_updated"]), (0, &Value::Bool(true)), "{said}");
    let lock: Value = serde_json::from_slice(&std::fs::read(bench.path("gate.lock.json")).unwrap()).unwrap();
    assert_eq!(lock["pinned"]["baseline"].as_str().unwrap().len(), 64);
    assert!(lock["baseline"]["ppl"].as_f64().unwrap() > 1.0);
    assert_eq!(bench.gate(&model, &[]).0, 0);

    bench.write_gate(&GATE.replace("chunks = 16", "chunks = 15"));
    let (code, report, said) = bench.gate(&model, &[]);
    assert_eq!(code, 1, "{said}");
    let message = check(&report, "lock")["message"].as_str().unwrap();
    assert!(message.contains("chunks is 15 and was 16") && message.contains("--update-lock"), "{message}");
    assert_eq!(bench.gate(&model, &["--update-lock"]).0, 0);
    assert_eq!(bench.gate(&model, &[]).0, 0);

    std::fs::write(bench.path("gate.lock.json"), "{}").unwrap();
    assert_eq!(bench.gate(&model, &[]).0, 2);
}

#[test]
fn ci_gets_what_it_reads() {
    let bench = Bench::new();
    bench.write_gate(&GATE.replace("at_most = 0.02", "at_most = 1e-9"));
    let files = ["gate.xml", "gate.sarif", "gate.md"].map(|name| bench.path(name));
    let arguments = ["--junit", &files[0], "--sarif", &files[1], "--markdown", &files[2]];
    let (code, report, _) = bench.gate(&bench.path("model.gguf"), &arguments);
    assert_eq!(code, 1);
    let [xml, sarif, markdown] = files.map(|file| std::fs::read_to_string(file).unwrap());
    assert!(xml.contains("failures=\"1\"") && xml.contains("<failure message=\"KL divergence"), "{xml}");
    assert!(markdown.contains("Quality gate failed") && markdown.contains("`kld.at_most`"), "{markdown}");
    let sarif: Value = serde_json::from_str(&sarif).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results[0]["ruleId"], "gate/kld");
    assert_eq!(results[0]["locations"][0]["physicalLocation"]["region"]["startLine"], 9);
    assert_eq!(results.len(), 1 + report["blame"].as_array().unwrap().len());
}

#[test]
fn slips_end_with_2() {
    let bench = Bench::new();
    let config = bench.path("gate.toml");
    check_refused(["gate", "--config", "no/such/gate.toml"], "no/such/gate.toml");
    check_refused(["gate", "--config", &config], "--model");
    bench.write_gate(&GATE.replace("increase_at_most", "increase_at_mots"));
    check_refused(["gate", "--config", &config], "did you mean `increase_at_most`");
    bench.write_gate(&format!("{GATE}tasks.hellaswog = {{ at_least = 0.2 }}\n"));
    check_refused(
        ["gate", "--config", &config, "--model", &teacher(), "--baseline", &teacher()],
        "hellaswog",
    );
}

#[test]
fn tasks_of_ones_own_are_judged_and_compared() {
    let bench = Bench::new();
    let items: Vec<String> = (0..40)
        .map(|i| {
            let word = ["the", "moon", "sea", "child"][i % 4];
            serde_json::json!({"q": format!("Once upon a time {i} there was"), "choices": [format!("a {word}."), "xq zz.", "of of."], "gold": 0}).to_string()
        })
        .collect();
    std::fs::write(bench.path("own.jsonl"), items.join("\n")).unwrap();
    let task = "name = 'own'\nkind = 'multiple_choice'\ndata = 'own.jsonl'\ndoc_to_text = '{{ q }}'\n\
        doc_to_choice = 'choices'\ndoc_to_target = 'gold'\nmetric = 'acc_norm'\n";
    std::fs::write(bench.path("own.toml"), task).unwrap();
    let (own, first, second) = (bench.path("own.toml"), bench.path("a.json"), bench.path("b.json"));
    let model = bench.path("model.gguf");
    let found = run_json(["eval", "tasks", &teacher(), "--task", &own, "--out", &first]);
    assert_eq!(found["tasks"][0]["n"], 40);
    assert!(found["tasks"][0]["acc_norm"].as_f64().unwrap() > 0.5, "{found}");
    run_json(["eval", "tasks", &model, "--task", &own, "--out", &second]);
    let compared = run_json(["eval", "compare", &first, &second]);
    assert_eq!(compared["tasks"][0]["real"], false);
    let itself = run_json(["eval", "compare", &first, &first]);
    assert_eq!(itself["tasks"][0]["same_choice"], 1.0);
    let text = tiny_text("eval.jsonl");
    let of_models = [
        "eval",
        "compare",
        &teacher(),
        &model,
        "--data",
        text.to_str().unwrap(),
        "--ctx",
        "128",
        "--chunks",
        "8",
    ];
    assert!(run_json(of_models)["text"]["kld"]["estimate"].as_f64().unwrap() < 0.01);

    bench.write_gate(&format!(
        "{GATE}tasks.own = {{ file = \"own.toml\", recovery_at_least = 0.9, limit = 20 }}\n"
    ));
    let (code, report, said) = bench.gate(&model, &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(report["tasks"][0]["n"], 20);
    let (_, again, _) = bench.gate(&model, &[]);
    assert_eq!(again["checks"], report["checks"]);
}

#[test]
fn what_a_model_writes_is_judged_and_how_its_texts_fail() {
    let bench = Bench::new();
    // The third is followed by a comma at once: nothing is written.
    let prompts = ["The ship", "She said that", "In the morning", "Of all the"];
    let written = |prompt: &str, stop: &[&str]| {
        let mut args = vec!["generate", "--prompt", prompt, "--temperature", "0", "--max-tokens", "48"];
        args.extend(stop.iter().flat_map(|stop| ["--stop", stop]));
        let (model, mut all) = (teacher(), vec![]);
        all.push(args[0]);
        all.push(&model);
        all.extend(&args[1..]);
        run_json(all)["text"].as_str().unwrap().to_owned()
    };
    let item = |prompt: &&str| {
        let gold =
            if *prompt == prompts[1] { "nothing that it writes".to_owned() } else { written(prompt, &[","]) };
        serde_json::json!({"q": prompt, "gold": gold}).to_string()
    };
    let items: Vec<String> = prompts.iter().map(item).collect();
    std::fs::write(bench.path("own.jsonl"), items.join("\n")).unwrap();
    let task = "name = 'own'\nkind = 'generation'\ndata = 'own.jsonl'\ndoc_to_text = '{{ q }}'\n\
        doc_to_target = 'gold'\nmax_gen_toks = 48\nuntil = [',']\n";
    std::fs::write(bench.path("own.toml"), task).unwrap();
    let found = run_json(["eval", "tasks", &teacher(), "--task", &bench.path("own.toml")]);
    let figures = &found["tasks"][0];
    for (item, prompt) in figures["items"].as_array().unwrap().iter().zip(prompts) {
        assert_eq!(item["written"]["text"], written(prompt, &[","]));
        assert_eq!(item["written"]["right"], prompt == prompts[0] || prompt == prompts[3], "{item}");
    }
    assert_eq!(figures["acc"], 0.5);
    assert_eq!(figures["writing"]["no_answer"], 0.25);
    assert_eq!(figures["writing"]["unreadable"], 0.25);
    assert_eq!(figures["writing"]["endless"], 0.0);

    // Left alone, greedy text does not end.
    let endless = task.replace("until = [',']\n", "").replace("= 48", "= 400");
    std::fs::write(bench.path("own.toml"), endless).unwrap();
    let gate = |bounds: &str| {
        bench.write_gate(&format!("{GATE}tasks.own = {{ file = \"own.toml\", limit = 2, {bounds} }}\n"));
        bench.gate(&bench.path("model.gguf"), &[])
    };
    let (code, report, said) =
        gate("endless_at_most = 1.0, repetition_at_most = 1.0, unreadable_at_most = 0.0");
    assert_eq!(code, 0, "{said}");
    let shares = ["endless_at_most", "repetition_at_most"]
        .map(|name| check(&report, &format!("tasks.own.{name}"))["measured"].as_f64().unwrap());
    assert!(shares[0] > 0.0, "greedy text of 400 tokens ends: {report}");
    let (code, report, _) = gate("endless_at_most = 0.0");
    assert_eq!((code, &check(&report, "tasks.own.endless_at_most")["status"]), (1, &Value::from("fail")));
    std::fs::write(
        bench.path("own.toml"),
        task.replace("generation", "continuation").replace("max_gen_toks = 48\nuntil = [',']\n", ""),
    )
    .unwrap();
    let (code, _, said) = gate("repetition_at_most = 0.5");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("nothing is written"), "{said}");
}

#[test]
fn the_ci_step_hands_results_on() {
    let bench = Bench::new();
    let script = common::root().join("docs/ci/gate.sh");
    let job = |gate: &str, model: &str| {
        bench.write_gate(gate);
        let (output, summary) = (bench.path("github_output"), bench.path("summary.md"));
        let _ = std::fs::remove_file(&output);
        let status = std::process::Command::new("bash")
            .arg(&script)
            .current_dir(bench.folder.path())
            .env("SLMC", env!("CARGO_BIN_EXE_slmc"))
            .env("ACTION_PATH", common::root())
            .env("CONFIG", "gate.toml")
            .env("MODEL", model)
            .env("BASELINE", teacher())
            .env("GITHUB_OUTPUT", &output)
            .env("GITHUB_STEP_SUMMARY", &summary)
            .status()
            .unwrap();
        (status.code().unwrap(), std::fs::read_to_string(&output).unwrap(), std::fs::read_to_string(summary))
    };
    let (code, outputs, summary) = job(GATE, "model.gguf");
    assert_eq!(code, 0);
    assert!(outputs.contains("verdict=pass\n") && outputs.contains("junit=gate.xml\n"), "{outputs}");
    assert!(summary.unwrap().contains("Quality gate passed"));
    let (code, outputs, summary) = job(&GATE.replace("at_most = 0.02", "at_most = 1e-9"), "model.gguf");
    assert_eq!((code, outputs.contains("verdict=fail\n")), (1, true), "{outputs}");
    assert!(summary.unwrap().contains("Quality gate failed"));
    let report: Value = serde_json::from_slice(&std::fs::read(bench.path("gate.json")).unwrap()).unwrap();
    assert_eq!(report["verdict"], "fail");
    let (code, outputs, _) = job(GATE, "no-such.gguf");
    assert_eq!((code, outputs.contains("verdict=error\n")), (2, true), "{outputs}");
}

#[test]
fn speed_memory_and_other_bounds_are_measured() {
    let bench = Bench::new();
    bench.write_gate(
        "[gate]\ntokens_per_second = { ratio_at_least = 0.01 }\npeak_memory = { at_most = \"2GB\" }\nbits_per_weight = { at_most = 8.6 }\n",
    );
    let (code, report, said) = bench.gate(&bench.path("model.gguf"), &[]);
    assert_eq!(code, 0, "{said}");
    assert!(check(&report, "peak_memory.at_most")["measured"].as_f64().unwrap() > 5e6);
    assert!(check(&report, "tokens_per_second.ratio_at_least")["model"].as_f64().unwrap() > 1.0);
    let text = run([
        "gate",
        "--config",
        &bench.path("gate.toml"),
        "--model",
        &bench.path("model.gguf"),
        "--baseline",
        &teacher(),
    ]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("passed: 3 bounds kept"));
}
