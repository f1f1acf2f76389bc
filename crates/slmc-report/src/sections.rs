//! What one run was and came to.

use serde_json::Value;

use crate::{
    RunView, Samples,
    html::{escape, table},
    svg::{self, Series},
};

pub(crate) fn number(value: f64) -> String {
    if value.abs() >= 1e5 {
        format!("{value:.0}")
    } else {
        format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

pub(crate) fn megabytes(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), |bytes| format!("{:.2} MB", bytes / 1e6))
}

/// One run: what it did, its stages, its curves.
pub(crate) fn run(run: &RunView) -> String {
    let mut text = format!("<section><h2>{}</h2>", escape(&run.name));
    text += &stages(run);
    text += &charts(run);
    for samples in &run.samples {
        text += &sample_section(samples);
    }
    text += &inputs(run);
    text +=
        &format!("<h3>To make it again</h3><pre tabindex=\"0\"><code>{}</code></pre>", escape(&run.command));
    let plan = serde_json::to_string_pretty(&run.plan).unwrap_or_default();
    text += &format!(
        "<details><summary>The plan, with every setting</summary><pre tabindex=\"0\"><code>{}</code></pre></details>",
        escape(&plan)
    );
    let lineage = serde_json::to_string_pretty(&run.lineage).unwrap_or_default();
    text += &format!(
        "<details><summary>The result's history</summary><pre tabindex=\"0\"><code>{}</code></pre></details>",
        escape(&lineage)
    );
    text + "</section>"
}

fn stages(run: &RunView) -> String {
    let empty = Vec::new();
    let list = run.summary["stages"].as_array().unwrap_or(&empty);
    let mut head = vec!["stage", "parameters", "size", "bits per weight", "perplexity", "change", "time"];
    if !run.speeds.is_empty() {
        head.extend(["reads, tokens/s", "writes, tokens/s"]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<String>>()];
    let first = list.first().and_then(|stage| stage["evaluation"]["ppl"].as_f64());
    let mut notes = String::new();
    for (index, stage) in list.iter().enumerate() {
        let name = escape(stage["name"].as_str().unwrap_or("?"));
        let ppl = stage["evaluation"]["ppl"].as_f64();
        let error = stage["evaluation"]["standard_error"].as_f64();
        let shown =
            ppl.zip(error).map_or_else(|| "–".to_owned(), |(ppl, error)| format!("{ppl:.2} ± {error:.2}"));
        let change = ppl
            .zip(first)
            .map_or_else(String::new, |(ppl, first)| format!("{:+.2} %", 100.0 * (ppl / first - 1.0)));
        let parameters =
            stage["n_parameters"].as_f64().map_or_else(String::new, |n| format!("{:.1} M", n / 1e6));
        let bits = stage["bits_per_weight"].as_f64().map_or_else(String::new, number);
        let seconds = stage["seconds"].as_f64().map_or_else(String::new, |s| format!("{s:.1} s"));
        for fallback in stage["fallbacks"].as_array().unwrap_or(&empty) {
            notes += &format!("<li>{name}: {}</li>", escape(fallback.as_str().unwrap_or_default()));
        }
        let mut row = vec![name, parameters, megabytes(&stage["file_bytes"]), bits, shown, change, seconds];
        if let Some(speeds) = run.speeds.get(index) {
            let shown =
                |place: usize| speeds.map_or("–".to_owned(), |speeds| format!("{:.0}", speeds[place]));
            row.extend([shown(0), shown(1)]);
        }
        rows.push(row);
    }
    let fallbacks = if notes.is_empty() {
        "<p>Everything was done as asked: no fallback.</p>".to_owned()
    } else {
        format!("<p class=\"bad\">Done other than asked:</p><ul>{notes}</ul>")
    };
    table("Size and quality before and after each stage", &rows) + &fallbacks
}

fn charts(run: &RunView) -> String {
    let mut text = String::new();
    for curve in &run.curves {
        let series: Vec<Series<'_>> =
            curve.curves.iter().map(|(name, points)| Series { name, points: points.clone() }).collect();
        text += &svg::lines(&format!("Training of {}", curve.name), "step", "nats a token", &series);
    }
    for result in &run.results {
        text += &errors(result);
    }
    for histogram in &run.histograms {
        let width = 2.0 * histogram.limit / histogram.counts.len().max(1) as f64;
        let from = |i: usize| -histogram.limit + width * i as f64;
        let bars: Vec<(String, f64)> = histogram
            .counts
            .iter()
            .enumerate()
            .map(|(i, &n)| (format!("{:.4} to {:.4}", from(i), from(i + 1)), n as f64))
            .collect();
        let stretch = (-histogram.limit, histogram.limit);
        let many = format!("{}s", histogram.of);
        text += &svg::bars(&histogram.title, (histogram.of.as_str(), stretch), &many, &bars);
    }
    if text.is_empty() {
        text
    } else {
        format!("<h3>Curves, weights and activations</h3><div class=\"charts\">{text}</div>")
    }
}

/// The error of each tensor, where a stage reports it, under whatever of these names it does.
fn errors(result: &Value) -> String {
    let empty = Vec::new();
    let tensors = result["report"]["tensors"].as_array().unwrap_or(&empty);
    let name = result["name"].as_str().unwrap_or("stage");
    let mut text = String::new();
    for (field, title) in [
        ("relative_error", "relative error"),
        ("estimated_kl", "estimated share of the KL divergence"),
        ("output_error", "error of outputs"),
        ("bits_per_weight", "bits per weight"),
    ] {
        let found: Vec<(String, f64)> = tensors
            .iter()
            .filter_map(|t| {
                Some((t["tensor"].as_str().or(t["name"].as_str())?.to_owned(), t[field].as_f64()?))
            })
            // What stays as it is, norms and biases, would dwarf the others.
            .filter(|&(_, value)| field != "bits_per_weight" || value <= 16.0)
            .collect();
        if !found.is_empty() {
            text += &svg::bars(
                &format!("{name}: {title} by tensor, in order of computation"),
                ("tensor", (0.0, found.len() as f64)),
                title,
                &found,
            );
        }
    }
    text
}

fn sample_section(samples: &Samples) -> String {
    let mut text =
        format!("<h3>What the models write after “{}”</h3><div class=\"samples\">", escape(&samples.prompt));
    let reference = samples.written.first().map(|sample| &sample.tokens);
    for (index, sample) in samples.written.iter().enumerate() {
        text += &format!("<div><strong>{}</strong><p>", escape(&sample.name));
        for (place, token) in sample.tokens.iter().enumerate() {
            let same = index == 0 || reference.and_then(|tokens| tokens.get(place)) == Some(token);
            text += &if same { escape(token) } else { format!("<mark>{}</mark>", escape(token)) };
        }
        text += "</p></div>";
    }
    text + "</div><p>Marked: tokens other than the first model's at the same place.</p>"
}

fn inputs(run: &RunView) -> String {
    let empty = Vec::new();
    let mut rows = vec![["stage", "input", "path", "SHA-256"].map(str::to_owned).to_vec()];
    for step in run.lineage["steps"].as_array().unwrap_or(&empty) {
        for input in step["inputs"].as_array().unwrap_or(&empty) {
            let field = |value: &Value| escape(value.as_str().unwrap_or_default());
            let hash = input["sha256"].as_str().unwrap_or_default();
            let short: String = hash.chars().take(12).collect();
            let hash = format!("<code title=\"{}\">{}…</code>", escape(hash), escape(&short));
            rows.push(vec![field(&step["stage"]), field(&input["role"]), field(&input["path"]), hash]);
        }
    }
    if rows.len() > 1 { table("What went in", &rows) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Histogram, Sample, page};

    #[test]
    fn hostile_names_stay_text_and_nothing_is_loaded() {
        let evil = "<script>alert(1)</script>\" onload=\"x";
        let run = RunView {
            name: evil.to_owned(),
            summary: json!({"stages": [{"name": evil, "fallbacks": [evil], "evaluation": {"ppl": 20.0, "standard_error": 1.0}}]}),
            plan: json!({ evil: evil }),
            lineage: json!({"steps": [{"stage": evil, "inputs": [{"role": evil, "path": evil, "sha256": evil}]}]}),
            samples: vec![Samples {
                prompt: evil.to_owned(),
                written: vec![Sample { name: evil.to_owned(), tokens: vec![evil.to_owned()] }],
            }],
            histograms: vec![Histogram {
                title: evil.to_owned(),
                of: evil.to_owned(),
                counts: vec![1, 5, 2],
                limit: 0.5,
            }],
            command: evil.to_owned(),
            ..RunView::default()
        };
        let page = page(&[run], "0.1.0");
        assert!(!page.contains("<script") && !page.contains("\" onload"));
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("<rect class=\"bar s0\""));
    }

    #[test]
    fn other_tokens_are_marked() {
        let sample = |name: &str, tokens: [&str; 2]| Sample {
            name: name.to_owned(),
            tokens: tokens.map(str::to_owned).to_vec(),
        };
        let samples = Samples {
            prompt: "a".into(),
            written: vec![sample("one", [" b", " c"]), sample("two", [" b", " d"])],
        };
        let text = sample_section(&samples);
        assert!(text.contains(" b<mark> d</mark>") && text.matches("<mark>").count() == 1, "{text}");
    }
}
