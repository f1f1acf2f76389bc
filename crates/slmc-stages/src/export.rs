//! Writing a checkpoint for somebody else: as the path's ending says, or as a runtime wants it.

use std::{path::Path, sync::Arc};

use serde_json::json;
use slmc_interop::{
    Encoded, OnnxOptions, OnnxPlan, OnnxPrecision, Runtime, WriteOptions, Written, runtime_limits,
    write_gguf, write_hf_folder,
};
use slmc_ir::{Checkpoint, Format, Host, Outline};
use slmc_recipe::{
    ExportConfig, Finished, PlannedStage, Rejection, Stage, StageConfig, StageContext, StageError,
};

use crate::{onnx::export_onnx, open::outline_of, quantize::folder_scheme};

/// A runtime that loads what slmc writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// llama.cpp and what is built on it: a GGUF.
    LlamaCpp,
    /// ollama: a GGUF.
    Ollama,
    /// transformers: a Hugging Face folder.
    Transformers,
    /// vLLM: a Hugging Face folder, its packed matrices for the Marlin kernels.
    Vllm,
    /// onnxruntime and onnxruntime-genai: a folder with an ONNX decoder.
    OnnxRuntime,
}

impl std::str::FromStr for Target {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "llama.cpp" => Ok(Self::LlamaCpp),
            "ollama" => Ok(Self::Ollama),
            "transformers" => Ok(Self::Transformers),
            "onnxruntime" => Ok(Self::OnnxRuntime),
            "vllm" => Ok(Self::Vllm),
            _ => Err(format!(
                "unknown target `{name}`: the targets are llama.cpp, ollama, transformers, vllm, onnxruntime"
            )),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Ollama => "ollama",
            Self::Transformers => "transformers",
            Self::Vllm => "vLLM",
            Self::OnnxRuntime => "onnxruntime",
        })
    }
}

impl Target {
    /// What the runtime cannot load of a model with this outline; nothing when all is well.
    pub fn objections(self, outline: &Outline) -> Vec<String> {
        let mut objections = Vec::new();
        if !outline.has_tokenizer {
            objections.push("the model has no tokenizer".to_owned());
        }
        let packed = outline.formats.iter().filter(|(_, format)| !format.is_float()).count();
        if matches!(self, Self::Transformers | Self::Vllm) && packed > 0 {
            objections.push(format!(
                "{packed} packed tensors: {self} reads blocks of ggml only after they are decoded (--dtype f16)"
            ));
        }
        if self == Self::OnnxRuntime
            && let Err(more) = OnnxPlan::new(outline, &OnnxOptions::default())
        {
            objections.extend(more);
        }
        objections
    }

    /// What the runtime cannot load of what a stage will leave.
    pub fn objections_to(self, planned: &PlannedStage) -> Vec<String> {
        let scheme = match &planned.entry.config {
            StageConfig::Quantize(config) => folder_scheme(config),
            _ => None,
        };
        let Some(scheme) = scheme else { return self.objections(&planned.outline) };
        let runtime = match self {
            Self::Transformers => Runtime::Transformers,
            Self::Vllm => Runtime::Vllm,
            _ => {
                return vec![format!(
                    "it is a folder in the layout {}; leave out `layout` for a GGUF",
                    scheme.layout
                )];
            }
        };
        let packed = |key| planned.outline.formats.iter().any(|&(k, format)| k == key && !format.is_float());
        runtime_limits(runtime, &planned.outline.spec, &scheme, packed)
    }

    /// Whether the runtime reads a GGUF (or else a Hugging Face folder).
    pub fn reads_gguf(self) -> bool {
        matches!(self, Self::LlamaCpp | Self::Ollama)
    }
}

/// Writes a checkpoint to `path`: `.gguf` makes a GGUF, anything else a Hugging Face folder. With `float`, packed
/// matrices are decoded to that format, too.
pub fn write_checkpoint(
    checkpoint: &Checkpoint,
    path: &Path,
    float: Option<Format>,
    host: &dyn Host,
) -> Result<Written, String> {
    let has_ending = |name: &str| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(name));
    if has_ending("onnx") {
        let precision = match float {
            None => None,
            Some(Format::F32) => Some(OnnxPrecision::F32),
            Some(Format::F16) => Some(OnnxPrecision::F16),
            Some(other) => return Err(format!("{other}: ONNX is written in f32 or f16")),
        };
        let options = OnnxOptions { precision, ..OnnxOptions::default() };
        return export_onnx(checkpoint, path, &options, None, host).map(|(written, _)| written);
    }
    let unpacked = float.map(|float| unpack(checkpoint, float)).transpose()?;
    let checkpoint = unpacked.as_ref().unwrap_or(checkpoint);
    let options = WriteOptions { float, ..WriteOptions::default() };
    if has_ending("gguf") {
        write_gguf(checkpoint, path, &options, host).map_err(|e| e.to_string())
    } else {
        write_hf_folder(checkpoint, path, &options, host).map_err(|e| e.to_string())
    }
}

/// The same checkpoint with every packed tensor decoded to `float` when it is read.
fn unpack(checkpoint: &Checkpoint, float: Format) -> Result<Checkpoint, String> {
    let outline = outline_of(checkpoint)?;
    let packed = outline.formats.into_iter().filter(|(_, format)| !format.is_float());
    let plan = packed.map(|(key, _)| (key, float)).collect();
    let weights = Encoded::new(Arc::clone(&checkpoint.weights), plan).map_err(|e| e.to_string())?;
    Ok(checkpoint.with_weights(Arc::new(weights)))
}

/// The export stage.
pub struct Export {
    to: String,
    dtype: Option<Format>,
}

impl Export {
    pub fn new(config: &ExportConfig) -> Result<Self, String> {
        let plain = Path::new(&config.to).components().count() == 1 && !config.to.contains(['/', '\\']);
        if !plain || config.to.starts_with('.') {
            return Err(format!("to = \"{}\": a plain name inside the run's folder is needed", config.to));
        }
        if Path::new(&config.to).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) {
            return Err(format!(
                "to = \"{}\": a stage leaves what the next can open, and ONNX is only written: use `slmc export RUN \
                 --target onnxruntime` afterwards",
                config.to
            ));
        }
        let dtype = config.dtype.as_deref().map(float_format).transpose()?;
        Ok(Self { to: config.to.clone(), dtype })
    }
}

/// `f32`, `f16` or `bf16`.
pub fn float_format(name: &str) -> Result<Format, String> {
    let format = name.parse::<Format>().ok().filter(|format| format.is_float());
    format.ok_or_else(|| format!("dtype `{name}`: use f32, f16 or bf16"))
}

impl Stage for Export {
    fn name(&self) -> &'static str {
        "export"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        input.cloned().ok_or_else(|| Rejection("there is no model to export".to_owned()))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to export".to_owned()))?;
        let artefact = context.folder.join(&self.to);
        let lineage = context.history(&input.lineage, self, &[]);
        let input = Checkpoint { lineage, ..input };
        let written =
            write_checkpoint(&input, &artefact, self.dtype, context.host).map_err(StageError::Failed)?;
        let report = json!({"file_bytes": written.file_bytes});
        Ok(Finished { artefact, report, fallbacks: written.notes })
    }
}
