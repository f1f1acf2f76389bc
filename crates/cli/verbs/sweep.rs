//! One recipe at many settings.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use serde_json::json;
use slmc_formats::AtomicFile;
use slmc_ir::Host;
use slmc_recipe::{Point, RunFolder, RunSummary, Sweep};
use slmc_report::pareto;

use super::{Session, hashing::Hashing, recipe};
use crate::{
    args::SweepArgs,
    failure::{Failure, OrFail},
    output::{self, megabytes, table},
    terminal::minutes,
};

/// What became of a point.
#[derive(Serialize)]
struct Tried {
    #[serde(flatten)]
    point: Point,
    /// The point's folder, which `slmc report` takes.
    folder: PathBuf,
    /// What the last stage left, where every stage came to its end.
    result: Option<Figures>,
    /// Why there is no result.
    error: Option<String>,
    /// Whether no other point is both smaller and better.
    on_front: bool,
}

#[derive(Clone, Serialize)]
struct Figures {
    artefact: PathBuf,
    file_bytes: u64,
    bits_per_weight: f64,
    ppl: Option<f64>,
    standard_error: Option<f64>,
    seconds: f64,
}

/// Runs the points, each once; stages that points have in common run once.
pub fn sweep(args: &SweepArgs, session: &Session<'_>) -> Result<(), Failure> {
    let sweep = Sweep::read(&args.sweep).or_input()?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from("sweeps").join(&sweep.name));
    let points = sweep.points(session.global.seed.unwrap_or(0));
    // Every plan is proved before the first weight is read.
    for point in &points {
        let plan = recipe::plan(recipe::read(&sweep.recipe, &settings(args, point), session)?, session);
        let place = format!("point {}", point.name);
        let plan = plan.map_err(|failure| failure.within(&place))?;
        if point.name == points[0].name {
            recipe::keep_apart(&plan, session)?;
        }
    }
    let limit = sweep.budget.minutes.map(|minutes| Duration::from_secs_f64((minutes * 60.0).min(1e9)));
    let mut tried = Vec::new();
    for (index, point) in points.iter().enumerate() {
        if limit.is_some_and(|limit| session.terminal.elapsed() > limit) {
            let message = format!(
                "the time is over after {index} of {} points; the same command goes on with the others",
                points.len()
            );
            session.terminal.warn(&message);
            break;
        }
        session.terminal.say(&format!(
            "point {} of {}: {}",
            index + 1,
            points.len(),
            point.settings.join(" ")
        ));
        tried.push(try_point(args, &sweep.recipe, point, &folder, session)?);
        mark_front(&mut tried);
        write(&folder.join("sweep.json"), &document(args, &sweep.recipe, &tried))?;
    }
    let document = document(args, &sweep.recipe, &tried);
    output::print(session.global.json, &document, &text(&tried, &folder))?;
    match tried.iter().filter(|tried| tried.error.is_some()).count() {
        0 => Ok(()),
        n => Err(Failure::Run(anyhow::anyhow!("{n} of {} points failed: see the table", tried.len()))),
    }
}

fn settings(args: &SweepArgs, point: &Point) -> Vec<String> {
    args.set.iter().chain(&point.settings).cloned().collect()
}

/// Runs one point. That its run fails is a result; that it is interrupted ends the sweep.
fn try_point(
    args: &SweepArgs,
    path: &Path,
    point: &Point,
    folder: &Path,
    session: &Session<'_>,
) -> Result<Tried, Failure> {
    let recipe = recipe::read(path, &settings(args, point), session)?;
    let hashing = Hashing::start(recipe.model.clone());
    let plan = recipe::plan(recipe, session)?;
    let run_folder = RunFolder::open_point(folder, &point.name).or_run()?;
    let again = "the same command";
    let (result, error) = match recipe::carry_out(&plan, &hashing, &run_folder, session, again) {
        Ok(summary) => (figures(&summary), None),
        Err(interrupted @ Failure::Interrupted(_)) => return Err(interrupted),
        Err(failure) => {
            let message = failure.to_string();
            session.terminal.warn(&format!("point {}: {message}", point.name));
            (None, Some(message))
        }
    };
    let folder = run_folder.root().to_owned();
    Ok(Tried { point: point.clone(), folder, result, error, on_front: false })
}

fn figures(summary: &RunSummary) -> Option<Figures> {
    let last = summary.stages.last()?;
    Some(Figures {
        artefact: last.artefact.clone(),
        file_bytes: last.file_bytes,
        bits_per_weight: last.bits_per_weight,
        ppl: last.evaluation.as_ref().map(|evaluation| evaluation.ppl),
        standard_error: last.evaluation.as_ref().map(|evaluation| evaluation.standard_error),
        seconds: summary.stages.iter().filter(|stage| !stage.kept).map(|stage| stage.seconds).sum(),
    })
}

fn mark_front(tried: &mut [Tried]) {
    let figure = |tried: &Tried| {
        let result = tried.result.as_ref()?;
        Some((result.file_bytes as f64, result.ppl?))
    };
    let (places, points): (Vec<usize>, Vec<(f64, f64)>) =
        tried.iter().enumerate().filter_map(|(place, tried)| Some((place, figure(tried)?))).unzip();
    let front: Vec<usize> = pareto(&points).into_iter().map(|i| places[i]).collect();
    tried.iter_mut().enumerate().for_each(|(place, tried)| tried.on_front = front.contains(&place));
}

fn document(args: &SweepArgs, recipe: &Path, tried: &[Tried]) -> serde_json::Value {
    json!({"recipe": recipe, "set": args.set, "points": tried})
}

fn write(path: &Path, document: &serde_json::Value) -> Result<(), Failure> {
    let mut file = AtomicFile::create(path).or_run()?;
    file.put(&serde_json::to_vec_pretty(document).or_run()?).or_run()?;
    file.commit().or_run()
}

fn text(tried: &[Tried], folder: &Path) -> String {
    let head = ["point", "size", "bits/weight", "perplexity", "on the front", "time"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for Tried { point, result, on_front, .. } in tried {
        let mut row = vec![point.name.clone()];
        row.extend(match result {
            None => ["failed", "", "", "", ""].map(str::to_owned),
            Some(result) => [
                megabytes(result.file_bytes),
                format!("{:.2}", result.bits_per_weight),
                result.ppl.map_or("–".to_owned(), |ppl| format!("{ppl:.2}")),
                if *on_front { "yes".to_owned() } else { String::new() },
                if result.seconds > 0.0 { minutes(result.seconds) } else { "kept".to_owned() },
            ],
        });
        rows.push(row);
    }
    format!(
        "{}\n\nsweep   {}\npage    slmc report {}/points/* --out report.html\n",
        table(&rows),
        folder.display(),
        folder.display()
    )
}
