//! Verbs that are recipes of one or two stages: `train`, `distill`, `prune`, `quantize`. They run through the same code as
//! recipes do, in a folder beside what they make (`OUT.run`), so that nothing is lost when they are stopped.

use std::path::{Path, PathBuf};

use serde_json::json;
use slmc_recipe::{DistillConfig, Recipe, RunFolder, RunSummary};
use toml::{Table, Value};

use super::{Session, hashing::Hashing, model, recipe};
use crate::{
    args::{DistillArgs, LoopArgs, PruneArgs, QuantizeArgs, TrainArgs},
    failure::{Failure, OrFail, input_error},
    output::{self, count, megabytes},
};

/// Trains on next tokens.
pub fn train(args: &TrainArgs, session: &Session<'_>) -> Result<(), Failure> {
    let mut stages = Vec::new();
    let mut recipe = Table::new();
    if is_config(&args.student) {
        let mut fresh = stage("fresh", [("config", text(&args.student))]);
        match &args.tokenizer {
            Some(model) => fresh.insert("tokenizer".to_owned(), text(model)),
            None => fresh.insert("data".to_owned(), text(&args.training.data)),
        };
        stages.push(fresh);
    } else {
        recipe.insert("model".to_owned(), text(&args.student));
    }
    stages.push(loop_stage("train", &args.training)?);
    let work = Work::prepare(&args.out, args.training.resume, args.training.fresh)?;
    work.run(recipe, stages, None, session)
}

/// Tokens that a teacher writes for a carved student, for each minute of a budget: as much as is learnt from once, on two cores
/// with a small model.
const SAMPLED_A_MINUTE: f64 = 1_400.0;
/// The most of them.
const MOST_SAMPLED: i64 = 1 << 18;

/// Fills in what is not given of a distillation that begins with a carved student: long rows (what is cut out of a model
/// unlearns to look far back first), text that the teacher writes, and a fit before the training. With a budget in minutes
/// writing and fitting take a fixed part of it at most.
fn begin_carved(distill: &mut Table) {
    let mut given = |key: &str, or: i64| {
        let value = distill.entry(key).or_insert(Value::Integer(or));
        value.as_integer().unwrap_or(or)
    };
    let row = given("seq_len", 512);
    let step = given("batch_size", 2).saturating_mul(row).saturating_mul(given("accumulate", 1));
    given("fit_tokens", 49152);
    let whole = |key: &str| distill.get(key).and_then(Value::as_integer);
    let budget = whole("tokens").or_else(|| whole("steps").map(|steps| steps.saturating_mul(step)));
    let minutes = distill.get("minutes").and_then(|m| m.as_float().or(m.as_integer().map(|m| m as f64)));
    // Of a budget in tokens, as much as is learnt from once.
    let sampled = match budget {
        Some(budget) => budget as f64 * DistillConfig::SAMPLED_SHARE,
        None => minutes.unwrap_or(0.0) * SAMPLED_A_MINUTE,
    };
    let sampled = (sampled as i64).clamp(row, MOST_SAMPLED.max(row));
    distill.entry("sampled_tokens").or_insert(Value::Integer(sampled));
}

/// Trains a student on a teacher's soft targets.
pub fn distill(args: &DistillArgs, session: &Session<'_>) -> Result<(), Failure> {
    let mut stages = Vec::new();
    let mut recipe = Table::new();
    let mut distill = loop_stage("distill", &args.training)?;
    distill.insert("teacher".to_owned(), text(&args.teacher));
    if let Some(temperature) = args.temperature {
        distill.insert("temperature".to_owned(), Value::Float(temperature));
    }
    if let Some(alpha) = args.alpha {
        distill.insert("alpha".to_owned(), Value::Float(alpha));
    }
    if let Some(shape) = parse_shape(&args.student)? {
        recipe.insert("model".to_owned(), text(&args.teacher));
        let mut carve = stage("carve", [("calibration", text(&args.training.data))]);
        carve.extend(shape);
        stages.push(carve);
        begin_carved(&mut distill);
    } else if is_config(&args.student) {
        let fields = [("config", text(&args.student)), ("tokenizer", text(&args.teacher))];
        stages.push(stage("fresh", fields));
    } else {
        recipe.insert("model".to_owned(), text(&args.student));
    }
    stages.push(distill);
    let work = Work::prepare(&args.out, args.training.resume, args.training.fresh)?;
    work.run(recipe, stages, Some("distill"), session)
}

/// Cuts a smaller model out of a model.
pub fn prune(args: &PruneArgs, session: &Session<'_>) -> Result<(), Failure> {
    let shape = parse_shape(&args.student)?.ok_or_else(|| {
        input_error(format!("--student {}: write a shape as n_layers=24,d_ff=1152", args.student))
    })?;
    let mut carve = stage("carve", [("calibration", text(&args.calibration))]);
    carve.extend(shape);
    set(&mut carve, &args.set)?;
    let recipe = Table::from_iter([("model".to_owned(), text(&args.model))]);
    let work = Work::prepare(&args.out, false, true)?;
    work.run(recipe, vec![carve], Some("carve"), session)
}

/// Stores a model in fewer bits a weight.
pub fn quantize(args: &QuantizeArgs, session: &Session<'_>) -> Result<(), Failure> {
    let is_gguf = args.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    if is_gguf && args.layout.is_some() {
        return Err(input_error("--layout is that of a Hugging Face folder, and --out is a GGUF"));
    }
    let layout = (!is_gguf).then(|| args.layout.as_deref().unwrap_or("gptq"));
    let mut quantize = stage("quantize", [("method", text(&args.method))]);
    let mut put = |key: &str, value: Option<Value>| value.map(|value| quantize.insert(key.to_owned(), value));
    put("format", args.format.as_deref().map(text));
    put("layout", layout.map(text));
    put("target_bytes", args.target_size.map(|n| Value::Integer(n as i64)));
    put("target_bpw", args.target_bpw.map(Value::Float));
    put("embedding_format", args.embedding_format.as_deref().map(text));
    put("calibration", args.calibration.as_deref().map(text));
    put("minutes", args.minutes.map(Value::Float));
    set(&mut quantize, &args.set)?;
    let mut stages = Vec::new();
    if let Some(tuning) = tuning(args, quantize.get("seq_len"))? {
        quantize.insert("reserved_bytes".to_owned(), Value::Integer(HISTORY_BYTES));
        stages.push(tuning);
    }
    stages.insert(0, quantize);
    let recipe = Table::from_iter([("model".to_owned(), text(&args.model))]);
    // Rounding to nearest takes a second: there is nothing to keep of it.
    let work = Work::prepare(&args.out, args.resume, args.fresh || args.method == "rtn")?;
    work.run(recipe, stages, Some("quantize"), session)
}

/// More than what the history of one more stage takes in a file.
const HISTORY_BYTES: i64 = 4096;
/// The rate at which they learn, as shares of themselves.
const TUNE_RATE: f64 = 2e-4;

/// The stage in which a quantized model's scales learn from the model that it was made of, where that is wanted.
fn tuning(args: &QuantizeArgs, seq_len: Option<&Value>) -> Result<Option<Table>, Failure> {
    let Some(n_tokens) = args.tune_tokens.filter(|&n| n > 0) else { return Ok(None) };
    let data = args.calibration.as_ref();
    let data = data.ok_or_else(|| input_error("--tune-tokens: scales learn on --calibration: give one"))?;
    let stage = stage(
        "distill",
        [
            ("learn", text("scales")),
            ("teacher", text(&args.model)),
            ("data", text(data)),
            ("tokens", Value::Integer(n_tokens as i64)),
            ("alpha", Value::Float(1.0)),
            ("learning_rate", Value::Float(TUNE_RATE)),
            ("batch_size", Value::Integer(2)),
            // A calibration in short sequences is a sign of short text.
            ("seq_len", seq_len.cloned().unwrap_or(Value::Integer(512))),
            ("eval_batches", Value::Integer(0)),
        ],
    );
    Ok(Some(stage))
}

/// The folder beside the result in which the work is done.
struct Work {
    out: PathBuf,
    folder: PathBuf,
}

impl Work {
    fn prepare(out: &Path, resume: bool, fresh: bool) -> Result<Self, Failure> {
        let mut name =
            out.file_name().ok_or_else(|| input_error("--out names no file or folder"))?.to_owned();
        name.push(".run");
        let folder = out.with_file_name(name);
        if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
            let message = format!(
                "--out {}: there is a folder with files in it: remove it or choose another",
                out.display()
            );
            return Err(input_error(message));
        }
        if folder.join("plan.json").is_file() {
            if fresh {
                std::fs::remove_dir_all(&folder).or_run()?;
            } else if !resume {
                let folder = folder.display();
                let message = format!(
                    "{folder} holds unfinished work for {}: add --resume to go on with it or --fresh to throw it away",
                    out.display()
                );
                return Err(input_error(message));
            }
        } else if resume {
            return Err(input_error(format!(
                "there is nothing to resume: {} does not exist",
                folder.display()
            )));
        }
        Ok(Self { out: out.to_owned(), folder })
    }

    fn run(
        &self,
        mut table: Table,
        stages: Vec<Table>,
        report_of: Option<&str>,
        session: &Session<'_>,
    ) -> Result<(), Failure> {
        table.insert("name".to_owned(), text(&self.out.file_name().unwrap_or_default().to_string_lossy()));
        table.insert("stage".to_owned(), Value::Array(stages.into_iter().map(Value::Table).collect()));
        if let Some(seed) = session.global.seed {
            table.insert("seed".to_owned(), Value::Integer(seed as i64));
        }
        let recipe = Recipe::parse(&toml::to_string(&table).or_run()?, &[]).or_input()?;
        let started = std::time::Instant::now();
        let hashing = Hashing::start(recipe.model.clone());
        let plan = recipe::plan(recipe, session)?;
        let folder = RunFolder::open(&self.folder).or_run()?;
        let summary = recipe::carry_out(&plan, &hashing, &folder, session, "the same command with --resume")?;
        self.deliver(&summary, report_of, started.elapsed().as_secs_f64(), session)
    }

    /// Puts the last stage's artefact where it was asked for; the work's folder goes, its record is in the artefact.
    fn deliver(
        &self,
        summary: &RunSummary,
        report_of: Option<&str>,
        seconds: f64,
        session: &Session<'_>,
    ) -> Result<(), Failure> {
        let Some(last) = summary.stages.last() else { return Ok(()) };
        let file_bytes = self.place(&last.artefact, session)?;
        let report = report_of.and_then(|name| self.report(name)).unwrap_or_default();
        let peak_rss_bytes = peak_memory();
        let document = json!({
            "out": self.out,
            "parameters": last.n_parameters,
            "file_bytes": file_bytes,
            "bits_per_weight": last.bits_per_weight,
            "fallbacks": last.fallbacks,
            "tensors": report.get("tensors"),
            "estimated_kl": report.get("estimated_kl"),
            "channels_reordered": report.get("channels_reordered"),
            "channels_scaled": report.get("channels_scaled"),
            "way": report.get("way"),
            "tried": report.get("tried"),
            "held_out_kld": report.get("held_out_kld"),
            "calibration_tokens": report.get("calibration_tokens"),
            "removed_blocks": report.get("removed_blocks"),
            "prepared": report.get("prepared"),
            "stages": summary.stages,
            "seconds": seconds,
            "peak_rss_bytes": peak_rss_bytes,
        });
        let (out, size) = (self.out.display(), megabytes(file_bytes));
        let text = format!(
            "{out}: {size}, {} parameters, {:.3} bits per weight",
            count(last.n_parameters),
            last.bits_per_weight
        );
        self.keep_record().or_run()?;
        output::print(
            session.global.json,
            &document,
            &[Some(text), ways(&report)].into_iter().flatten().collect::<Vec<_>>().join("\n"),
        )
    }

    /// Moves the artefact to where it was asked for when it is of that kind already, and writes it anew otherwise.
    fn place(&self, artefact: &Path, session: &Session<'_>) -> Result<u64, Failure> {
        let is_gguf =
            |path: &Path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        if is_gguf(artefact) == is_gguf(&self.out) {
            std::fs::rename(artefact, &self.out).or_run()?;
            return Ok(model::size_on_disk(&self.out));
        }
        let checkpoint = model::open(&artefact.to_string_lossy())?;
        Ok(model::write(&checkpoint, &self.out, None, session)?.file_bytes)
    }

    fn report(&self, stage: &str) -> Option<serde_json::Value> {
        let folders = std::fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        let is_its = |name: &str| name.split_once('-').is_some_and(|(_, name)| name == stage);
        let mut folders = folders.filter(|folder| folder.file_name().to_str().is_some_and(is_its));
        let path = folders.next()?.path().join("result.json");
        let result: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        result.get("report").cloned()
    }

    /// Removes the work's folder; the metrics of training stay beside the result as `OUT.metrics.jsonl`.
    fn keep_record(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let metrics = entry?.path().join("metrics.jsonl");
            if metrics.is_file() {
                let mut name = self.out.file_name().unwrap_or_default().to_owned();
                name.push(".metrics.jsonl");
                std::fs::rename(&metrics, self.out.with_file_name(name))?;
            }
        }
        std::fs::remove_dir_all(&self.folder)
    }
}

/// The ways to round that were tried, the best first, and what the result loses; nothing where none was.
fn ways(report: &serde_json::Value) -> Option<String> {
    let mut tried: Vec<(&str, f64)> = report
        .get("tried")?
        .as_array()?
        .iter()
        .filter_map(|one| Some((one.get("way")?.as_str()?, one.get("kld")?.as_f64()?)))
        .collect();
    tried.sort_by(|a, b| a.1.total_cmp(&b.1));
    tried.first()?;
    let loses = report.get("held_out_kld").and_then(serde_json::Value::as_f64)?;
    let tried: Vec<String> = tried.iter().map(|(way, kld)| format!("{kld:.5} {way}")).collect();
    let way = report.get("way")?.as_str()?;
    Some(format!(
        "KL divergence on text kept aside: {loses:.5} ({way}). Tried on less text: {}",
        tried.join("; ")
    ))
}

/// The most memory that this process has had, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kibibytes.map_or(0, |n| n * 1024)
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn stage<const N: usize>(kind: &str, fields: [(&str, Value); N]) -> Table {
    let mut table = Table::from_iter([("use".to_owned(), text(kind))]);
    table.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
    table
}

fn loop_stage(kind: &str, args: &LoopArgs) -> Result<Table, Failure> {
    let mut table = stage(kind, [("data", text(&args.data))]);
    let mut put = |key: &str, value: Option<Value>| value.map(|value| table.insert(key.to_owned(), value));
    put("eval_data", args.eval_data.as_deref().map(text));
    put("minutes", args.minutes.map(Value::Float));
    put("tokens", args.tokens.map(|n| Value::Integer(n as i64)));
    put("steps", args.steps.map(|n| Value::Integer(n as i64)));
    set(&mut table, &args.set)?;
    Ok(table)
}

/// Adds the stage's settings that have no option of their own.
fn set(table: &mut Table, settings: &[String]) -> Result<(), Failure> {
    for setting in settings {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| input_error(format!("--set {setting}: write it as key=value")))?;
        let parsed = toml::from_str::<Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
        table.insert(key.trim().to_owned(), parsed.unwrap_or_else(|| text(value)));
    }
    Ok(())
}

/// Whether a student is a `config.json` (and so begins with random weights).
fn is_config(student: &str) -> bool {
    Path::new(student).extension().is_some_and(|ending| ending == "json")
}

/// `n_layers=24,d_ff=1152` as settings of the carve stage; nothing when it is no shape but a path.
fn parse_shape(student: &str) -> Result<Option<Table>, Failure> {
    if !student.contains('=') || Path::new(student).exists() {
        return Ok(None);
    }
    let mut table = Table::new();
    for part in student.split(',') {
        let wrong = || input_error(format!("--student {student}: write a shape as n_layers=24,d_ff=1152"));
        let (key, value) = part.split_once('=').ok_or_else(wrong)?;
        let number: i64 = value.trim().parse().map_err(|_| wrong())?;
        if !["n_layers", "d_ff"].contains(&key.trim()) {
            let message = format!("--student: `{key}` cannot be carved: n_layers and d_ff can");
            return Err(input_error(message));
        }
        table.insert(key.trim().to_owned(), Value::Integer(number));
    }
    Ok(Some(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_told_from_paths() {
        assert!(parse_shape("models/student").unwrap().is_none());
        let shape = parse_shape("n_layers=24,d_ff=1152").unwrap().unwrap();
        assert_eq!(shape["n_layers"].as_integer(), Some(24));
        assert!(parse_shape("n_layers=many").is_err());
        assert!(parse_shape("n_heads=3").is_err());
    }
}
