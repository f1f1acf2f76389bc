//! `model.safetensors.index.json`: which tensor is in which file of a checkpoint in several files.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{MAX_INDEX_BYTES, ShardIndexError};
use crate::{json::UniqueMap, shown::shown};

/// Longest file name that common file systems take.
const MAX_FILE_NAME_BYTES: usize = 255;

/// A shard index. Shard names are plain file names: joined to the index's folder they stay in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardIndex {
    /// Shard file by tensor name.
    pub weight_map: BTreeMap<String, String>,
    /// Free data by key.
    pub metadata: Map<String, Value>,
    /// `metadata.total_size`: bytes of all tensors, if the index says.
    pub total_size: Option<u64>,
}

#[derive(Deserialize)]
struct Document {
    weight_map: UniqueMap<String>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

impl ShardIndex {
    /// Reads an index.
    ///
    /// # Errors
    /// When it is not JSON of that form, names a tensor twice, names no tensor, or a shard's name could
    /// lead out of the folder.
    pub fn parse(json: &[u8]) -> Result<Self, ShardIndexError> {
        if json.len() > MAX_INDEX_BYTES {
            return Err(ShardIndexError::TooLong { found: json.len(), limit: MAX_INDEX_BYTES });
        }
        let Document { weight_map: UniqueMap(weight_map), metadata } =
            serde_json::from_slice(json).map_err(ShardIndexError::Json)?;
        if weight_map.is_empty() {
            return Err(ShardIndexError::Empty);
        }
        for (tensor, shard) in &weight_map {
            if !is_plain_file_name(shard) {
                return Err(ShardIndexError::ShardName { tensor: shown(tensor), shard: shown(shard) });
            }
        }
        let total_size = metadata.get("total_size").map(whole_number).transpose()?;
        Ok(Self { weight_map, metadata, total_size })
    }

    /// The shards, each once, in the order of their names.
    pub fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

/// Whether the name, joined to a folder on any system, is a file directly in it: no separator of Unix
/// or Windows, no drive or stream (`:`), nothing relative, nothing that a shell or terminal would act on.
fn is_plain_file_name(name: &str) -> bool {
    let plain = |c: char| !matches!(c, '/' | '\\' | ':') && !c.is_control();
    !matches!(name, "" | "." | "..") && name.len() <= MAX_FILE_NAME_BYTES && name.chars().all(plain)
}

/// A number of bytes. Some writers of indexes make it a float.
fn whole_number(value: &Value) -> Result<u64, ShardIndexError> {
    let from_float = || {
        let float = value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=2_f64.powi(53)).contains(x))?;
        Some(float as u64)
    };
    value
        .as_u64()
        .or_else(from_float)
        .ok_or_else(|| ShardIndexError::TotalSize { found: shown(&value.to_string()) })
}
