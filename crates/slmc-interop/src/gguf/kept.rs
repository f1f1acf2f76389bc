//! What a GGUF says beyond what slmc would write for the same model, so that it is written again as it was.
//!
//! At import the metadata that [`super::metadata::derive`] gives for the model are compared with the file's. For
//! each key in the file's order an entry says: the derived value holds; or another value holds *as long as* the
//! derived one is what it was then. A model that has changed since derives other values, and those win.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};
use slmc_formats::gguf::Value;

use super::{
    metadata::{Derived, DerivedKeys},
    typed,
};
use crate::{error::WriteError, hex::hex};

/// Tools' notes on how the weights were packed; they hold only while the formats do.
const ABOUT_FORMATS: &str = "quantize.imatrix.";

/// The entries for a file's metadata.
pub(crate) fn remember(file: &[(String, Value)], derived: &Derived) -> Json {
    let keys = DerivedKeys::of(derived);
    let mut entries: Vec<Json> = Vec::with_capacity(file.len());
    for (key, value) in file {
        let of_model = keys.get(key);
        if of_model == Some(value) {
            entries.push(json!({ "key": key }));
            continue;
        }
        let mut entry = typed::to_json(value);
        entry.insert("key".to_owned(), json!(key));
        entry.insert("over".to_owned(), over(key, of_model, derived));
        entries.push(Json::Object(entry));
    }
    let in_file: BTreeSet<&str> = file.iter().map(|(key, _)| key.as_str()).collect();
    for (key, value) in &derived.metadata {
        if !in_file.contains(key.as_str()) {
            entries.push(json!({ "key": key, "absent": true, "over": over(key, Some(value), derived) }));
        }
    }
    Json::Array(entries)
}

/// The metadata to write: the derived ones, with those of the entries that still hold.
pub(crate) fn recall(kept: Option<&Json>, derived: Derived) -> Result<Vec<(String, Value)>, WriteError> {
    let Some(kept) = kept else { return Ok(derived.metadata) };
    let entries = kept.as_array().ok_or_else(|| damaged("metadata", "it must be a list"))?;
    let keys = DerivedKeys::of(&derived);
    let mut metadata: Vec<(String, Value)> = Vec::with_capacity(entries.len());
    let mut settled: BTreeSet<&str> = BTreeSet::new();
    for entry in entries {
        let entry = entry.as_object().ok_or_else(|| damaged("metadata", "an entry must be an object"))?;
        let key = entry.get("key").and_then(Json::as_str);
        let key = key.ok_or_else(|| damaged("metadata", "an entry must have a key"))?;
        if !settled.insert(key) {
            return Err(damaged(key, "it is there twice"));
        }
        let of_model = keys.get(key);
        if let Some(value) = of_entry(key, entry, of_model, &derived)? {
            metadata.push((key.to_owned(), value));
        }
    }
    let new = derived.metadata.iter().filter(|(key, _)| !settled.contains(key.as_str()));
    metadata.extend(new.cloned());
    Ok(metadata)
}

fn of_entry(
    key: &str,
    entry: &Map<String, Json>,
    of_model: Option<&Value>,
    derived: &Derived,
) -> Result<Option<Value>, WriteError> {
    let Some(was) = entry.get("over") else {
        return Ok(of_model.cloned());
    };
    if *was != over(key, of_model, derived) {
        return Ok(of_model.cloned());
    }
    if entry.get("absent").is_some() {
        return Ok(None);
    }
    typed::from_json(entry).map(Some).ok_or_else(|| damaged(key, "its type and value do not belong together"))
}

/// What a kept value stands over: the derived value's digest, or null.
fn over(key: &str, of_model: Option<&Value>, derived: &Derived) -> Json {
    if key.starts_with(ABOUT_FORMATS) {
        return json!(derived.formats_digest);
    }
    of_model.map_or(Json::Null, |value| json!(digest(value)))
}

/// Enough of a SHA-256 to tell values of one key apart.
fn digest(value: &Value) -> String {
    hex(&Sha256::digest(Json::Object(typed::to_json(value)).to_string()))[..16].to_owned()
}

fn damaged(what: &str, why: &'static str) -> WriteError {
    WriteError::Kept { what: crate::error::shorten(what), why }
}
