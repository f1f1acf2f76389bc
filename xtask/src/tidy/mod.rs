//! `cargo xtask tidy`: the invariants of docs/ARCHITECTURE.md, each as a check on the tree.
//!
//! A rule is a function of the files and the workspace's manifests; it only adds findings. Its test is a tiny made-up
//! tree that breaks it.

mod code;
mod layers;
mod licences;
mod manifests;
mod rust_source;
mod size;
mod tree;

use anyhow::{Result, bail};

use self::tree::{Tree, Workspace};

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Path in the repository, or a crate's name.
    pub place: String,
    /// Line from 1, or 0 for the whole file.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Finding {
    fn new(place: impl Into<String>, line: usize, message: impl Into<String>) -> Self {
        Self { place: place.into(), line, message: message.into() }
    }
}

struct Rule {
    name: &'static str,
    /// A breach fails the run; otherwise it is only listed.
    binding: bool,
    check: fn(&Tree, &Workspace) -> Vec<Finding>,
}

const RULES: &[Rule] = &[
    Rule { name: "layers", binding: true, check: |_, workspace| layers::layers(workspace) },
    Rule { name: "burn-crates", binding: true, check: |_, workspace| layers::burn_crates(workspace) },
    Rule { name: "burn-pinned", binding: true, check: |_, workspace| layers::burn_pinned(workspace) },
    Rule { name: "workspace-dependencies", binding: true, check: |tree, _| manifests::dependencies(tree) },
    Rule { name: "workspace-lints", binding: true, check: |tree, _| manifests::lints(tree) },
    Rule { name: "unsafe", binding: true, check: |tree, _| code::unsafe_code(tree) },
    Rule { name: "crate-attributes", binding: true, check: |tree, _| code::crate_attributes(tree) },
    Rule { name: "foreign-names", binding: true, check: |tree, _| code::foreign_names(tree) },
    Rule { name: "no-surroundings", binding: true, check: |tree, _| code::no_surroundings(tree) },
    Rule { name: "no-stubs", binding: true, check: |tree, _| code::no_stubs(tree) },
    Rule { name: "ignored-tests", binding: true, check: |tree, _| code::ignored_tests(tree) },
    Rule { name: "licences", binding: true, check: licences::licences },
    Rule { name: "sources", binding: true, check: |_, workspace| licences::sources(workspace) },
    Rule { name: "own-paths", binding: true, check: |tree, _| tree::own_paths(tree) },
    Rule { name: "file-size", binding: true, check: |tree, _| size::files(tree) },
    Rule { name: "function-size", binding: false, check: |tree, _| size::functions(tree) },
    Rule { name: "panics", binding: false, check: |tree, _| code::panics(tree) },
];

/// Checks the repository; breaches of binding rules are an error.
pub fn run() -> Result<()> {
    let (tree, workspace) = (Tree::read()?, Workspace::read()?);
    let mut n_breaches = 0;
    for rule in RULES {
        let mut findings = (rule.check)(&tree, &workspace);
        findings.sort();
        let word = if rule.binding { "error" } else { "warning" };
        for finding in &findings {
            let line = if finding.line > 0 { format!(":{}", finding.line) } else { String::new() };
            eprintln!("{word}[{}] {}{line}: {}", rule.name, finding.place, finding.message);
        }
        n_breaches += if rule.binding { findings.len() } else { 0 };
    }
    if n_breaches > 0 {
        bail!("tidy: {n_breaches} breaches of the rules above (docs/ARCHITECTURE.md says why each is there)");
    }
    println!("tidy: {} rules hold on {} files", RULES.len(), tree.files.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::RULES;

    #[test]
    fn every_rule_is_in_the_architecture() {
        let architecture = include_str!("../../../docs/ARCHITECTURE.md");
        for rule in RULES {
            let name = format!("`{}`", rule.name);
            assert!(architecture.contains(&name), "docs/ARCHITECTURE.md does not say what {name} is for");
        }
    }
}
