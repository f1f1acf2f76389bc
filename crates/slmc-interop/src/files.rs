//! Small files of a model, read whole and within limits.

use std::{fs, io::Read as _, path::Path};

use serde_json::{Map, Value};

use crate::error::{At as _, OpenError, OpenFault};

/// Far above any configuration; chat templates of a megabyte have not been seen.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Far above any tokenizer; 262144 tokens take about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// A configuration, an object; `None` when there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, OpenError> {
    match read_limited(path, MAX_CONFIG_BYTES)? {
        None => Ok(None),
        Some(text) => serde_json::from_str(&text).map(Some).at(path),
    }
}

/// A short text; `None` when there is no such file.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, OpenError> {
    read_limited(path, MAX_CONFIG_BYTES)
}

/// The text of a `tokenizer.json`; `None` when there is no such file.
pub(crate) fn read_tokenizer_text(path: &Path) -> Result<Option<String>, OpenError> {
    read_limited(path, MAX_TOKENIZER_BYTES)
}

fn read_limited(path: &Path, limit: u64) -> Result<Option<String>, OpenError> {
    if !path.is_file() {
        return Ok(None);
    }
    let file = fs::File::open(path).at(path)?;
    let found = file.metadata().at(path)?.len();
    if found > limit {
        return Err(OpenFault::FileTooLong { found, limit }.at(path));
    }
    let mut bytes = Vec::with_capacity(found as usize);
    file.take(limit).read_to_end(&mut bytes).at(path)?;
    String::from_utf8(bytes).map(Some).map_err(|_| OpenFault::NotUtf8.at(path))
}
