//! Opens a Hugging Face folder.

use std::{path::Path, sync::Arc};

use serde_json::{Map, Value};
use slmc_ir::{Checkpoint, ModelSpec, WeightSource};

use super::{
    CONFIG_EXTRA, TOKENIZER_CONFIG_EXTRA,
    config_read::read_config,
    sidecar,
    tokenizer_read::read_tokenizer,
    weights::{map_packed_weights, map_weights},
};
use crate::{
    error::{At as _, OpenError, OpenFault},
    files::read_object,
    names::hf_name,
    packed::{PackedSource, read_scheme},
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
    let mut config = read_object(&config_path)?.ok_or_else(|| OpenFault::NotAModel.at(folder))?;
    // What is written from the checkpoint later is packed anew or not at all.
    let packed = config.remove("quantization_config").filter(|value| !value.is_null());
    let spec = read_config(&config).at(&config_path)?;
    let vocab_size = spec.vocab_size;
    let source = match packed {
        Some(packed) => open_packed(folder, &config_path, spec, &packed)?,
        None => {
            let tensors = map_weights(folder, &spec)?;
            Arc::new(MappedSource::new(spec, tensors, false, hf_name).at(folder)?)
        }
    };
    let tokenizer_config = read_object(&folder.join("tokenizer_config.json"))?;
    let tokenizer = read_tokenizer(folder, &config, tokenizer_config.as_ref(), vocab_size)?;
    let generation = read_object(&folder.join("generation_config.json"))?.map(Value::Object);
    let (mut extras, lineage) = sidecar::read(folder)?;
    extras.insert(CONFIG_EXTRA.to_owned(), Value::Object(config));
    if let Some(config) = tokenizer_config {
        extras.insert(TOKENIZER_CONFIG_EXTRA.to_owned(), Value::Object(config));
    }
    Ok(Checkpoint { weights: source, tokenizer, generation, extras, lineage })
}

/// The weights of a folder whose configuration says how they are packed.
fn open_packed(
    folder: &Path,
    config_path: &Path,
    spec: ModelSpec,
    config: &Value,
) -> Result<Arc<dyn WeightSource>, OpenError> {
    let none = Map::new();
    let scheme = read_scheme(config.as_object().unwrap_or(&none)).at(config_path)?;
    let (floats, modules) = map_packed_weights(folder, &spec)?;
    Ok(Arc::new(PackedSource::new(spec, scheme, floats, modules).at(folder)?))
}
