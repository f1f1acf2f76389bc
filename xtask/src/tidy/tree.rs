//! What the rules look at: the tracked text files, and the workspace as cargo sees it.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::repo;

/// A text file of the repository.
pub struct File {
    /// Relative to the root, with `/`.
    pub path: String,
    pub text: String,
}

/// All text files that are tracked, or would be.
pub struct Tree {
    pub files: Vec<File>,
}

impl Tree {
    pub fn read() -> Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(repo::root()).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
        let mut files = Vec::new();
        for path in repo::output(&mut git)?.split('\0').filter(|path| !path.is_empty()) {
            let Ok(bytes) = std::fs::read(repo::root().join(path)) else {
                continue; // deleted, not yet committed
            };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File { path: path.to_owned(), text });
            }
        }
        Ok(Self { files })
    }

    /// Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| File { path: path.to_owned(), text: text.to_owned() };
        Self { files: files.iter().map(file).collect() }
    }
}

impl File {
    /// The library crate whose source this is: `slmc-ir` for `crates/slmc-ir/src/key.rs`.
    pub fn library(&self) -> Option<&str> {
        let (name, rest) = self.path.strip_prefix("crates/")?.split_once('/')?;
        (name.starts_with("slmc-") && rest.starts_with("src/") && rest.ends_with(".rs")).then_some(name)
    }
}

/// A crate's dependency, as its manifest writes it.
#[derive(Clone, Debug)]
pub struct Dependency {
    pub name: String,
    /// The version requirement: `=0.22.1`, `^1.0`.
    pub requirement: String,
    pub optional: bool,
}

/// A member of the workspace.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub layer: Option<u64>,
    pub dependencies: Vec<Dependency>,
}

/// A crate that is built with, or may be on some platform.
#[derive(Clone, Debug)]
pub struct Package {
    pub name: String,
    /// SPDX expression; empty when the crate only has a licence file.
    pub licence: String,
    /// Where it is downloaded from; `None` for the members.
    pub source: Option<String>,
}

/// The members and all they depend on, from `cargo metadata`.
#[derive(Default)]
pub struct Workspace {
    pub members: Vec<Member>,
    pub packages: Vec<Package>,
}

impl Workspace {
    pub fn read() -> Result<Self> {
        let mut cargo = repo::cargo();
        cargo.args(["metadata", "--format-version", "1"]);
        let metadata: Value = serde_json::from_str(&repo::output(&mut cargo)?)?;
        let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
        let members = packages.iter().filter(|package| package["source"].is_null());
        Ok(Self { members: members.map(member).collect(), packages: packages.iter().map(package).collect() })
    }
}

fn package(package: &Value) -> Package {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Package {
        name: text(&package["name"]).unwrap_or_default(),
        licence: text(&package["license"]).unwrap_or_default(),
        source: text(&package["source"]),
    }
}

fn member(package: &Value) -> Member {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let dependencies =
        package["dependencies"].as_array().into_iter().flatten().map(|dependency| Dependency {
            name: text(&dependency["name"]),
            requirement: text(&dependency["req"]),
            optional: dependency["optional"].as_bool().unwrap_or(false),
        });
    Member {
        name: text(&package["name"]),
        layer: package["metadata"]["slmc"]["layer"].as_u64(),
        dependencies: dependencies.collect(),
    }
}

/// Nothing committed names a folder of the machine it was written on.
pub fn own_paths(tree: &Tree) -> Vec<Finding> {
    // Written in two pieces so that this file passes its own rule.
    let foreign =
        [concat!("/wo", "rk/"), concat!("/op", "t/"), concat!("/tmp", "/w/"), concat!("/ro", "ot/")];
    let mut findings = Vec::new();
    for file in &tree.files {
        for (index, line) in file.text.lines().enumerate() {
            for path in foreign {
                if line.match_indices(path).any(|(at, _)| starts_a_path(line, at)) {
                    let message =
                        format!("`{path}` is a folder of one machine: use a path in the repository");
                    findings.push(Finding::new(&file.path, index + 1, message));
                }
            }
        }
    }
    findings
}

/// Whether the `/` at `at` begins an absolute path rather than continuing a relative one or an address.
fn starts_a_path(line: &str, at: usize) -> bool {
    let before = line[..at].chars().next_back();
    !before.is_some_and(|c| c.is_alphanumeric() || "._-*/}])".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_one_machine_are_found_and_relative_ones_are_not() {
        let absolute = concat!("data lies in /wo", "rk/shared");
        let relative = concat!("see docs/wo", "rk/plan.md and target/op", "t/x");
        let tree = Tree::of(&[("README.md", absolute), ("docs/a.md", relative)]);
        let findings = own_paths(&tree);
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].place.as_str(), findings[0].line), ("README.md", 1));
    }

    #[test]
    fn only_sources_below_crates_are_a_library_s() {
        let tree = Tree::of(&[
            ("crates/slmc-ir/src/key.rs", ""),
            ("crates/cli/main.rs", ""),
            ("xtask/src/main.rs", ""),
        ]);
        let libraries: Vec<_> = tree.files.iter().map(File::library).collect();
        assert_eq!(libraries, [Some("slmc-ir"), None, None]);
    }
}
