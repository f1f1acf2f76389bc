//! Looking at a model, and writing it as something else.

use std::path::Path;

use serde_json::json;
use slmc_interop::Written;
use slmc_ir::{Checkpoint, Format, Host};
use slmc_stages::{Target, open_model, outline_of, write_checkpoint};

use super::Session;
use crate::{
    args::{ConvertArgs, ExportArgs, InspectArgs},
    failure::{Failure, input_error},
    output::{self, count, megabytes, table},
};

/// Opens what the user calls a model.
pub fn open(path: &str) -> Result<Checkpoint, Failure> {
    open_model(path).map_err(input_error)
}

/// Says what a model is.
pub fn inspect(args: &InspectArgs, session: &Session<'_>) -> Result<(), Failure> {
    let checkpoint = open(&args.model)?;
    let spec = checkpoint.spec();
    let mut tensors = Vec::new();
    let mut rows = vec![["tensor", "shape", "format", "bytes"].map(str::to_owned).to_vec()];
    let mut n_bytes = 0;
    for &key in checkpoint.weights.keys() {
        let weight = checkpoint.weights.read(key).map_err(|e| input_error(e.to_string()))?;
        let size = weight.bytes().len() as u64;
        n_bytes += size;
        tensors.push(json!({"name": key.to_string(), "shape": weight.shape(), "format": weight.format().name(), "bytes": size}));
        let shape = weight.shape().iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
        rows.push(vec![key.to_string(), shape, weight.format().to_string(), size.to_string()]);
    }
    let n_parameters = spec.n_parameters();
    let bits_per_weight = n_bytes as f64 * 8.0 / n_parameters as f64;
    let file_bytes = size_on_disk(Path::new(&args.model));
    let family = serde_json::to_value(spec.family).unwrap_or_default();
    let document = json!({
        "architecture": family,
        "parameters": n_parameters,
        "file_bytes": file_bytes,
        "bits_per_weight": bits_per_weight,
        "spec": spec,
        "has_tokenizer": checkpoint.tokenizer.is_some(),
        "has_chat_template": checkpoint.tokenizer.as_ref().is_some_and(|t| t.chat_template.is_some()),
        "lineage": checkpoint.lineage,
        "tensors": tensors,
    });
    let facts = [
        ("architecture", family.as_str().unwrap_or("?").to_owned()),
        ("parameters", count(n_parameters)),
        ("size", megabytes(file_bytes)),
        ("bits per weight", format!("{bits_per_weight:.3}")),
        ("layers", spec.n_layers.to_string()),
        ("d_model, d_ff", format!("{}, {}", spec.d_model, spec.d_ff)),
        ("heads, kv heads, d_head", format!("{}, {}, {}", spec.n_heads, spec.n_kv_heads, spec.d_head)),
        ("vocabulary", spec.vocab_size.to_string()),
        ("context", spec.context_len.to_string()),
        ("head", if spec.tied_head { "tied to the embedding".to_owned() } else { "its own".to_owned() }),
        ("formats", formats(&checkpoint)?),
        ("tokenizer", if checkpoint.tokenizer.is_some() { "yes".to_owned() } else { "none".to_owned() }),
        (
            "steps behind it",
            checkpoint.lineage.steps.iter().map(|s| s.stage.as_str()).collect::<Vec<_>>().join(" → "),
        ),
    ];
    let mut text = String::new();
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name:<24} {value}\n"));
    }
    if args.tensors {
        text.push_str(&format!("\n{}\n", table(&rows)));
    }
    output::print(session.global.json, &document, &text)
}

/// Which formats, and how many tensors have each.
fn formats(checkpoint: &Checkpoint) -> Result<String, Failure> {
    let outline = outline_of(checkpoint).map_err(input_error)?;
    let number = |format: Format| outline.formats.iter().filter(|&&(_, f)| f == format).count();
    let there = Format::ALL.into_iter().map(|f| (f, number(f))).filter(|&(_, n)| n > 0);
    Ok(there.map(|(format, n)| format!("{format} × {n}")).collect::<Vec<_>>().join(", "))
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
    let checkpoint = open(&args.model)?;
    let written = write(&checkpoint, &args.out, args.dtype.as_deref(), session)?;
    report(&args.out, &written, session)
}

/// Writes what a runtime needs.
pub fn export(args: &ExportArgs, session: &Session<'_>) -> Result<(), Failure> {
    let target: Target = args.target.parse().map_err(|e: String| input_error(e))?;
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
