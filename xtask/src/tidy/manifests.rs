//! The members' Cargo.toml, line by line.

use super::{
    Finding,
    tree::{File, Tree},
};

/// Versions are said once, in the root manifest: members write `name.workspace = true` or `{ workspace = true, … }`.
pub fn dependencies(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in manifests(tree) {
        let mut in_dependencies = false;
        let mut depth = 0_i32; // inside a value that spans lines
        for (index, line) in file.text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if depth == 0 && line.starts_with('[') {
                let section = line.trim_matches(['[', ']']);
                in_dependencies = !section.starts_with("workspace") && section.ends_with("dependencies");
                continue;
            }
            if depth == 0 && in_dependencies && line.contains('=') && !says_workspace(line) {
                let name = line.split(['=', '.']).next().unwrap_or_default().trim();
                let message =
                    format!("`{name}` has a version of its own: put it in [workspace.dependencies]");
                findings.push(Finding::new(&file.path, index + 1, message));
            }
            depth += line.matches(['[', '{']).count() as i32 - line.matches([']', '}']).count() as i32;
        }
    }
    findings
}

fn says_workspace(line: &str) -> bool {
    let packed: String = line.chars().filter(|c| !c.is_whitespace()).collect();
    packed.contains(".workspace=true") || packed.contains("{workspace=true")
}

/// Every library takes the workspace's lints; without that line they silently don't apply.
pub fn lints(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in manifests(tree).filter(|file| file.path.starts_with("crates/slmc-")) {
        let packed: String = file.text.chars().filter(|c| !c.is_whitespace()).collect();
        let own_safety = packed.contains("[lints.rust]") && packed.contains("unsafe_code");
        if !packed.contains("[lints]workspace=true") && !own_safety {
            findings.push(Finding::new(&file.path, 0, "has no `[lints] workspace = true`"));
        }
    }
    findings
}

fn manifests(tree: &Tree) -> impl Iterator<Item = &File> {
    let is_member =
        |path: &str| path == "Cargo.toml" || path.starts_with("crates/") || path.starts_with("xtask/");
    tree.files.iter().filter(move |file| file.path.ends_with("Cargo.toml") && is_member(&file.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_in_a_member_is_found() {
        let manifest = "\
[package]
version = \"1\"
[dependencies]
serde.workspace = true
burn = { workspace = true, features = [
  \"flex\",
] }
rand = \"0.10\" # floating
[target.'cfg(unix)'.dev-dependencies]
libc = { version = \"0.2\" }
";
        let root = "[workspace.dependencies]\nserde = \"1\"\n[dependencies]\nanyhow.workspace = true\n";
        let tree = Tree::of(&[("crates/slmc-x/Cargo.toml", manifest), ("Cargo.toml", root)]);
        let lines: Vec<_> = dependencies(&tree).into_iter().map(|f| (f.place, f.line)).collect();
        let path = "crates/slmc-x/Cargo.toml".to_owned();
        assert_eq!(lines, [(path.clone(), 8), (path, 10)]);
    }

    #[test]
    fn a_library_without_the_lints_is_found() {
        let tree = Tree::of(&[
            ("crates/slmc-x/Cargo.toml", "[package]\nname = \"slmc-x\"\n"),
            ("crates/slmc-y/Cargo.toml", "[lints]\nworkspace = true\n"),
        ]);
        let findings = lints(&tree);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "crates/slmc-x/Cargo.toml");
    }
}
