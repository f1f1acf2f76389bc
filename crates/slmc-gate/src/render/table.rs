//! The report as lines of text.

use super::word;
use crate::{BlameKind, Report, Verdict};

/// Checks, the tensors to blame, and the verdict last.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        text += &format!("{:<5} {:<34} {}\n", word(check), check.name, check.message);
    }
    if !report.blame.is_empty() {
        text += "\nwhat cost most:\n";
    }
    for blame in &report.blame {
        let saved = match (blame.kld_saved, blame.kld_share) {
            (Some(kld), Some(share)) => format!("KL {kld:+.5} ({:.0} %)", share * 100.0),
            _ => "not measured".to_owned(),
        };
        let kind = match blame.kind {
            BlameKind::Damaged => "damaged",
            BlameKind::Costly => "costly",
        };
        text += &format!("  {:<22} {kind:<8} {saved:<22} {}\n", blame.tensor, blame.why);
        text += &format!("  {:<22} hint: {}\n", "", blame.hint);
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    let failed = report.checks.iter().filter(|check| check.failed()).count();
    text += &match report.verdict {
        Verdict::Pass => format!("passed: {} bounds kept\n", report.checks.len()),
        Verdict::Fail => format!("FAILED: {failed} of {} bounds broken\n", report.checks.len()),
    };
    text
}
