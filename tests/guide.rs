//! The guide's commands, page by page in one folder, as a reader would type them.

mod common;

use std::path::Path;

use common::root;

/// The `sh` blocks of a page.
fn commands(page: &str) -> String {
    let mut script = String::new();
    let mut in_block = false;
    for line in page.lines() {
        match line {
            "```sh" => in_block = true,
            "```" => in_block = false,
            _ if in_block => script += &format!("{line}\n"),
            _ => {}
        }
    }
    script
}

#[test]
#[cfg(unix)]
fn every_command_of_the_guide_runs() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["recipes", "datasets"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).unwrap();
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_slmc")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(paths).unwrap();
    let entries = std::fs::read_dir(root().join("docs/guide")).unwrap();
    let mut pages: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    let mut n_pages = 0;
    for page in pages {
        let script = commands(&std::fs::read_to_string(&page).unwrap());
        if script.is_empty() {
            continue;
        }
        let mut bash = std::process::Command::new("bash");
        bash.current_dir(folder.path()).env("PATH", &path).args(["-euxo", "pipefail", "-c", &script]);
        let output = bash.stdin(std::process::Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}:\n{said}", page.display());
        n_pages += 1;
    }
    assert_eq!(n_pages, 8, "a page without commands, or one that was not found");
    for made in ["model.json", "tuned/model.safetensors", "packed/config.json", "gate.xml", "report.html"] {
        assert!(folder.path().join(made).is_file(), "{made} is missing");
    }
}
