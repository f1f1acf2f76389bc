//! `slmc sweep` from outside: points share what they have in common, and a second call runs nothing again.

mod common;

use common::{check_refused, root, run, run_json, stderr};

#[test]
fn points_share_their_stages_and_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let recipe = root().join("recipes/quickstart.toml");
    let sweep = format!(
        "recipe = {recipe:?}\n[grid]\n\"carve.d_ff\" = [320, 192]\n\"quantize.format\" = [\"q4_0\", \"q8_0\"]\n"
    );
    std::fs::write(path("s.toml"), &sweep).unwrap();
    let (file, out) = (path("s.toml"), path("out"));
    let mut arguments = vec!["sweep", &file, "--out", &out];
    for setting in ["distill.steps=2", "carve.n_sequences=4", "eval.chunks=2"] {
        arguments.extend(["--set", setting]);
    }
    let found = run_json(&arguments);
    let points = found["points"].as_array().unwrap();
    assert_eq!(points.len(), 4);
    // One input, and of each width one carving and one distillation; every quantization.
    let stages = std::fs::read_dir(folder.path().join("out/stages")).unwrap().count();
    assert_eq!(stages, 1 + 2 + 2 + 4);
    let figure = |i: usize, name: &str| points[i]["result"][name].as_f64().unwrap();
    assert!(figure(0, "file_bytes") < figure(1, "file_bytes"), "{found}");
    let smallest =
        (0..4).min_by(|&a, &b| figure(a, "file_bytes").total_cmp(&figure(b, "file_bytes"))).unwrap();
    let best = (0..4).min_by(|&a, &b| figure(a, "ppl").total_cmp(&figure(b, "ppl"))).unwrap();
    for i in [smallest, best] {
        assert_eq!(points[i]["on_front"], true, "{found}");
    }

    let again = run_json(&arguments);
    for (point, before) in again["points"].as_array().unwrap().iter().zip(points) {
        assert_eq!(point["result"]["seconds"].as_f64(), Some(0.0), "{point}");
        assert_eq!(point["result"]["ppl"], before["result"]["ppl"]);
    }
    // A point alone, by `slmc run`, is the same model.
    let alone = path("alone");
    let settings = points[2]["settings"].as_array().unwrap().iter().map(|s| s.as_str().unwrap());
    let mut command = vec!["run", recipe.to_str().unwrap(), "--out", &alone];
    for setting in arguments.iter().skip(5).step_by(2).copied().chain(settings) {
        command.extend(["--set", setting]);
    }
    let alone = run_json(&command);
    let bytes = |artefact: &serde_json::Value| std::fs::read(artefact.as_str().unwrap()).unwrap();
    assert!(bytes(&alone["stages"][3]["artefact"]) == bytes(&points[2]["result"]["artefact"]));

    std::fs::write(path("bad.toml"), sweep.replace("[320, 192]", "[320, 100000]")).unwrap();
    let refused = run(["sweep", &path("bad.toml"), "--out", &path("bad")]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("d_ff=100000"), "{}", stderr(&refused));
    std::fs::write(path("slip.toml"), sweep.replace("[grid]", "[gird]")).unwrap();
    check_refused(["sweep", &path("slip.toml")], "did you mean `grid`");
}
