//! Runs as one HTML page.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use slmc_engine::text_prompt;
use slmc_formats::AtomicFile;
use slmc_ir::Host as _;
use slmc_report::{Curves, Histogram, RunView, Sample, Samples, page, pictures};
use slmc_stages::{Exactness, activations, open_model, tokenizer_of};

use super::{Session, bench, engine, eval::stage_failure};
use crate::{
    args::ReportArgs,
    failure::{Failure, OrFail, input_error},
    output,
};

/// Bins of a histogram.
const BINS: usize = 61;
/// Largest file of a run folder that is read.
const MAX_BYTES: u64 = 256 << 20;

/// Writes the page.
pub fn report(args: &ReportArgs, session: &Session<'_>) -> Result<(), Failure> {
    let mut runs = Vec::new();
    for folder in &args.runs {
        runs.push(view(folder, args, session)?);
    }
    let html = page(&runs, env!("CARGO_PKG_VERSION"));
    write(&args.out, &html)?;
    let mut written = Vec::new();
    if let Some(folder) = &args.pictures {
        fs::create_dir_all(folder).or_run()?;
        for picture in pictures(&html) {
            let path = folder.join(format!("{}.svg", picture.name));
            write(&path, &picture.svg)?;
            written.push(path);
        }
    }
    let document = json!({"out": args.out, "runs": runs.len(), "bytes": html.len(), "pictures": written});
    output::print(session.global.json, &document, &format!("{}: {} runs", args.out.display(), runs.len()))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut file = AtomicFile::create(path).or_run()?;
    file.put(text.as_bytes()).or_run()?;
    file.commit().or_run()
}

fn view(folder: &Path, args: &ReportArgs, session: &Session<'_>) -> Result<RunView, Failure> {
    let plan = read_json(&folder.join("plan.json")).map_err(|why| {
        input_error(format!(
            "{}: this is no run folder ({why}): give the folder that `slmc run` made",
            folder.display()
        ))
    })?;
    let summary = read_json(&folder.join("summary.json")).map_err(|_| {
        input_error(format!("{}: the run is not finished: run its recipe to the end first", folder.display()))
    })?;
    let name = folder.file_name().map_or_else(|| "run".to_owned(), |n| n.to_string_lossy().into_owned());
    let artefacts: Vec<(String, String)> = stages_of(&summary, folder);
    let mut results = Vec::new();
    let mut curves = Vec::new();
    for stage in artefacts.iter().filter_map(|(_, artefact)| stage_folder(Path::new(artefact))) {
        results.push(read_json(&stage.join("result.json")).map_err(input_error)?);
        let stage_name = stage.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        curves.extend(read_curves(&stage_name, &stage.join("metrics.jsonl")));
    }
    let last = artefacts.last().map(|(_, path)| open_model(path)).transpose().map_err(input_error)?;
    let mut histograms = last.as_ref().map(histograms).transpose()?.unwrap_or_default();
    if let Some(last) = last.as_ref().filter(|_| !args.prompt.is_empty()) {
        histograms.extend(activation_histograms(last, &args.prompt)?);
    }
    let lineage = last.as_ref().map_or(Value::Null, |c| serde_json::to_value(&c.lineage).unwrap_or_default());
    let mut samples = Vec::new();
    for prompt in &args.prompt {
        samples.push(write_samples(prompt, &artefacts, args.max_tokens, session)?);
    }
    let speeds = if args.speed { speeds(&artefacts, session)? } else { Vec::new() };
    let command = recipe_command(&plan, folder).or_run()?;
    Ok(RunView { name, plan, summary, results, lineage, curves, histograms, samples, speeds, command })
}

/// The plan as a recipe, since a recipe is what `slmc run` reads.
fn recipe_command(plan: &Value, folder: &Path) -> Result<String, toml::ser::Error> {
    let mut plan = plan.clone();
    remove_nulls(&mut plan);
    let recipe = toml::to_string(&plan)?;
    Ok(format!("cat > recipe.toml <<'END'\n{recipe}END\nslmc run recipe.toml --out {}", folder.display()))
}

/// TOML has no null: a setting that is absent is left out.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

fn read_json(path: &Path) -> Result<Value, String> {
    let n_bytes = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if n_bytes > MAX_BYTES {
        return Err(format!("{} is too long", path.display()));
    }
    let text = fs::read(path).map_err(|e| e.to_string())?;
    serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The folder of the stage that left an artefact; the input has none.
fn stage_folder(artefact: &Path) -> Option<&Path> {
    artefact.ancestors().skip(1).take(2).find(|folder| folder.join("result.json").is_file())
}

/// Each stage's name and artefact, where it lies now.
fn stages_of(summary: &Value, folder: &Path) -> Vec<(String, String)> {
    let stages = summary["stages"].as_array().map_or(&[][..], Vec::as_slice);
    let pair = |stage: &Value| {
        let artefact = found(stage["artefact"].as_str()?, folder);
        Some((stage["name"].as_str()?.to_owned(), artefact))
    };
    stages.iter().filter_map(pair).collect()
}

/// A path of the summary, which may be relative to a folder that is no longer the current one, or to a run that was moved:
/// stages lie in the run's folder, or beside a sweep's points.
fn found(artefact: &str, folder: &Path) -> String {
    let path = Path::new(artefact);
    if path.exists() {
        return artefact.to_owned();
    }
    // From the stage's own folder on: `03-quantize/model.gguf`.
    let is_stage = |part: &OsStr| part.to_str().is_some_and(|name| name.as_bytes().get(2) == Some(&b'-'));
    let tail: PathBuf = path.iter().skip_while(|part| !is_stage(part)).collect();
    let places = [folder.join(&tail), folder.join("../../stages").join(&tail)];
    let here = places.into_iter().find(|place| !tail.as_os_str().is_empty() && place.exists());
    here.map_or_else(|| artefact.to_owned(), |here| here.to_string_lossy().into_owned())
}

/// What the log of a training holds, each quantity under its name.
fn read_curves(name: &str, path: &Path) -> Option<Curves> {
    const WHAT: [(&str, &str); 4] = [
        ("/kl", "KL divergence from the teacher"),
        ("/ce", "cross-entropy of the text"),
        ("/loss", "loss"),
        ("/eval/nll", "held-out cross-entropy"),
    ];
    let text = fs::read_to_string(path).ok()?;
    let mut curves = WHAT.map(|(_, name)| (name.to_owned(), Vec::new()));
    for line in text.lines() {
        // The last line of a run that was killed may be cut.
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        let Some(step) = entry["step"].as_f64() else { continue };
        for ((field, _), (_, points)) in WHAT.iter().zip(&mut curves) {
            points.extend(entry.pointer(field).and_then(Value::as_f64).map(|value| (step, value)));
        }
    }
    // With a teacher the loss is a mixture of the two before it.
    if !curves[0].1.is_empty() {
        curves[2].1.clear();
    }
    let curves: Vec<_> = curves.into_iter().filter(|(_, points)| !points.is_empty()).collect();
    (!curves.is_empty()).then(|| Curves { name: name.to_owned(), curves })
}

/// How the weights of each kind of matrix lie, all blocks together.
fn histograms(checkpoint: &slmc_ir::Checkpoint) -> Result<Vec<Histogram>, Failure> {
    let mut kinds: BTreeMap<&'static str, Vec<slmc_ir::TensorKey>> = BTreeMap::new();
    for &key in checkpoint.weights.keys().iter().filter(|key| key.role.is_matrix()) {
        kinds.entry(key.role.name()).or_default().push(key);
    }
    let mut found = Vec::new();
    for (name, keys) in kinds {
        let mut histogram = Histogram {
            title: format!("Weights of {name}"),
            of: "weight".to_owned(),
            ..Histogram::default()
        };
        for key in keys {
            let weight = checkpoint.weights.read(key).or_run()?;
            count(&slmc_blocks::decode_weight(&weight).or_run()?, &mut histogram);
        }
        found.push(histogram);
    }
    Ok(found)
}

/// How what goes through a model lies when it reads the prompts.
fn activation_histograms(
    checkpoint: &slmc_ir::Checkpoint,
    prompts: &[String],
) -> Result<Vec<Histogram>, Failure> {
    let tokenizer = tokenizer_of(checkpoint).map_err(stage_failure)?;
    let mut found: BTreeMap<&'static str, Histogram> = BTreeMap::new();
    for prompt in prompts {
        let tokens = text_prompt(&tokenizer, prompt).map_err(engine::failure)?;
        for of in activations(checkpoint, &tokens).map_err(input_error)? {
            let histogram = found.entry(of.name).or_insert_with(|| Histogram {
                title: format!("Activations: {}", of.name),
                of: "activation".to_owned(),
                ..Histogram::default()
            });
            count(&of.numbers, histogram);
        }
    }
    Ok(found.into_values().collect())
}

/// Counts numbers; those counted first say how far the bins reach: four standard deviations. What lies beyond is in the last ones.
fn count(numbers: &[f32], histogram: &mut Histogram) {
    if histogram.counts.is_empty() {
        let squares: f64 = numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        histogram.limit = (4.0 * (squares / numbers.len().max(1) as f64).sqrt()).max(1e-9);
        histogram.counts = vec![0; BINS];
    }
    for &x in numbers.iter().filter(|x| x.is_finite()) {
        let place = (f64::from(x) / histogram.limit + 1.0) * 0.5 * BINS as f64;
        histogram.counts[place.clamp(0.0, BINS as f64 - 1.0) as usize] += 1;
    }
}

/// A stage's model, where it can still be opened: a model that went in may have been moved since.
fn opened(name: &str, path: &str, session: &Session<'_>) -> Option<slmc_ir::Checkpoint> {
    let opened = open_model(path);
    if let Err(why) = &opened {
        session.terminal.warn(&format!("{name} is left out of what is measured now: {why}"));
    }
    opened.ok()
}

/// How fast each stage's model is on this machine.
fn speeds(artefacts: &[(String, String)], session: &Session<'_>) -> Result<Vec<Option<[f64; 2]>>, Failure> {
    /// Tokens of the prompt and of the text.
    const LENGTHS: [usize; 2] = [128, 32];
    let mut speeds = Vec::new();
    for (name, path) in artefacts {
        let Some(checkpoint) = opened(name, path, session) else {
            speeds.push(None);
            continue;
        };
        let engine = engine::load(&checkpoint, Exactness::FAST, session)?;
        speeds.push(Some(bench::speed(&engine, LENGTHS, session)?));
    }
    Ok(speeds)
}

/// What each stage's model writes, its likeliest token each time.
fn write_samples(
    prompt: &str,
    artefacts: &[(String, String)],
    max_tokens: usize,
    session: &Session<'_>,
) -> Result<Samples, Failure> {
    let mut written = Vec::new();
    for (name, path) in artefacts {
        let Some(checkpoint) = opened(name, path, session) else { continue };
        let tokenizer = tokenizer_of(&checkpoint).map_err(stage_failure)?;
        let engine = engine::load(&checkpoint, Exactness::FAST, session)?;
        let tokens = greedy(&engine, &tokenizer, prompt, max_tokens)?;
        let text = |&token: &u32| tokenizer.decode(&[token]).unwrap_or_default();
        written.push(Sample { name: name.clone(), tokens: tokens.iter().map(text).collect() });
    }
    Ok(Samples { prompt: prompt.to_owned(), written })
}

fn greedy(
    engine: &slmc_engine::Engine,
    tokenizer: &slmc_data::Tokenizer,
    prompt: &str,
    max_tokens: usize,
) -> Result<Vec<u32>, Failure> {
    let prompt = text_prompt(tokenizer, prompt).map_err(engine::failure)?;
    let capacity = (prompt.len() + max_tokens).min(engine.spec().context_len).max(1);
    let mut session = engine.session(capacity).map_err(engine::failure)?;
    let mut written = Vec::new();
    while written.len() < max_tokens {
        let logits = match written.last() {
            None if prompt.len() <= capacity => session.read(&prompt),
            Some(&last) if session.tokens().len() < capacity => session.append(&[last]),
            _ => break,
        };
        let logits = logits.map_err(engine::failure)?;
        let best =
            (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32;
        if tokenizer.special().eos == Some(best) {
            break;
        }
        written.push(best);
    }
    Ok(written)
}
