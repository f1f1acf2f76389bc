//! Opens a Hugging Face folder.

use std::{path::Path, sync::Arc};

use serde_json::Value;
use slmc_ir::{Checkpoint, ModelSpec};

use super::{
    CONFIG_EXTRA, TOKENIZER_CONFIG_EXTRA, config_read::read_config, sidecar, tokenizer_read::read_tokenizer,
    weights::map_weights,
};
use crate::{
    error::{At as _, OpenError, OpenFault},
    files::read_object,
    names::hf_name,
    source::MappedSource,
};

/// The file that makes a folder a Hugging Face model.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// Reads a `config.json` alone: the dimensions of a model that has no weights yet.
///
/// # Errors
/// When the file is not there, is not JSON, or describes a model that slmc does not know.
pub fn open_config(path: &Path) -> Result<ModelSpec, OpenError> {
    let config = read_object(path)?.ok_or_else(|| OpenFault::NotAModel.at(path))?;
    read_config(&config).at(path)
}

/// Opens the folder. Weights are mapped, not read.
pub(crate) fn open_folder(folder: &Path) -> Result<Checkpoint, OpenError> {
    let config_path = folder.join(CONFIG_FILE);
    let config = read_object(&config_path)?.ok_or_else(|| OpenFault::NotAModel.at(folder))?;
    let spec = read_config(&config).at(&config_path)?;
    let tensors = map_weights(folder, &spec)?;
    let vocab_size = spec.vocab_size;
    let source = MappedSource::new(spec, tensors, false, hf_name).at(folder)?;
    let tokenizer_config = read_object(&folder.join("tokenizer_config.json"))?;
    let tokenizer = read_tokenizer(folder, &config, tokenizer_config.as_ref(), vocab_size)?;
    let generation = read_object(&folder.join("generation_config.json"))?.map(Value::Object);
    let (mut extras, lineage) = sidecar::read(folder)?;
    extras.insert(CONFIG_EXTRA.to_owned(), Value::Object(config));
    if let Some(config) = tokenizer_config {
        extras.insert(TOKENIZER_CONFIG_EXTRA.to_owned(), Value::Object(config));
    }
    Ok(Checkpoint { weights: Arc::new(source), tokenizer, generation, extras, lineage })
}
