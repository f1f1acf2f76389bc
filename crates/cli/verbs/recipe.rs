//! Recipes: `slmc run` and `slmc check`. The single verbs go through here too.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;
use slmc_ir::Host as _;
use slmc_recipe::{
    Environment, Plan, Recipe, RunError, RunFolder, RunSummary, StageConfig, StageError, summarized,
};
use slmc_stages::{Target, build, check_apart, estimate, evaluate, open_model, outline_of};

use super::{Session, eval::stage_failure, hashing::Hashing};
use crate::{
    args::{CheckArgs, RunArgs},
    failure::{Failure, OrFail, input_error},
    output::{self, count, megabytes, table},
    terminal::minutes,
};

/// Runs a recipe.
pub fn run(args: &RunArgs, session: &Session<'_>) -> Result<(), Failure> {
    let recipe = read(&args.recipe, &args.set, session)?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name));
    if args.fresh && folder.join("plan.json").is_file() {
        std::fs::remove_dir_all(&folder).or_run()?;
    }
    let again = format!(
        "slmc run {}{}",
        args.recipe.display(),
        args.out.as_ref().map_or(String::new(), |o| format!(" --out {}", o.display()))
    );
    let hashing = Hashing::start(recipe.model.clone());
    let plan = plan(recipe, session)?;
    keep_apart(&plan, session)?;
    let summary = carry_out(&plan, &hashing, &RunFolder::open(&folder).or_run()?, session, &again)?;
    let document = serde_json::to_value(&summary).or_run()?;
    output::print(session.global.json, &document, &summary_text(&summary, &folder))
}

/// Proves a recipe's plan.
pub fn check(args: &CheckArgs, session: &Session<'_>) -> Result<(), Failure> {
    let recipe = read(&args.recipe, &args.set, session)?;
    let plan = plan(recipe, session)?;
    let objections = match &args.target {
        None => Vec::new(),
        Some(name) => {
            let target: Target = name.parse().map_err(|e: String| input_error(e))?;
            plan.stages.last().map_or(Vec::new(), |stage| target.objections_to(stage))
        }
    };
    if let Some(target) = args.target.as_ref().filter(|_| !objections.is_empty()) {
        let objections = objections.join("\n  ");
        return Err(input_error(format!("{target} cannot load what this recipe makes:\n  {objections}")));
    }
    let estimates = estimate(&plan);
    let mut rows = vec![["stage", "parameters", "memory", "disk", "time"].map(str::to_owned).to_vec()];
    for (planned, estimate) in plan.stages.iter().zip(&estimates) {
        rows.push(vec![
            estimate.stage.clone(),
            count(planned.outline.spec.n_parameters()),
            megabytes(estimate.memory_bytes),
            megabytes(estimate.disk_bytes),
            minutes(estimate.seconds),
        ]);
    }
    let document = json!({"recipe": plan.recipe, "target": args.target, "estimates": estimates});
    let text =
        format!("{}\n\nThe plan holds. Figures are upper bounds; times assume two cores.", table(&rows));
    output::print(session.global.json, &document, &text)
}

/// That the recipe does not measure on what it calibrates on.
pub fn keep_apart(plan: &Plan, session: &Session<'_>) -> Result<(), Failure> {
    let warnings = check_apart(plan, &session.surroundings).map_err(stage_failure)?;
    warnings.iter().for_each(|warning| session.terminal.warn(warning));
    Ok(())
}

/// Reads a recipe; the session's seed goes before its own.
pub fn read(path: &Path, overrides: &[String], session: &Session<'_>) -> Result<Recipe, Failure> {
    let mut recipe = Recipe::read(path, overrides).or_input()?;
    if let Some(seed) = session.global.seed {
        recipe.seed = seed;
    }
    Ok(recipe)
}

/// Proves a recipe: no weight is read.
pub fn plan(recipe: Recipe, session: &Session<'_>) -> Result<Plan, Failure> {
    let input = recipe.model.as_deref().map(open_model).transpose().map_err(input_error)?;
    let outline = input.as_ref().map(outline_of).transpose().map_err(input_error)?;
    let surroundings = Arc::clone(&session.surroundings);
    let mut plan = Plan::new(recipe, outline, |entry| build(entry, &surroundings)).or_input()?;
    plan.model = input;
    if let Some(limit) = session.global.max_mem {
        for estimate in estimate(&plan) {
            if estimate.memory_bytes > limit {
                let (needs, stage) = (megabytes(estimate.memory_bytes), &estimate.stage);
                let limit = megabytes(limit);
                let kind = plan.stages.iter().find(|planned| planned.entry.name == *stage);
                let hint = match kind.map(|planned| &planned.entry.config) {
                    Some(StageConfig::Train(_) | StageConfig::Distill(_) | StageConfig::Lora(_)) => {
                        "a smaller batch_size or seq_len, or recompute = true, needs less"
                    }
                    _ => "the model's largest matrices need it: allow more",
                };
                return Err(input_error(format!(
                    "stage `{stage}` may need {needs}, more than --max-mem {limit}: {hint}"
                )));
            }
            let (needs, stage) = (megabytes(estimate.memory_bytes), &estimate.stage);
            session
                .terminal
                .say(&format!("memory: stage `{stage}` needs {needs} at most, of {}", megabytes(limit)));
        }
    }
    Ok(plan)
}

/// Runs a plan in a folder; `again` is the command that goes on after an interruption.
pub fn carry_out(
    plan: &Plan,
    hashing: &Hashing,
    folder: &RunFolder,
    session: &Session<'_>,
    again: &str,
) -> Result<RunSummary, Failure> {
    let Session { terminal, surroundings, .. } = session;
    terminal.say(&format!(
        "{}: {} stages, in {}",
        plan.recipe.name,
        plan.stages.len(),
        folder.root().display()
    ));
    let open = |path: &Path| open_model(&path.to_string_lossy());
    let measure = |checkpoint: &slmc_ir::Checkpoint| match &plan.recipe.eval {
        Some(config) => evaluate(checkpoint, config, surroundings, *terminal),
        None => Err(StageError::Input("the recipe has no [eval]".to_owned())),
    };
    let environment = Environment {
        open: &open,
        evaluate: &measure,
        fingerprint: &|path: &str| hashing.of(path),
        host: *terminal,
        version: env!("CARGO_PKG_VERSION"),
    };
    slmc_recipe::run(plan, folder, &environment).map_err(|error| failure_of(error, again))
}

fn failure_of(error: RunError, again: &str) -> Failure {
    match error {
        RunError::Stage { name, error: StageError::Interrupted(what) } => {
            Failure::Interrupted(format!("stage `{name}`, {what}. To go on: {again}"))
        }
        RunError::Stage { error: StageError::Input(_), .. } | RunError::Open { .. } => {
            Failure::Input(error.into())
        }
        RunError::Stage { .. } | RunError::Folder { .. } => Failure::Run(error.into()),
    }
}

/// The table at the end of a run.
pub fn summary_text(summary: &RunSummary, folder: &Path) -> String {
    let head = ["stage", "parameters", "size", "bits/weight", "perplexity", "time"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for stage in &summary.stages {
        let perplexity = stage
            .evaluation
            .as_ref()
            .map_or("–".to_owned(), |e| format!("{:.2} ± {:.2}", e.ppl, e.standard_error));
        let time = if stage.kept { "kept".to_owned() } else { minutes(stage.seconds) };
        rows.push(vec![
            stage.name.clone(),
            count(stage.n_parameters),
            megabytes(stage.file_bytes),
            format!("{:.2}", stage.bits_per_weight),
            perplexity,
            time,
        ]);
    }
    let mut text = format!("{}\n", table(&rows));
    for stage in &summary.stages {
        for fallback in summarized(&stage.fallbacks) {
            text.push_str(&format!("{}: {fallback}\n", stage.name));
        }
    }
    if let Some(last) = summary.stages.last() {
        text.push_str(&format!("\nresult  {}\nrun     {}\n", last.artefact.display(), folder.display()));
    }
    text
}
