//! The quality gate.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use slmc_gate::{GateError, GateFile, Opened, Report, Request, Verdict, lock_path, render, run_gate};
use slmc_ir::Host as _;
use slmc_stages::{Exactness, artefact_of, open_model};

use super::{Session, engine, model};
use crate::{
    args::{GateArgs, MemoryArgs},
    failure::{Failure, OrFail, input_error},
    output,
};

/// Tokens that are read and written while memory is measured.
const MEMORY_TOKENS: usize = 512;

/// Measures a model beside its baseline and judges it.
pub fn gate(args: &GateArgs, session: &Session<'_>) -> Result<(), Failure> {
    let file = GateFile::read(&args.config).map_err(failure)?;
    let named = |given: &Option<String>, in_file: &Option<String>, what: &str| {
        given.clone().or_else(|| in_file.clone()).ok_or_else(|| {
            input_error(format!(
                "which {what}? Give --{what}, or {what} = \"…\" in {}",
                args.config.display()
            ))
        })
    };
    let model = named(&args.model, &file.model, "model")?;
    let baseline = named(&args.baseline, &file.baseline, "baseline")?;
    let beside = args.config.parent().unwrap_or(Path::new("")).join(".slmc-cache");
    let cache = args.cache.clone().or_else(|| file.cache.clone().map(PathBuf::from)).unwrap_or(beside);
    let request = Request {
        file: &file,
        model: &model,
        baseline: &baseline,
        lock: &lock_path(&args.config),
        update_lock: args.update_lock,
        cache: &cache,
        data_root: session.surroundings.data_root.as_deref(),
        n_threads: engine::options(Exactness::FAST, session).n_threads,
        version: env!("CARGO_PKG_VERSION"),
        host: session.terminal,
        open: &opened,
        peak_memory: &peak_memory_of,
    };
    let report = run_gate(&request).map_err(failure)?;
    write_files(args, &report, session)?;
    if report.lock_updated {
        session.terminal.say(&format!("pinned in {}", request.lock.display()));
    }
    let document = serde_json::to_value(&report).or_run()?;
    output::print(session.global.json, &document, &render::table(&report))?;
    match report.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Fail => {
            let broken = report.checks.iter().filter(|check| check.failed()).count();
            Err(Failure::Gate(format!("the gate failed: {broken} of {} bounds broken", report.checks.len())))
        }
    }
}

/// Opens a model and says where it lies.
fn opened(path: &str) -> Result<Opened, String> {
    Ok(Opened { checkpoint: open_model(path)?, artefact: artefact_of(path)? })
}

fn write_files(args: &GateArgs, report: &Report, session: &Session<'_>) -> Result<(), Failure> {
    let write = |path: &PathBuf, content: &str| {
        fs::write(path, content)
            .map_err(|e| Failure::Run(anyhow::anyhow!("cannot write {}: {e}", path.display())))
    };
    if let Some(path) = &args.junit {
        write(path, &render::junit(report, session.terminal.elapsed().as_secs_f64()))?;
    }
    if let Some(path) = &args.sarif {
        let gate_text = fs::read_to_string(&args.config).or_run()?;
        let places = render::Places {
            gate_file: &args.config,
            gate_text: &gate_text,
            version: env!("CARGO_PKG_VERSION"),
        };
        let log = render::sarif(report, places);
        write(path, &serde_json::to_string_pretty(&log).or_run()?)?;
    }
    if let Some(path) = &args.markdown {
        let mut file = OpenOptions::new().create(true).append(true).open(path).or_run()?;
        file.write_all(render::markdown(report).as_bytes()).or_run()?;
    }
    Ok(())
}

/// How a gate that could not be judged ends the program.
pub fn failure(error: GateError) -> Failure {
    match error {
        GateError::Input(message) => input_error(message),
        GateError::Failed(message) => Failure::Run(anyhow::Error::msg(message)),
        GateError::Stopped(what) => Failure::Interrupted(format!(
            "{what}; what the baseline predicted is kept once it is whole: start it again"
        )),
    }
}

/// Runs this program once more, on the model alone, and asks what that took.
fn peak_memory_of(path: &str) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program cannot be run again: {e}"))?;
    let output = Command::new(program).args(["measure-memory", path, "--json", "--quiet"]).output();
    let output = output.map_err(|e| format!("this program cannot be run again: {e}"))?;
    if !output.status.success() {
        return Err(format!("memory cannot be measured: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    document["peak_rss_bytes"].as_u64().ok_or_else(|| "memory cannot be measured".to_owned())
}

/// Runs a model for a moment and prints how much memory that took.
pub fn measure_memory(args: &MemoryArgs, session: &Session<'_>) -> Result<(), Failure> {
    let checkpoint = model::open(&args.model)?;
    let engine = engine::load(&checkpoint, Exactness::FAST, session)?;
    let n_tokens = MEMORY_TOKENS.min(engine.spec().context_len);
    let vocab_size = engine.spec().vocab_size as u32;
    let tokens: Vec<u32> = (0..n_tokens as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab_size).collect();
    let mut running = engine.session(n_tokens).map_err(engine::failure)?;
    let (last, prompt) = tokens.split_last().ok_or_else(|| input_error("the model sees no token"))?;
    if !prompt.is_empty() {
        running.read(prompt).map_err(engine::failure)?;
    }
    running.append(&[*last]).map_err(engine::failure)?;
    let peak = peak_rss().ok_or_else(|| {
        Failure::Run(anyhow::anyhow!(
            "this system does not say how much memory a process took (/proc/self/status)"
        ))
    })?;
    let document = json!({"peak_rss_bytes": peak});
    output::print(session.global.json, &document, &output::megabytes(peak))
}

/// The most memory that this process held at once, where Linux tells.
fn peak_rss() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
