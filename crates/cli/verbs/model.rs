//! Opening a model, and writing it as something else.

use std::path::Path;

use serde_json::json;
use slmc_interop::Written;
use slmc_ir::{Checkpoint, Format, Host};
use slmc_stages::{Target, open_model, outline_of, write_checkpoint};

use super::{Session, onnx};
use crate::{
    args::{ConvertArgs, ExportArgs},
    failure::{Failure, input_error},
    output::{self, megabytes},
};

/// Opens what the user calls a model.
pub fn open(path: &str) -> Result<Checkpoint, Failure> {
    open_model(path).map_err(input_error)
}

/// As [`open`], sooner, for a model that is run and not written again.
pub fn open_to_run(path: &str) -> Result<Checkpoint, Failure> {
    slmc_stages::open_to_run(path).map_err(input_error)
}

/// Bytes of a file, or of all files of a folder.
pub fn size_on_disk(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::metadata(path) else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size_on_disk(&entry.path())).sum()
}

/// Changes container or float type.
pub fn convert(args: &ConvertArgs, session: &Session<'_>) -> Result<(), Failure> {
    if onnx::is_onnx(&args.out) {
        return onnx::export(&args.model, &args.out, &args.onnx, args.dtype.as_deref(), session);
    }
    onnx::refuse(&args.onnx, &args.out)?;
    let checkpoint = open(&args.model)?;
    let written = write(&checkpoint, &args.out, args.dtype.as_deref(), session)?;
    report(&args.out, &written, session)
}

/// Writes what a runtime needs.
pub fn export(args: &ExportArgs, session: &Session<'_>) -> Result<(), Failure> {
    let target: Target = args.target.parse().map_err(|e: String| input_error(e))?;
    if target == Target::OnnxRuntime {
        return onnx::export(&args.model, &args.out, &args.onnx, args.dtype.as_deref(), session);
    }
    onnx::refuse(&args.onnx, &args.out)?;
    let checkpoint = open(&args.model)?;
    let is_gguf = args.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    if is_gguf != target.reads_gguf() {
        let needs = if target.reads_gguf() { "a .gguf file" } else { "a folder" };
        return Err(input_error(format!("--out {}: {} reads {needs}", args.out.display(), args.target)));
    }
    let outline = outline_of(&checkpoint).map_err(input_error)?;
    if args.dtype.is_none()
        && let Some(objection) = target.objections(&outline).first()
    {
        return Err(input_error(format!("{} cannot load this model: {objection}", args.target)));
    }
    let written = write(&checkpoint, &args.out, args.dtype.as_deref(), session)?;
    report(&args.out, &written, session)
}

/// Writes a checkpoint as the path's ending says.
pub fn write(
    checkpoint: &Checkpoint,
    out: &Path,
    dtype: Option<&str>,
    session: &Session<'_>,
) -> Result<Written, Failure> {
    let float = match dtype {
        None => None,
        Some(name) => {
            let format = name.parse::<Format>().ok().filter(|format| format.is_float());
            Some(format.ok_or_else(|| input_error(format!("--dtype {name}: use f32, f16 or bf16")))?)
        }
    };
    write_checkpoint(checkpoint, out, float, session.terminal)
        .map_err(|message| Failure::Run(anyhow::Error::msg(message)))
}

fn report(out: &Path, written: &Written, session: &Session<'_>) -> Result<(), Failure> {
    for note in &written.notes {
        session.terminal.warn(note);
    }
    let (file_bytes, n_tensors) = (written.file_bytes, written.tensors.len());
    let document =
        json!({"out": out, "file_bytes": file_bytes, "tensors": n_tensors, "notes": written.notes});
    let text =
        format!("{}: {}, {} tensors", out.display(), megabytes(written.file_bytes), written.tensors.len());
    output::print(session.global.json, &document, &text)
}
