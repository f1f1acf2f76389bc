//! Several runs beside each other, and which of them no other beats in both size and quality.

use serde_json::Value;

use crate::{
    RunView,
    html::{escape, table},
    sections::{megabytes, number},
    svg,
};

/// The last stage of a run that was measured.
fn last(run: &RunView) -> Option<(f64, f64, f64)> {
    let stage = run.summary["stages"].as_array()?.last()?;
    let bits = stage["bits_per_weight"].as_f64()?;
    Some((stage["file_bytes"].as_f64()?, stage["evaluation"]["ppl"].as_f64()?, bits))
}

/// Indices of the points that no other is below in both coordinates, by the first coordinate.
pub fn pareto(points: &[(f64, f64)]) -> Vec<usize> {
    let beaten = |i: usize| {
        let (x, y) = points[i];
        points.iter().enumerate().any(|(j, &(a, b))| a <= x && b <= y && (a < x || b < y || j < i))
    };
    let mut front: Vec<usize> = (0..points.len()).filter(|&i| !beaten(i)).collect();
    front.sort_by(|&a, &b| points[a].0.total_cmp(&points[b].0));
    front
}

pub(crate) fn section(runs: &[RunView]) -> String {
    let measured: Vec<(&RunView, (f64, f64, f64))> =
        runs.iter().filter_map(|run| Some((run, last(run)?))).collect();
    let points: Vec<(f64, f64)> = measured.iter().map(|(_, (size, ppl, _))| (size / 1e6, *ppl)).collect();
    let front = pareto(&points);
    let named: Vec<(String, f64, f64)> =
        measured.iter().zip(&points).map(|((run, _), &(x, y))| (run.name.clone(), x, y)).collect();
    let mut rows =
        vec![["run", "size", "bits per weight", "perplexity", "on the front"].map(str::to_owned).to_vec()];
    for (index, (run, (size, ppl, bits))) in measured.iter().enumerate() {
        let sign = if front.contains(&index) { "yes" } else { "" };
        rows.push(vec![
            escape(&run.name),
            megabytes(&Value::from(*size)),
            number(*bits),
            number(*ppl),
            sign.to_owned(),
        ]);
    }
    let chart = svg::scatter("Size and perplexity of each run's result", "MB", "perplexity", &named, &front);
    format!(
        "<section><h2>All runs</h2><div class=\"charts\">{chart}</div>{}</section>",
        table("The last stage of each run", &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::pareto;

    #[test]
    fn the_front_is_what_nothing_beats() {
        assert_eq!(pareto(&[(2.0, 2.0), (1.0, 3.0), (3.0, 1.0), (2.5, 2.5), (2.0, 2.0)]), [1, 0, 2]);
        assert!(pareto(&[]).is_empty());
    }
}
