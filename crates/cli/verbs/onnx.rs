//! Exports to ONNX, compared in onnxruntime where one is found.

use std::path::{Path, PathBuf};

use serde_json::json;
use slmc_interop::{OnnxOptions, OnnxPrecision};
use slmc_ir::Host;
use slmc_onnxruntime::Runtime;
use slmc_stages::{Agreement, export_onnx};

use super::{Session, model};
use crate::{
    args::OnnxArgs,
    failure::{Failure, OrFail, input_error},
    output::{self, megabytes},
};

/// Where people say which onnxruntime to load; the name is the one that the runtime's own bindings use.
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// Whether a path names an ONNX file.
pub fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx"))
}

/// Refuses options that only ONNX has where something else is written.
pub fn refuse(args: &OnnxArgs, out: &Path) -> Result<(), Failure> {
    if args.is_given() {
        let message = "--precision, --plain and --accuracy-level are for ONNX: use --target onnxruntime or a .onnx file";
        return Err(input_error(format!("--out {}: {message}", out.display())));
    }
    Ok(())
}

/// Writes a model as ONNX, to a folder or to a file.
pub fn export(
    name: &str,
    out: &Path,
    args: &OnnxArgs,
    dtype: Option<&str>,
    session: &Session<'_>,
) -> Result<(), Failure> {
    let asked = match (args.precision.as_deref(), dtype) {
        (Some(_), Some(_)) => return Err(input_error("give --precision or --dtype, not both")),
        (precision, dtype) => precision.or(dtype),
    };
    let precision: Option<OnnxPrecision> =
        asked.map(str::parse).transpose().map_err(|e: String| input_error(e))?;
    let default = OnnxOptions::default();
    let accuracy_level = args.accuracy_level.unwrap_or(default.accuracy_level);
    let options = OnnxOptions { precision, plain: args.plain, accuracy_level };
    let checkpoint = model::open(name)?;
    if out.exists() && !is_onnx(out) && !out.is_dir() {
        return Err(input_error(format!("--out {}: a file is in the way of the folder", out.display())));
    }
    let outline = slmc_stages::outline_of(&checkpoint).map_err(input_error)?;
    slmc_interop::OnnxPlan::new(&outline, &options).map_err(|objections| {
        input_error(format!("onnxruntime cannot load this model: {}", objections.join("; ")))
    })?;
    let (runtime, how) = find_runtime()?;
    let exported = export_onnx(&checkpoint, out, &options, runtime.as_ref(), session.terminal);
    let (written, agreement) = exported.map_err(anyhow::Error::msg).or_run()?;
    for note in &written.notes {
        session.terminal.warn(note);
    }
    let document = json!({
        "out": out,
        "file_bytes": written.file_bytes,
        "tensors": written.tensors.len(),
        "embedding": embedding(&written, &options),
        "notes": written.notes,
        "onnxruntime": how,
        "agreement": agreement,
    });
    let text = format!(
        "{}: {}, {} tensors; embedding: {}\n{}",
        out.display(),
        megabytes(written.file_bytes),
        written.tensors.len(),
        embedding(&written, &options),
        checked(agreement.as_ref(), &how)
    );
    output::print(session.global.json, &document, &text)
}

/// How rows of the embedding are looked up.
fn embedding(written: &slmc_interop::Written, options: &OnnxOptions) -> String {
    let format = written.tensors.first().map(|(_, format)| *format);
    match format {
        Some(format) if format.is_float() => format!("Gather, {format}"),
        Some(slmc_ir::Format::Q4_1) => "Gather of q4_1 levels, standard operators".to_owned(),
        Some(format) if options.plain => format!("Gather of {format} levels, standard operators"),
        Some(format) => format!("GatherBlockQuantized, {format}; a tied head reads the same bytes"),
        None => "none".to_owned(),
    }
}

fn checked(agreement: Option<&Agreement>, how: &str) -> String {
    match agreement {
        None => format!("NOT loaded and compared: {how}"),
        Some(found) => format!(
            "loaded and compared in {how}: KL divergence {:.1e}, same top token at {:.1} % of {} positions, largest \
             difference of a logit {:.1e}",
            found.kld,
            100.0 * found.same_top,
            found.tokens,
            found.max_abs
        ),
    }
}

/// The onnxruntime that the user named, or that the system finds; and where it is, or why there is none.
pub fn find_runtime() -> Result<(Option<Runtime>, String), Failure> {
    if let Some(path) = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        let runtime = Runtime::load(&path).or_input()?;
        return Ok((Some(runtime), path.display().to_string()));
    }
    let name = format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    match Runtime::load(Path::new(&name)) {
        Ok(runtime) => Ok((Some(runtime), name)),
        Err(_) => Ok((
            None,
            format!("no {name} was found; set {LIBRARY_VARIABLE} to one (it is in PyPI's onnxruntime)"),
        )),
    }
}
