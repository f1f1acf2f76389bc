//! Tasks, and what differs between two models.

use std::path::Path;

use serde_json::{Value, json};
use slmc_eval::{
    EvalError, Journal,
    stats::Resampling,
    tasks::{
        Asked, Item, TaskComparison, TaskFile, TaskKind, TaskResult, compare as compare_tasks, run_task,
    },
};
use slmc_gate::{SessionModel, locate_task};
use slmc_ir::LanguageModel;
use slmc_onnxruntime::Runtime;
use slmc_stages::{Exactness, KEPT, OnText, Subject, paired_on_text};

use super::{
    Session, engine,
    eval::{stage_failure, subject},
    gate,
    keeping::keeping,
};
use crate::{
    args::{CompareArgs, TasksArgs},
    failure::{Failure, OrFail, input_error},
    output,
};

/// Longest sequence of an item that room is made for, in tokens.
const CONTEXT: usize = 2048;

/// Runs tasks.
pub fn tasks(args: &TasksArgs, session: &Session<'_>) -> Result<(), Failure> {
    let results = run(&args.model, &args.tasks, args.limit, args.exact, &mut None, session)?;
    let document = json!({"model": args.model, "slmc_version": env!("CARGO_PKG_VERSION"), "tasks": results});
    if let Some(path) = &args.out {
        std::fs::write(path, format!("{document}\n")).or_run()?;
    }
    let mut rows = vec![["task", "items", "acc", "± ", "acc_norm", "ppl"].map(str::to_owned).to_vec()];
    let percent = |x: f64| format!("{:.2} %", 100.0 * x);
    for result in &results {
        let figures = &result.figures;
        rows.push(vec![
            result.task.clone(),
            result.n.to_string(),
            percent(figures.acc),
            percent(figures.acc_stderr),
            figures.acc_norm.map_or_else(|| "–".to_owned(), percent),
            figures.ppl.map_or_else(|| "–".to_owned(), |ppl| format!("{ppl:.3}")),
        ]);
    }
    let mut text = output::table(&rows);
    for result in &results {
        if let Some(writing) = &result.figures.writing {
            text += &format!(
                "\n{}: {} go round in circles, {} cannot be read, {} do not end, {} have no answer; {:.0} tokens each",
                result.task,
                percent(writing.repetition),
                percent(writing.unreadable),
                percent(writing.endless),
                percent(writing.no_answer),
                writing.mean_tokens
            );
        }
    }
    output::print(session.global.json, &document, &text)
}

fn run(
    model_path: &str,
    names: &[String],
    limit: Option<usize>,
    exact: bool,
    runtime: &mut Option<Runtime>,
    session: &Session<'_>,
) -> Result<Vec<TaskResult>, Failure> {
    let data_root = session.surroundings.data_root.as_deref();
    let mut located = Vec::new();
    for name in names {
        let task = locate_task(name, data_root).map_err(gate::failure)?;
        let items = task.read(limit).map_err(gate::failure)?;
        located.push((task.task, items));
    }
    let subject = subject(model_path, runtime)?;
    let tokenizer = subject.tokenizer().map_err(stage_failure)?;
    let ends = subject.ends();
    let keeping = keeping(&[model_path]);
    let journal = |task: &TaskFile, items: &[Item]| match &keeping {
        Some(keeping) => {
            let asked = format!("{exact} {} {items:?}", serde_json::to_string(task).unwrap_or_default());
            keeping.journal(&["task", &asked], session.terminal)
        }
        None => Journal::none(),
    };
    let ask = |model: &mut dyn LanguageModel| {
        ask(&located, Asked { model, tokenizer: &tokenizer, ends: &ends }, &journal, session)
    };
    match &subject {
        // In a session, which keeps what choices share.
        Subject::Checkpoint(checkpoint) => {
            let engine = engine::load(checkpoint, exactness(exact), session)?;
            let capacity = CONTEXT.min(engine.spec().context_len);
            ask(&mut SessionModel::new(&engine, capacity).map_err(engine::failure)?)
        }
        Subject::Onnx(..) => {
            let model = subject.model(exactness(exact), &session.surroundings);
            ask(&mut *model.map_err(stage_failure)?)
        }
    }
}

fn ask(
    located: &[(TaskFile, Vec<Item>)],
    mut asked: Asked<'_>,
    journal: &dyn Fn(&TaskFile, &[Item]) -> Journal,
    session: &Session<'_>,
) -> Result<Vec<TaskResult>, Failure> {
    // What is done of a task is kept until all tasks are done.
    let mut journals: Vec<Journal> = Vec::new();
    let mut results = Vec::new();
    for (task, items) in located {
        journals.push(journal(task, items));
        let journal = journals.last_mut().expect("it was pushed");
        match run_task(task, items, &mut asked, journal, session.terminal) {
            Ok(result) => results.push(result),
            Err(error @ EvalError::Stopped { kept: true, .. }) => {
                for journal in &mut journals {
                    journal.keep(session.terminal);
                }
                return Err(Failure::Interrupted(format!("{}: {error}; {KEPT}", task.name)));
            }
            Err(error) => return Err(gate::failure(error.into())),
        }
    }
    journals.into_iter().for_each(Journal::finish);
    Ok(results)
}

/// Says which differences are more than chance.
pub fn compare(args: &CompareArgs, session: &Session<'_>) -> Result<(), Failure> {
    if !(args.confidence > 0.5 && args.confidence < 1.0) {
        return Err(input_error(format!("--confidence {}: must be above 0.5 and below 1", args.confidence)));
    }
    let how = Resampling {
        confidence: args.confidence,
        seed: session.global.seed.unwrap_or(0),
        ..Resampling::default()
    };
    let mut runtime = None;
    let are_results = [&args.first, &args.second].map(|path| is_result(path));
    let (first, second) = match are_results {
        [true, true] => (read(&args.first)?, read(&args.second)?),
        [false, false] if args.tasks.is_empty() && args.data.is_none() => {
            return Err(input_error("two models: say on what to compare them, with --task T or --data F"));
        }
        [false, false] => {
            let mut of = |path: &str| match args.tasks.is_empty() {
                true => Ok(Vec::new()),
                false => run(path, &args.tasks, args.limit, args.exact, &mut runtime, session),
            };
            (of(&args.first)?, of(&args.second)?)
        }
        _ => return Err(input_error("compare two files of results, or two models: not one of each")),
    };
    let mut comparisons = Vec::new();
    for result in &first {
        let other = second.iter().find(|other| other.task == result.task);
        let Some(other) = other else { continue };
        let compared = compare_tasks(result, other, how);
        let unlike =
            || input_error(format!("task `{}`: the two results are not of the same items", result.task));
        comparisons.push(compared.ok_or_else(unlike)?);
    }
    let on_text = match (&args.data, are_results) {
        (Some(data), [false, false]) => Some(on_text(args, data, how, &mut runtime, session)?),
        _ => None,
    };
    if comparisons.is_empty() && on_text.is_none() {
        return Err(input_error("the two results have no task in common"));
    }
    let mut lines: Vec<String> = comparisons.iter().map(line).collect();
    if let Some(figures) = &on_text {
        lines.push(text_line(figures));
    }
    let document = json!({"first": args.first, "second": args.second, "tasks": comparisons, "text": on_text});
    output::print(session.global.json, &document, &lines.join("\n"))
}

fn is_result(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"))
}

fn read(path: &str) -> Result<Vec<TaskResult>, Failure> {
    let bad =
        |why: String| input_error(format!("{path}: {why}: make it with `slmc eval tasks … --out FILE.json`"));
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let mut document: Value = serde_json::from_str(&text).map_err(|e| bad(format!("is not JSON ({e})")))?;
    let results: Vec<TaskResult> = serde_json::from_value(document["tasks"].take())
        .map_err(|e| bad(format!("holds no results ({e})")))?;
    let is_whole = |result: &TaskResult| {
        result.items.iter().all(|item| {
            let n = item.log_likelihoods.len();
            if result.kind == TaskKind::Generation {
                return item.written.is_some();
            }
            let same = [item.bytes.len(), item.chars.len(), item.greedy.len()].iter().all(|&len| len == n);
            same && n > 0 && (result.kind == TaskKind::Continuation || item.label < n)
        })
    };
    if results.iter().all(is_whole) { Ok(results) } else { Err(bad("an item of it is not whole".to_owned())) }
}

fn on_text(
    args: &CompareArgs,
    data: &str,
    how: Resampling,
    runtime: &mut Option<Runtime>,
    session: &Session<'_>,
) -> Result<slmc_eval::PairedFigures, Failure> {
    let (first, second) = (subject(&args.first, runtime)?, subject(&args.second, runtime)?);
    let windowing = slmc_eval::Windowing::llama(args.ctx, args.chunks);
    let keeping = keeping(&[&args.second, &args.first]);
    let on = OnText { data, windowing, exactness: exactness(args.exact), keeping: keeping.as_ref() };
    let paired = paired_on_text(&second, &first, &on, &session.surroundings, session.terminal);
    Ok(paired.map_err(stage_failure)?.figures(how))
}

fn line(c: &TaskComparison) -> String {
    let percent = |x: f64| format!("{:.2}", 100.0 * x);
    format!(
        "{:<12} {} {} → {} %, difference {} to {} points, {} : {} items differ, p = {:.3}: {}",
        c.task,
        c.metric.name(),
        percent(c.first),
        percent(c.second),
        percent(c.difference.low),
        percent(c.difference.high),
        c.mcnemar.only_first,
        c.mcnemar.only_second,
        c.mcnemar.p_value,
        if c.real { "real" } else { "may be chance" }
    )
}

fn text_line(figures: &slmc_eval::PairedFigures) -> String {
    let increase = figures.ppl_increase;
    let word = if increase.holds(0.0) { "may be chance" } else { "real" };
    format!(
        "{:<12} perplexity {:.4} → {:.4}, increase {:+.3} % ({:+.3} to {:+.3}), KL {:.5}: {word}",
        "text",
        figures.ppl_base,
        figures.ppl,
        100.0 * increase.estimate,
        100.0 * increase.low,
        100.0 * increase.high,
        figures.kld.estimate
    )
}

/// What `--exact` means.
fn exactness(exact: bool) -> Exactness {
    if exact { Exactness::Exact } else { Exactness::FAST.to_compare() }
}
