//! `slmc report` from outside: a run as a page that needs nothing else.

mod common;

use common::{check_refused, root, run_json};

#[test]
fn a_run_becomes_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let recipe = root().join("recipes/quickstart.toml");
    let run = |out: &str, format: &str| {
        let settings = ["distill.steps=3", "carve.n_sequences=8", "eval.chunks=2", format];
        let mut arguments = vec!["run", recipe.to_str().unwrap(), "--out", out];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        run_json(arguments)
    };
    let (four, eight) = (path("four"), path("eight"));
    let stages = run(&four, "quantize.format=q4_0")["stages"].as_array().unwrap().clone();
    run(&eight, "quantize.format=q8_0");

    let page = |runs: &[&str], more: &[&str]| {
        let out = path("page.html");
        let found = run_json(["report"].iter().chain(runs).chain(&["--out", &out]).chain(more));
        let text = std::fs::read_to_string(&out).unwrap();
        assert_eq!(found["bytes"].as_u64().unwrap(), text.len() as u64);
        for outside in ["http://", "https://", "src=", "@import", "url(", "<script"] {
            assert!(!text.contains(outside), "{outside}");
        }
        text
    };
    let one = page(&[&four], &["--prompt", "The old man", "--max-tokens", "12", "--speed"]);
    for stage in &stages {
        let size = format!("{:.2} MB", stage["file_bytes"].as_f64().unwrap() / 1e6);
        assert!(one.contains(&size), "{size}");
    }
    for part in [
        "Training of 02-distill",
        "KL divergence from the teacher",
        "reads, tokens/s",
        "Weights of down",
        "Activations: what down projections are given",
        "<mark>",
    ] {
        assert!(one.contains(part), "{part}");
    }
    let both = page(&[&four, &eight], &["--pictures", &path("charts")]);
    assert!(both.contains("Size and perplexity of each run"));
    let charts: Vec<_> =
        std::fs::read_dir(path("charts")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(charts.len(), both.matches("<figure>").count());
    assert!(charts.iter().all(|path| std::fs::read_to_string(path).unwrap().starts_with("<svg xmlns=")));
    // A run that was moved is found where it is.
    let moved = path("moved");
    std::fs::rename(&four, &moved).unwrap();
    assert!(
        page(&[&moved], &["--prompt", "The old man", "--max-tokens", "4"]).contains("Training of 02-distill")
    );
    let nothing = path("nothing");
    check_refused(["report", &nothing, "--out", &path("x.html")], "no run folder");
}
