//! Files: the graph, its data, and what onnxruntime-genai wants beside them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use slmc_formats::{AtomicDir, Existing, OnnxWriter, onnx::GraphParts};
use slmc_ir::{Checkpoint, Host, Outline};

use super::{
    GENAI_CONFIG,
    decoder::Builder,
    genai::genai_config,
    graph::Graph,
    plain_attention::Masks,
    plan::{OnnxOptions, OnnxPlan},
};
use crate::{
    error::WriteError,
    hf::{TOKENIZER_CONFIG_EXTRA, tokenizer_configs},
    write::{Progress, Written},
};

const MODEL_FILE: &str = "model.onnx";

/// Asked about the written model before it is called done: opens it in a runtime, or says why not.
pub type CheckModel<'a> = &'a mut dyn FnMut(&Path) -> Result<(), String>;

/// Writes the folder that onnxruntime-genai opens: `model.onnx`, `model.onnx.data`, `genai_config.json` and the
/// tokenizer's files. It appears under its name when `check` has accepted the model.
///
/// # Errors
/// When onnxruntime cannot take the model, a tensor cannot be read or is not finite, files cannot be written, the
/// host asks to stop, or `check` refuses; then no folder appears.
pub fn write_onnx_folder(
    checkpoint: &Checkpoint,
    folder: &Path,
    options: &OnnxOptions,
    host: &dyn Host,
    check: CheckModel<'_>,
) -> Result<Written, WriteError> {
    let plan = plan_of(checkpoint, options)?;
    let target = AtomicDir::create(folder, Existing::Refuse)?;
    let model = target.path().join(MODEL_FILE);
    let mut file_bytes = write_graph(checkpoint, &model, options, &plan, host)?;
    let mut put = |name: &str, text: String| {
        let path = target.path().join(name);
        file_bytes += text.len() as u64;
        fs::write(&path, text).map_err(|source| WriteError::Io { path, source })
    };
    let pretty = |object: &Map<String, Value>| serde_json::to_string_pretty(object).map(|text| text + "\n");
    put(GENAI_CONFIG, pretty(&genai_config(checkpoint, MODEL_FILE, options))?)?;
    if let Some(tokenizer) = &checkpoint.tokenizer {
        let kept = checkpoint.extras.get(TOKENIZER_CONFIG_EXTRA).and_then(Value::as_object);
        let (config, map) = tokenizer_configs(tokenizer, checkpoint.spec().context_len, kept)?;
        put("tokenizer.json", tokenizer.json.clone())?;
        put("tokenizer_config.json", pretty(&config)?)?;
        put("special_tokens_map.json", pretty(&map)?)?;
        if let Some(template) = &tokenizer.chat_template {
            put("chat_template.jinja", template.clone())?;
        }
    }
    check(&model).map_err(WriteError::Onnx)?;
    target.commit()?;
    Ok(written(checkpoint, plan, file_bytes))
}

/// Writes `PATH` and, beside it, `PATH.data`.
///
/// # Errors
/// As [`write_onnx_folder`]; then what had these names, if anything, is still there.
pub fn write_onnx_file(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &OnnxOptions,
    host: &dyn Host,
    check: CheckModel<'_>,
) -> Result<Written, WriteError> {
    let plan = plan_of(checkpoint, options)?;
    // A folder that never gets its name: the two files leave it once they are accepted.
    let aside = AtomicDir::create(&path.with_added_extension("unchecked"), Existing::Refuse)?;
    let model = aside.path().join(path.file_name().unwrap_or_default());
    let file_bytes = write_graph(checkpoint, &model, options, &plan, host)?;
    check(&model).map_err(WriteError::Onnx)?;
    // The graph last: it names the data.
    for (from, to) in [(data_path(&model), data_path(path)), (model, path.to_owned())] {
        if from.is_file() {
            fs::rename(&from, &to).map_err(|source| WriteError::Io { path: to, source })?;
        }
    }
    Ok(written(checkpoint, plan, file_bytes))
}

fn plan_of(checkpoint: &Checkpoint, options: &OnnxOptions) -> Result<OnnxPlan, WriteError> {
    let mut formats = Vec::new();
    for &key in checkpoint.weights.keys() {
        formats.push((key, checkpoint.weights.format(key)?));
    }
    let has_tokenizer = checkpoint.tokenizer.is_some();
    let outline = Outline { spec: checkpoint.spec().clone(), has_tokenizer, formats };
    OnnxPlan::new(&outline, options).map_err(|objections| WriteError::Onnx(objections.join("; ")))
}

fn written(checkpoint: &Checkpoint, plan: OnnxPlan, file_bytes: u64) -> Written {
    let keys = checkpoint.weights.keys();
    Written {
        file_bytes,
        tensors: keys.iter().map(|&key| (key, plan.format(key))).collect(),
        notes: plan.notes,
    }
}

fn data_path(model: &Path) -> PathBuf {
    let mut name = model.file_name().unwrap_or_default().to_owned();
    name.push(".data");
    model.with_file_name(name)
}

fn write_graph(
    checkpoint: &Checkpoint,
    model: &Path,
    options: &OnnxOptions,
    plan: &OnnxPlan,
    host: &dyn Host,
) -> Result<u64, WriteError> {
    checkpoint.spec().validate().map_err(|error| WriteError::Onnx(error.to_string()))?;
    let mut builder = Builder {
        checkpoint,
        spec: checkpoint.spec(),
        plan,
        options,
        graph: Graph::new(OnnxWriter::create(&data_path(model))?),
        progress: Progress::begin(host, "writing ONNX", checkpoint.weights.keys().len()),
        masks: Masks::default(),
    };
    builder.decoder()?;
    let Graph { writer, nodes, inputs, outputs, has_contrib, .. } = builder.graph;
    let lineage = serde_json::to_string(&checkpoint.lineage)?;
    let parts = GraphParts {
        name: "decoder".to_owned(),
        nodes,
        inputs,
        outputs,
        contrib: has_contrib,
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        metadata: BTreeMap::from([("slmc.lineage".to_owned(), lineage)]),
    };
    Ok(writer.finish(model, parts)?)
}
