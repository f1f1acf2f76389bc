//! The report as Markdown, for the summary of a job (`$GITHUB_STEP_SUMMARY`).

use super::shown;
use crate::{Report, Status, Verdict};

/// A heading, a table of checks, a table of blame.
pub fn markdown(report: &Report) -> String {
    let mut text = match report.verdict {
        Verdict::Pass => "## ✅ Quality gate passed\n\n".to_owned(),
        Verdict::Fail => "## ❌ Quality gate failed\n\n".to_owned(),
    };
    text += &format!("`{}` beside `{}`\n\n", cell(&report.model), cell(&report.baseline));
    text += "| | check | measured | interval | bound | what |\n|---|---|---:|---:|---:|---|\n";
    for check in &report.checks {
        let sign = if check.status == Status::Pass { "✅" } else { "❌" };
        let interval = match (check.low, check.high) {
            (Some(low), Some(high)) => format!("{} … {}", shown(Some(low)), shown(Some(high))),
            _ => String::new(),
        };
        let (measured, bound) = (shown(check.measured), shown(check.bound));
        let message = cell(&check.message);
        text += &format!(
            "| {sign} | `{}` | {measured} | {interval} | {bound} | {message} |\n",
            cell(&check.name)
        );
    }
    if !report.blame.is_empty() {
        text +=
            "\n### What cost most\n\n| tensor | KL saved | share | why | hint |\n|---|---:|---:|---|---|\n";
    }
    for blame in &report.blame {
        let share = blame.kld_share.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0));
        text += &format!(
            "| `{}` | {} | {share} | {} | {} |\n",
            cell(&blame.tensor),
            shown(blame.kld_saved),
            cell(&blame.why),
            cell(&blame.hint)
        );
    }
    if !report.notes.is_empty() {
        text.push('\n');
    }
    for note in &report.notes {
        text += &format!("- {}\n", cell(note));
    }
    text
}

/// Text that cannot end a cell or begin markup.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace(['\n', '\r'], " ")
        .replace('<', "&lt;")
        .replace('`', "'")
}
