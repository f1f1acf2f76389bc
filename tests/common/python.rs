//! The references in Python: `tests/reference`, run by the interpreter that `cargo xtask fetch` set up.

#![allow(dead_code)] // each test file uses a part

use std::{path::Path, process::Command};

/// Runs a reference script, which must succeed, and reads the JSON document that it prints last.
#[track_caller]
pub fn reference(script: &str, arguments: &[&str]) -> serde_json::Value {
    let text = reference_text(script, arguments);
    let last = text.trim().lines().last().expect("the script prints something");
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{script}: {e}: {last}"))
}

/// Runs a reference script, which must succeed; what it printed.
#[track_caller]
pub fn reference_text(script: &str, arguments: &[&str]) -> String {
    let models = crate::common::real_models();
    // onnxruntime and its like are in an environment of their own.
    let environment = if script == "onnx_check.py" { "venv-onnx" } else { "venv" };
    let python = models.join(environment).join("bin/python");
    let script_path = crate::common::root().join("tests/reference").join(script);
    let mut command = Command::new(&python);
    command.arg(script_path).args(arguments);
    if script == "oracle.py" {
        command.arg("--lib").arg(models.join("oracle/package/bins/linux-x64"));
    }
    let output =
        command.output().unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask fetch`", python.display()));
    assert!(output.status.success(), "{script} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the script prints UTF-8")
}

/// Writes f32 rows as a `.npy` file (NumPy's format, version 1.0).
pub fn write_npy(path: &Path, rows: usize, columns: usize, numbers: &[f32]) {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).expect("a short header").to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    std::fs::write(path, bytes).expect("the folder can be written");
}
