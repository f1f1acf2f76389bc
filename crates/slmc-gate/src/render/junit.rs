//! The report as JUnit XML: a test suite whose cases are the checks.

use super::shown;
use crate::Report;

/// One `testsuite`; a broken bound is a `failure`, the tensors to blame are in `system-out`.
pub fn junit(report: &Report, seconds: f64) -> String {
    let failed = report.checks.iter().filter(|check| check.failed()).count();
    let counts = format!(
        "tests=\"{}\" failures=\"{failed}\" errors=\"0\" skipped=\"0\" time=\"{seconds:.3}\"",
        report.checks.len()
    );
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    xml += &format!(
        "<testsuites name=\"slmc gate\" tests=\"{}\" failures=\"{failed}\" errors=\"0\" time=\"{seconds:.3}\">\n",
        report.checks.len()
    );
    xml += &format!("  <testsuite name=\"slmc gate\" {counts}>\n");
    xml += &format!(
        "    <properties>\n      <property name=\"model\" value=\"{}\"/>\n      <property name=\"baseline\" value=\"{}\"/>\n    </properties>\n",
        escape(&report.model),
        escape(&report.baseline)
    );
    for check in &report.checks {
        let head =
            format!("    <testcase classname=\"slmc.gate\" name=\"{}\" time=\"0\"", escape(&check.name));
        if check.failed() {
            xml += &format!(
                "{head}>\n      <failure message=\"{}\" type=\"bound\">measured {}, bound {}</failure>\n    </testcase>\n",
                escape(&check.message),
                shown(check.measured),
                shown(check.bound)
            );
        } else {
            xml += &format!("{head}/>\n");
        }
    }
    if !report.blame.is_empty() {
        let line = |b: &crate::Blame| {
            format!("{}: KL saved {}; {}; {}\n", b.tensor, shown(b.kld_saved), b.why, b.hint)
        };
        let lines: String = report.blame.iter().map(line).collect();
        xml += &format!("    <system-out>{}</system-out>\n", escape(&lines));
    }
    xml + "  </testsuite>\n</testsuites>\n"
}

/// Text as XML 1.0 may hold it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c < ' ' || matches!(c, '\u{FFFE}' | '\u{FFFF}') => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}
