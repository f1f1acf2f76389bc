//! The report as SARIF 2.1.0 (OASIS standard), for code scanning: a result for each broken bound, one for each tensor to blame.

use std::path::Path;

use serde_json::{Value, json};

use crate::{BlameKind, Report};

/// Where results are shown.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The gate file, as the user gave it.
    pub gate_file: &'a Path,
    /// Its text: a broken bound is shown at its line.
    pub gate_text: &'a str,
    /// Version of slmc.
    pub version: &'a str,
}

/// The whole log.
pub fn sarif(report: &Report, places: Places<'_>) -> Value {
    let broken = report.checks.iter().filter(|check| check.failed()).map(|check| {
        let line = line_of(places.gate_text, &check.name);
        let location = json!({"physicalLocation": {
            "artifactLocation": {"uri": uri(places.gate_file)},
            "region": {"startLine": line},
        }});
        let message = json!({"text": check.message});
        let rule = rule_of(&check.name);
        json!({"ruleId": rule, "level": "error", "message": message, "locations": [location],
            "properties": {"measured": check.measured, "bound": check.bound, "check": check.name}})
    });
    let blamed = report.blame.iter().map(|blame| {
        let location = json!({
            "physicalLocation": {"artifactLocation": {"uri": uri(Path::new(&report.model))}},
            "logicalLocations": [{"name": blame.tensor, "fullyQualifiedName": blame.tensor.replace(' ', "."), "kind": "module"}],
        });
        let saved = blame.kld_saved.map_or_else(String::new, |kld| format!(" Putting it back saves {kld:.5} nats of KL a token."));
        let message = json!({"text": format!("{}: {}.{saved} {}.", blame.tensor, blame.why, blame.hint)});
        let (rule, level) = match blame.kind {
            BlameKind::Damaged => ("damaged-tensor", "error"),
            BlameKind::Costly => ("costly-tensor", "warning"),
        };
        json!({"ruleId": rule, "level": level, "message": message, "locations": [location],
            "properties": {"kldSaved": blame.kld_saved, "relativeError": blame.relative_error}})
    });
    let results: Vec<Value> = broken.chain(blamed).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "slmc", "version": places.version, "rules": rules(&results)}},
            "results": results,
        }],
    })
}

fn rules(results: &[Value]) -> Vec<Value> {
    let mut ids: Vec<&str> = results.iter().filter_map(|result| result["ruleId"].as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    let rule = |id: &str| {
        let text = match id {
            "damaged-tensor" => {
                "A tensor differs from the baseline's as no rounding makes it differ".to_owned()
            }
            "costly-tensor" => "A tensor whose rounding costs much quality".to_owned(),
            _ => format!("The bound on {} was broken", id.trim_start_matches("gate/")),
        };
        json!({"id": id, "shortDescription": {"text": text}})
    };
    ids.into_iter().map(rule).collect()
}

fn rule_of(check: &str) -> String {
    format!("gate/{}", check.split('.').next().unwrap_or(check))
}

/// The line of a bound in the gate file, from 1; the first where it cannot be found.
fn line_of(text: &str, name: &str) -> usize {
    let parts: Vec<&str> = name.split('.').collect();
    let key = if parts[0] == "tasks" { parts.get(1).copied().unwrap_or("tasks") } else { parts[0] };
    let names_it = |line: &str| {
        let line = line.trim_start();
        !line.starts_with('#') && line.split(['=', ']']).next().is_some_and(|head| head.contains(key))
    };
    text.lines().position(names_it).map_or(1, |index| index + 1)
}

/// A path as a URI reference: relative stays relative, and what a URI may not hold is written as `%XX`.
fn uri(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "/");
    let absolute = text.starts_with('/');
    let mut uri = if absolute { "file://".to_owned() } else { String::new() };
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(byte))
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}
