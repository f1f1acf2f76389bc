//! The main job on the small model that ships with the project: every stage, its table, and what a second run keeps.

mod common;

use common::{root, run, run_json, stderr};

#[test]
fn the_quick_start_runs_measures_and_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = root().join("recipes/quickstart.toml");
    let arguments = [
        "run",
        recipe.to_str().unwrap(),
        "--out",
        folder.path().to_str().unwrap(),
        "--set",
        "distill.steps=16",
        "--set",
        "carve.n_sequences=16",
    ];
    let first = run_json(arguments);
    let stages = first["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["input", "carve", "distill", "quantize"]);
    let ppl = |i: usize| stages[i]["evaluation"]["ppl"].as_f64().unwrap();
    assert!(
        ppl(0) < ppl(2) && ppl(2) < ppl(1),
        "teacher {}, carved {}, distilled {}",
        ppl(0),
        ppl(1),
        ppl(2)
    );
    assert!(ppl(3) < ppl(2) * 1.1, "4 bits cost {} -> {}", ppl(2), ppl(3));
    assert!(stages[3]["file_bytes"].as_u64() < stages[0]["file_bytes"].as_u64());

    let second = run_json(arguments);
    for stage in second["stages"].as_array().unwrap() {
        assert_eq!(stage["kept"], true, "{stage}");
    }
    let changed = run(arguments.iter().copied().chain(["--set", "quantize.format=q8_0"]));
    assert_eq!(changed.status.code(), Some(0), "{}", stderr(&changed));
    let table = String::from_utf8(changed.stdout).unwrap();
    assert_eq!(table.matches("kept").count(), 3, "only the changed stage runs again:\n{table}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = root().join("recipes/quickstart.toml");
    let artefact = |threads: &str| {
        let out = folder.path().join(threads);
        let settings = [
            "--set",
            "distill.steps=3",
            "--set",
            "eval.chunks=2",
            "--set",
            "carve.n_sequences=8",
            "--threads",
            threads,
            "--out",
            out.to_str().unwrap(),
        ];
        run_json(["run", recipe.to_str().unwrap()].into_iter().chain(settings));
        std::fs::read(out.join("03-quantize/model.gguf")).unwrap()
    };
    assert!(artefact("1") == artefact("2"), "one thread and two give different students");
}
