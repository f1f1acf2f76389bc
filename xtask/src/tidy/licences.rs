//! What the crates we build with may be: the lists are deny.toml's, so `cargo deny check` agrees.

use super::{
    Finding,
    tree::{Tree, Workspace},
};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Every dependency's licence is one that deny.toml allows, or its crate is an exception there.
pub fn licences(tree: &Tree, workspace: &Workspace) -> Vec<Finding> {
    let Some(policy) = tree.files.iter().find(|file| file.path == "deny.toml") else {
        return vec![Finding::new(
            "deny.toml",
            0,
            "is missing: it lists the licences that dependencies may have",
        )];
    };
    let allowed = allowed(&policy.text);
    let excepted = |name: &str| policy.text.contains(&format!("crate = \"{name}\""));
    let refused = workspace.packages.iter().filter(|package| {
        package.source.is_some() && !is_allowed(&package.licence, &allowed) && !excepted(&package.name)
    });
    refused
        .map(|p| {
            Finding::new(&p.name, 0, format!("has the licence `{}`: deny.toml does not allow it", p.licence))
        })
        .collect()
}

/// Dependencies come from crates.io: no git revisions, no other registries.
pub fn sources(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &workspace.packages {
        if let Some(source) = package.source.as_deref().filter(|source| *source != CRATES_IO) {
            findings.push(Finding::new(&package.name, 0, format!("comes from {source}, not from crates.io")));
        }
    }
    findings
}

/// The strings of `allow = [ … ]` in `[licenses]`.
fn allowed(policy: &str) -> Vec<&str> {
    let section = policy.split("[licenses]").nth(1).unwrap_or_default();
    let list = section.split("allow = [").nth(1).unwrap_or_default().split(']').next().unwrap_or_default();
    list.split('"').skip(1).step_by(2).collect()
}

/// Whether an SPDX expression (with crates.io's old `A/B` for `A OR B`) can be met with allowed licences.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let holds = any(&words, &mut at, allowed);
    holds && at == words.len()
}

/// `all (OR all)*`
fn any(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut holds = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        holds |= all(words, at, allowed);
    }
    holds
}

/// `one (AND one)*`
fn all(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut holds = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        holds &= one(words, at, allowed);
    }
    holds
}

/// `( any )`, `ID` or `ID WITH EXCEPTION`
fn one(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let holds = any(words, at, allowed);
        *at += 1; // the closing bracket; a missing one leaves `at` past the end
        return holds;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        return allowed.contains(&format!("{word} WITH {exception}").as_str());
    }
    allowed.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tree::Package;

    const POLICY: &str = "[advisories]\n[licenses]\nallow = [\n  \"MIT\", # x\n  \"ISC\",\n]\n\
        [[licenses.exceptions]]\ncrate = \"known\"\n";

    fn workspace(packages: &[(&str, &str, &str)]) -> Workspace {
        let package = |&(name, licence, source): &(&str, &str, &str)| Package {
            name: name.to_owned(),
            licence: licence.to_owned(),
            source: Some(source.to_owned()),
        };
        Workspace { packages: packages.iter().map(package).collect(), ..Workspace::default() }
    }

    #[test]
    fn expressions_are_read() {
        let allowed = allowed(POLICY);
        assert_eq!(allowed, ["MIT", "ISC"]);
        for good in ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "(MIT OR X) AND ISC", "A WITH B OR ISC"] {
            assert!(is_allowed(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR X) AND X", "MIT WITH B", "MIT MIT", "(MIT"] {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn a_licence_that_is_not_allowed_is_found() {
        let tree = Tree::of(&[("deny.toml", POLICY)]);
        let workspace =
            workspace(&[("a", "MIT", CRATES_IO), ("b", "GPL-3.0", CRATES_IO), ("known", "", CRATES_IO)]);
        let findings = licences(&tree, &workspace);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "b");
        assert_eq!(licences(&Tree::of(&[]), &workspace).len(), 1, "no policy is a breach too");
    }

    #[test]
    fn a_crate_from_elsewhere_is_found() {
        let workspace = workspace(&[("a", "MIT", CRATES_IO), ("b", "MIT", "git+https://example.invalid/b")]);
        let findings = sources(&workspace);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "b");
    }
}
