//! Damaged and forged models, through the program: a clear error, exit code 2 or 3, no panic. The codecs' own tables
//! are in `crates/slmc-formats/tests`; here is what a user would see.

mod common;

use std::path::{Path, PathBuf};

use common::{check_refused, run, run_json, stderr, tiny_teacher};

fn copy_of_teacher(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(tiny_teacher()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn gguf(folder: &Path) -> Vec<u8> {
    let path = folder.join("whole.gguf");
    run_json(["convert", tiny_teacher().to_str().unwrap(), "--out", path.to_str().unwrap()]);
    std::fs::read(path).unwrap()
}

#[test]
fn damaged_ggufs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = gguf(folder.path());
    let path = folder.path().join("damaged.gguf");
    let check = |bytes: &[u8], expected: &str| {
        std::fs::write(&path, bytes).unwrap();
        check_refused(["inspect", path.to_str().unwrap()], expected);
    };
    // Magic, version, counts, the first key, inside the metadata, inside the data, the last byte.
    for end in [0, 3, 4, 7, 8, 15, 16, 23, 24, 31, 40, 1000, whole.len() / 2, whole.len() - 1] {
        check(&whole[..end], "damaged.gguf");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    check(&with(4, &99_u32.to_le_bytes()), "version");
    check(&with(8, &u64::MAX.to_le_bytes()), "tensors");
    check(&with(16, &u64::MAX.to_le_bytes()), "metadata");
    check(&with(24, &u64::MAX.to_le_bytes()), "damaged.gguf");
    check(b"not a model at all", "GGUF");
}

#[test]
fn damaged_folders_are_refused() {
    let check = |file: &str, content: Option<&[u8]>, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        let model = copy_of_teacher(folder.path());
        match content {
            Some(content) => std::fs::write(model.join(file), content).unwrap(),
            None => std::fs::remove_file(model.join(file)).unwrap(),
        }
        check_refused(["inspect", model.to_str().unwrap()], expected);
    };
    check("config.json", None, "model");
    check("config.json", Some(b""), "config.json");
    check("config.json", Some(b"[]"), "config.json");
    check("config.json", Some(br#"{"model_type": "llama"}"#), "config.json");
    check("config.json", Some(br#"{"model_type": "mamba"}"#), "mamba");
    check("model.safetensors", None, "safetensors");
    check("model.safetensors", Some(b""), "model.safetensors");
    check("model.safetensors", Some(&u64::MAX.to_le_bytes()), "model.safetensors");
    check("model.safetensors", Some(b"\x02\0\0\0\0\0\0\0{}"), "tensor");
    check("tokenizer.json", Some(b"{"), "tokenizer.json");
    check("slmc.json", Some(b"{"), "slmc.json");
    // A character map cut short: the tokenizers library panics on it, which is nothing that a user should see.
    let sound = std::fs::read(tiny_teacher().join("tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&sound).unwrap();
    tokenizer["normalizer"] = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    check("tokenizer.json", Some(tokenizer.to_string().as_bytes()), "tokenizer.json");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of_teacher(folder.path());
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    // Half-precision infinity in the last weights of the file.
    bytes[end - 2000..].chunks_exact_mut(2).for_each(|half| half.copy_from_slice(&0x7c00_u16.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    let out = folder.path().join("out.gguf");
    let output =
        run(["quantize", model.to_str().unwrap(), "--format", "q4_0", "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("inf") && stderr(&output).contains("tensor"), "{}", stderr(&output));
    assert!(!out.exists(), "nothing is left under the final name");
}

#[test]
fn damaged_recipes_and_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let check = |text: &str, expected: &str| {
        std::fs::write(&recipe, text).unwrap();
        check_refused(["run", recipe.to_str().unwrap()], expected);
    };
    check("", "[[stage]]");
    check("model = 3\n[[stage]]\nuse = 'export'\nto = 'x'", "model");
    check("model = 'none'\n[[stage]]\nuse = 'export'\nto = 'x'", "none");
    check("[[stage]]\nuse = 'quantize'\nformat = 'q4_0'", "model");
    check("[[stage]]\nuse = 'export'\nto = '../outside'", "model");
    let teacher = tiny_teacher();
    let with_model = |stage: &str| format!("model = '{}'\n[[stage]]\n{stage}", teacher.display());
    check(&with_model("use = 'export'\nto = '../outside'"), "plain name");
    check(&with_model("use = 'carve'\nn_layers = 99\ncalibration = 'x.txt'"), "99");
    check(&with_model("use = 'train'\ndata = 'x.txt'"), "how long");
    check(&with_model("use = 'train'\ndata = 'x.txt'\nsteps = 1\nseq_len = 100000"), "context");
    check(&with_model("use = 'distill'\ndata = 'x.txt'\nsteps = 1\nalpha = 3"), "alpha");
    let data = folder.path().join("data.jsonl");
    std::fs::write(&data, "{\"text\": \"good\"}\nnot json\n").unwrap();
    check_refused(["data", "inspect", data.to_str().unwrap()], "data.jsonl:2");
}
