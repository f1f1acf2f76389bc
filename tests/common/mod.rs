//! What the tests of the program share: running it, and the small model that ships with it.
#![allow(dead_code)] // each test file uses a part

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The small model that ships with the project.
pub fn tiny_teacher() -> PathBuf {
    root().join("recipes/tiny-teacher/model")
}

/// A file of the small text that ships with the project.
pub fn tiny_text(name: &str) -> PathBuf {
    root().join("datasets/tiny-text").join(name)
}

/// The program, not yet started.
pub fn slmc() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slmc"));
    command.env_remove("SLMC_DATA").env("NO_COLOR", "1");
    command
}

/// Runs the program and waits.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    slmc().args(arguments).output().expect("slmc starts")
}

/// Runs the program, which must succeed, and reads the JSON document on its stdout.
#[track_caller]
pub fn run_json<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> serde_json::Value {
    let output = slmc().arg("--json").args(arguments).output().expect("slmc starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON document")
}

/// What the program said.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program must refuse its input: exit code 2, a message with `expected` in it, no panic.
#[track_caller]
pub fn check_refused<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>, expected: &str) {
    let output = run(arguments);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(expected), "{said}\nshould say: {expected}");
    assert!(!said.contains("panicked"), "{said}");
}

/// The real models' folder: `SLMC_MODELS`, or `models-cache` in the repository.
pub fn real_models() -> PathBuf {
    let folder = std::env::var_os("SLMC_MODELS").map_or_else(|| root().join("models-cache"), PathBuf::from);
    assert!(folder.is_dir(), "{} is not there: `cargo xtask fetch` gets the real models", folder.display());
    folder
}

/// The texts' folder: `SLMC_DATA`, or `../shared/data` beside the repository.
pub fn data_root() -> PathBuf {
    let beside = || root().join("../shared/data");
    let folder = std::env::var_os("SLMC_DATA").map_or_else(beside, PathBuf::from);
    assert!(folder.is_dir(), "{} is not there: set SLMC_DATA (see datasets/README.md)", folder.display());
    folder
}
