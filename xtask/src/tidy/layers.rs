//! Which crate may know which: read from `[package.metadata.slmc] layer` and the dependency lists.

use super::{
    Finding,
    tree::{Member, Workspace},
};

/// Library crates that may depend on Burn; everything else builds and tests in seconds.
const BURN_CRATES: [&str; 3] = ["slmc-model", "slmc-train", "slmc-stages"];

/// Every crate has a layer and depends only on crates of lower ones, in its tests too.
pub fn layers(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in shipped(workspace) {
        let Some(layer) = member.layer else {
            let message = "has no `[package.metadata.slmc] layer = N` in its Cargo.toml";
            findings.push(Finding::new(&member.name, 0, message));
            continue;
        };
        for dependency in &member.dependencies {
            let other = workspace.members.iter().find(|other| other.name == dependency.name);
            let Some(other_layer) = other.and_then(|other| other.layer) else { continue };
            if other_layer >= layer {
                let message = format!(
                    "is of layer {layer} and depends on {} of layer {other_layer}: only lower layers are allowed",
                    dependency.name
                );
                findings.push(Finding::new(&member.name, 0, message));
            }
        }
    }
    findings
}

/// Burn is a dependency of the crates that compute gradients and of no other; the program itself only passes features on.
pub fn burn_crates(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in shipped(workspace).filter(|member| !BURN_CRATES.contains(&member.name.as_str())) {
        let allowed = |optional: bool| optional && member.name == "slmc";
        for dependency in member.dependencies.iter().filter(|d| is_burn(&d.name) && !allowed(d.optional)) {
            let message =
                format!("depends on {}: Burn belongs in {} only", dependency.name, BURN_CRATES.join(", "));
            findings.push(Finding::new(&member.name, 0, message));
        }
    }
    findings
}

/// Burn's API changes between patch releases: the requirement is one exact version.
pub fn burn_pinned(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in &workspace.members {
        for dependency in
            member.dependencies.iter().filter(|d| is_burn(&d.name) && !d.requirement.starts_with('='))
        {
            let message =
                format!("asks for {} `{}`: pin it with `=`", dependency.name, dependency.requirement);
            findings.push(Finding::new(&member.name, 0, message));
        }
    }
    findings
}

fn shipped(workspace: &Workspace) -> impl Iterator<Item = &Member> {
    workspace.members.iter().filter(|member| member.name != "xtask")
}

fn is_burn(name: &str) -> bool {
    name == "burn" || name.starts_with("burn-") || name.starts_with("cubecl")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tree::Dependency;

    fn member(name: &str, layer: Option<u64>, dependencies: &[(&str, &str)]) -> Member {
        let dependency = |&(name, requirement): &(&str, &str)| Dependency {
            name: name.to_owned(),
            requirement: requirement.to_owned(),
            optional: false,
        };
        Member { name: name.to_owned(), layer, dependencies: dependencies.iter().map(dependency).collect() }
    }

    #[test]
    fn a_crate_without_a_layer_is_found() {
        let workspace = Workspace { members: vec![member("slmc-ir", None, &[])], ..Workspace::default() };
        assert_eq!(layers(&workspace).len(), 1);
    }

    #[test]
    fn a_dependency_on_the_same_or_a_higher_layer_is_found() {
        let members = vec![
            member("slmc-ir", Some(0), &[("slmc-blocks", "*"), ("serde", "^1")]),
            member("slmc-blocks", Some(1), &[("slmc-ir", "*"), ("slmc-formats", "*")]),
            member("slmc-formats", Some(1), &[("slmc-ir", "*")]),
        ];
        let findings = layers(&Workspace { members, ..Workspace::default() });
        let places: Vec<_> = findings.iter().map(|f| f.place.as_str()).collect();
        assert_eq!(places, ["slmc-ir", "slmc-blocks"]);
        assert!(findings[1].message.contains("slmc-formats"));
    }

    #[test]
    fn burn_outside_its_crates_is_found() {
        let members = vec![
            member("slmc-eval", Some(2), &[("burn-tensor", "=0.22.1")]),
            member("slmc-model", Some(3), &[("burn", "=0.22.1")]),
        ];
        let findings = burn_crates(&Workspace { members, ..Workspace::default() });
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "slmc-eval");
    }

    #[test]
    fn the_program_may_have_burn_behind_a_feature_only() {
        let mut program = member("slmc", Some(6), &[("burn", "=0.22.1")]);
        assert_eq!(
            burn_crates(&Workspace { members: vec![program.clone()], ..Workspace::default() }).len(),
            1
        );
        program.dependencies[0].optional = true;
        assert_eq!(burn_crates(&Workspace { members: vec![program], ..Workspace::default() }), []);
    }

    #[test]
    fn a_floating_burn_is_found() {
        let members = vec![
            member("slmc-model", Some(3), &[("burn", "^0.22.1")]),
            member("slmc-train", Some(4), &[("burn", "=0.22.1")]),
        ];
        let findings = burn_pinned(&Workspace { members, ..Workspace::default() });
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "slmc-model");
    }
}
