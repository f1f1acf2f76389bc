//! Adapters: `slmc lora train`, `merge`, `average`, `export`.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use slmc_interop::{AdapterAbout, open_adapter, open_adapter_for, write_adapter_folder, write_adapter_gguf};
use slmc_ir::{Adapter, ChannelScales, Channels, Checkpoint, Format};
use slmc_recipe::{Recipe, RunFolder};
use slmc_stages::{MergeReport, held_out_batches, merge_adapter, preview};
use toml::{Table, Value};

use super::{Session, eval::stage_failure, hashing::Hashing, model, recipe};
use crate::{
    args::{LoraAverageArgs, LoraExportArgs, LoraMergeArgs, LoraTrainArgs, LoraVerb},
    failure::{Failure, OrFail, input_error},
    output::{self, count, megabytes},
};

/// Rows of a batch that is measured on.
const MEASURED_ROWS: usize = 4;
/// Documents that `--dry-run` shows.
const SHOWN: usize = 3;

/// Runs a verb about adapters.
pub fn lora(verb: &LoraVerb, session: &Session<'_>) -> Result<(), Failure> {
    match verb {
        LoraVerb::Train(args) if args.dry_run => dry_run(args, session),
        LoraVerb::Train(args) => train(args, session),
        LoraVerb::Merge(args) => merge(args, session),
        LoraVerb::Average(args) => average(args, session),
        LoraVerb::Export(args) => export(args, session),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// The recipe of one stage that training is.
fn training_recipe(args: &LoraTrainArgs, out: &Path, session: &Session<'_>) -> Result<Recipe, Failure> {
    let text = |value: &str| Value::String(value.to_owned());
    let mut stage =
        Table::from_iter([("use".to_owned(), text("lora")), ("data".to_owned(), text(&args.data))]);
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            stage.insert(key.to_owned(), value);
        }
    };
    put("eval_data", args.eval_data.as_deref().map(text));
    put("minutes", args.minutes.map(Value::Float));
    put("tokens", args.tokens.map(|n| Value::Integer(n as i64)));
    put("steps", args.steps.map(|n| Value::Integer(n as i64)));
    put("rank", args.rank.map(|n| Value::Integer(n as i64)));
    put("alpha", args.alpha.or(args.rank.map(|rank| 2.0 * rank as f64)).map(Value::Float));
    put("target", args.target.as_deref().map(text));
    put("base_format", args.base_format.as_deref().map(text));
    for setting in &args.set {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| input_error(format!("--set {setting}: write it as key=value")))?;
        let parsed = toml::from_str::<Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
        stage.insert(key.trim().to_owned(), parsed.unwrap_or_else(|| text(value)));
    }
    let mut table = Table::new();
    table.insert("name".to_owned(), text(&out.file_name().unwrap_or_default().to_string_lossy()));
    table.insert("model".to_owned(), text(&args.base));
    table.insert("stage".to_owned(), Value::Array(vec![Value::Table(stage)]));
    if let Some(seed) = session.global.seed {
        table.insert("seed".to_owned(), Value::Integer(seed as i64));
    }
    Recipe::parse(&toml::to_string(&table).or_run()?, &[]).or_input()
}

fn train(args: &LoraTrainArgs, session: &Session<'_>) -> Result<(), Failure> {
    let out = args.out.as_deref().ok_or_else(|| input_error("--out is missing"))?;
    let folder = work_folder(out, args)?;
    let recipe = training_recipe(args, out, session)?;
    let started = std::time::Instant::now();
    let hashing = Hashing::start(recipe.model.clone());
    let plan = recipe::plan(recipe, session)?;
    let run_folder = RunFolder::open(&folder).or_run()?;
    recipe::carry_out(&plan, &hashing, &run_folder, session, "the same command with --resume")?;
    let stage = folder.join("01-lora");
    let result: Json =
        serde_json::from_slice(&std::fs::read(stage.join("result.json")).or_run()?).or_run()?;
    let (report, fallbacks) = (&result["report"], &result["fallbacks"]);
    let adapter = stage.join("adapter");
    let file_bytes = if is_gguf(out) {
        let base = model::open(&args.base)?;
        let (found, _) = open_adapter_for(&adapter, &base).or_run()?;
        write_adapter_gguf(&found, base.spec(), out).or_run()?
    } else {
        std::fs::rename(&adapter, out).or_run()?;
        model::size_on_disk(out)
    };
    keep_metrics(&stage, out).or_run()?;
    std::fs::remove_dir_all(&folder).or_run()?;
    let document = json!({
        "out": out,
        "file_bytes": file_bytes,
        "fallbacks": fallbacks,
        "report": report,
        "seconds": started.elapsed().as_secs_f64(),
        "peak_rss_bytes": super::single::peak_memory(),
    });
    output::print(session.global.json, &document, &trained_text(out, file_bytes, report))
}

/// The adapter in a line, and how much the held-out loss fell.
fn trained_text(out: &Path, file_bytes: u64, report: &Json) -> String {
    let mut text = format!(
        "{}: {}, {} parameters, rank {}",
        out.display(),
        megabytes(file_bytes),
        count(report["adapter_parameters"].as_u64().unwrap_or(0)),
        report["rank"]
    );
    let held_out = &report["held_out"];
    let figure = |value: &Json| value.as_f64().unwrap_or(f64::NAN);
    if held_out.is_object() {
        text += &format!(
            "\nheld-out loss {:.4} → {:.4} nats a token (change {:.4}, 95 % interval {:.4} to {:.4}, {} tokens)",
            figure(&held_out["before"]),
            figure(&held_out["after"]),
            figure(&held_out["change"]),
            figure(&held_out["interval"][0]),
            figure(&held_out["interval"][1]),
            held_out["tokens"]
        );
    }
    text
}

/// The folder beside the result in which the work is done.
fn work_folder(out: &Path, args: &LoraTrainArgs) -> Result<PathBuf, Failure> {
    let mut name = out.file_name().ok_or_else(|| input_error("--out names no file or folder"))?.to_owned();
    name.push(".run");
    let folder = out.with_file_name(name);
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!(
            "--out {}: there is a folder with files in it: remove it or choose another",
            out.display()
        );
        return Err(input_error(message));
    }
    let (shown, begun) = (folder.display(), folder.join("plan.json").is_file());
    if begun && args.fresh {
        std::fs::remove_dir_all(&folder).or_run()?;
    } else if begun && !args.resume {
        return Err(input_error(format!(
            "{shown} holds unfinished work for {}: add --resume to go on with it or --fresh to throw it away",
            out.display()
        )));
    } else if !begun && args.resume {
        return Err(input_error(format!("there is nothing to resume: {shown} does not exist")));
    }
    Ok(folder)
}

/// The training's log stays beside the result as `OUT.metrics.jsonl`.
fn keep_metrics(stage: &Path, out: &Path) -> std::io::Result<()> {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".metrics.jsonl");
    std::fs::rename(stage.join("metrics.jsonl"), out.with_file_name(name))
}

fn dry_run(args: &LoraTrainArgs, session: &Session<'_>) -> Result<(), Failure> {
    // The settings are read as they would be for training, but for the budget, which nothing here depends on.
    let mut settings = args.set.iter().filter_map(|setting| setting.strip_prefix("seq_len="));
    let seq_len = match settings.next() {
        Some(text) => {
            text.parse().map_err(|_| input_error(format!("--set seq_len={text}: a whole number")))?
        }
        None => 256,
    };
    let checkpoint = model::open(&args.base)?;
    let found =
        preview(&args.data, &checkpoint, seq_len, SHOWN, &session.surroundings).map_err(stage_failure)?;
    let mut text = String::new();
    for example in &found.examples {
        text += &format!(
            "── {}: {} tokens, {} learnt from\n{}\n",
            example.id, example.tokens, example.targets, example.text
        );
    }
    let counts = found.counts;
    text += &format!(
        "\n{} documents in {} rows of {seq_len}: {} tokens learnt from, {} positions of padding, {} documents cut \
         ({} tokens), {} left out",
        counts.documents,
        counts.rows,
        counts.targets,
        counts.padding,
        counts.truncated,
        counts.tokens_cut,
        counts.left_out
    );
    output::print(session.global.json, &serde_json::to_value(&found).or_run()?, &text)
}

fn merge(args: &LoraMergeArgs, session: &Session<'_>) -> Result<(), Failure> {
    let base = model::open(&args.base)?;
    let (adapter, mut about) = open_adapter_for(&args.adapter, &base).or_input()?;
    tell_of_scales(&about, &base, session);
    if let Some(name) = &args.base_format {
        about.base_format = Some(name.parse::<Format>().or_input()?);
    }
    let held_out = match &args.data {
        Some(data) => {
            let (seq_len, n) = (args.seq_len, args.batches);
            held_out_batches(data, &base, seq_len, MEASURED_ROWS, n, &session.surroundings)
                .map_err(stage_failure)?
        }
        None => Vec::new(),
    };
    let (merged, report) = merge_adapter(&base, &adapter, &about, &held_out).map_err(stage_failure)?;
    let written = model::write(&merged, &args.out, Some(args.dtype.as_deref().unwrap_or("f16")), session)?;
    let document =
        json!({"out": args.out, "file_bytes": written.file_bytes, "notes": written.notes, "merge": report});
    let text = format!("{}: {}\n{}", args.out.display(), megabytes(written.file_bytes), merge_text(&report));
    output::print(session.global.json, &document, &text)
}

fn merge_text(report: &MergeReport) -> String {
    let figure =
        |nll: Option<f64>| nll.map_or("not measured".to_owned(), |nll| format!("{nll:.4} nats a token"));
    let mut text = format!("merged into the base {}", report.kept);
    if report.base_nll.is_some() {
        text += &format!(
            "; held-out loss over {} tokens: base {}, merged into it as stored {}, as rounded {}",
            report.tokens,
            figure(report.base_nll),
            figure(report.stored_nll),
            figure(report.rounded_nll)
        );
    }
    text
}

fn average(args: &LoraAverageArgs, session: &Session<'_>) -> Result<(), Failure> {
    let mut adapters: Vec<Adapter> = Vec::new();
    let mut abouts: Vec<AdapterAbout> = Vec::new();
    for path in &args.adapters {
        let (adapter, about) = open_adapter(path, None).or_input()?;
        adapters.push(adapter);
        abouts.push(about);
    }
    if abouts.iter().any(|other| scales_of(other) != scales_of(&abouts[0])) {
        return Err(input_error(
            "the adapters are for models whose channels were scaled in other ways: their mean is for none of them",
        ));
    }
    let mean = Adapter::mean(&adapters).or_input()?;
    let mut about = abouts[0].clone();
    if abouts.iter().any(|other| other.base_format != about.base_format) {
        session.terminal.say("the adapters' bases were rounded differently: the mean remembers none");
        about.base_format = None;
    }
    let file_bytes = write_adapter_folder(&mean, &about, &args.out).or_run()?;
    let document = json!({"out": args.out, "rank": mean.rank, "alpha": mean.alpha, "file_bytes": file_bytes});
    let text = format!(
        "{}: {}, rank {}: the exact mean of {} adapters' changes",
        args.out.display(),
        megabytes(file_bytes),
        mean.rank,
        adapters.len()
    );
    output::print(session.global.json, &document, &text)
}

/// What the steps behind an adapter have done to the sizes of channels.
fn scales_of(about: &AdapterAbout) -> Vec<&ChannelScales> {
    about.lineage.steps.iter().filter_map(|step| step.channel_scales.as_ref()).collect()
}

/// Says what is taken for granted of an adapter that another program wrote.
fn tell_of_scales(about: &AdapterAbout, base: &Checkpoint, session: &Session<'_>) {
    let is_silent = about.lineage.steps.is_empty();
    if is_silent && Channels::of(&base.lineage, base.spec()).is_scaled() {
        session.terminal.say(
            "the channels of --base were scaled, and the adapter does not say which model it is for: it is taken as one for a folder \
             of --base itself, not for the model before",
        );
    }
}

fn export(args: &LoraExportArgs, session: &Session<'_>) -> Result<(), Failure> {
    if !is_gguf(&args.out) {
        return Err(input_error(format!(
            "--out {}: llama.cpp reads adapters from a .gguf file",
            args.out.display()
        )));
    }
    let base = model::open(&args.base)?;
    let (adapter, about) = open_adapter_for(&args.adapter, &base).or_input()?;
    tell_of_scales(&about, &base, session);
    let file_bytes = write_adapter_gguf(&adapter, base.spec(), &args.out).or_run()?;
    let document = json!({"out": args.out, "file_bytes": file_bytes, "tensors": adapter.factors.len() * 2});
    output::print(
        session.global.json,
        &document,
        &format!("{}: {}", args.out.display(), megabytes(file_bytes)),
    )
}
