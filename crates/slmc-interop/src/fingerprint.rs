//! What a model's files are, for lineage.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use slmc_formats::map_file;

use crate::{
    error::{At as _, OpenError},
    hex::hex,
};

/// One file that went in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSummary {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub n_bytes: u64,
    /// SHA-256 of its content, lower-case hex.
    pub sha256: String,
}

/// The file, or the files directly in the folder, sorted by name; hidden ones are left out.
///
/// # Errors
/// When the path or a file cannot be read.
pub fn summarize(path: &Path) -> Result<Vec<FileSummary>, OpenError> {
    if !fs::metadata(path).at(path)?.is_dir() {
        return Ok(vec![summarize_file(path)?]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(path).at(path)? {
        let entry = entry.at(path)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.path().is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths.iter().map(|path| summarize_file(path)).collect()
}

/// SHA-256, lower-case hex: of a file; or of the list of a folder's files in the order of their names, a line
/// `<sha256>  <name>` each, as `sha256sum` prints it.
///
/// # Errors
/// When the path or a file cannot be read.
pub fn fingerprint(path: &Path) -> Result<String, OpenError> {
    let files = summarize(path)?;
    if !path.is_dir() {
        return Ok(files.into_iter().map(|file| file.sha256).collect());
    }
    let mut hasher = Sha256::new();
    for file in files {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hasher.update(format!("{}  {name}\n", file.sha256));
    }
    Ok(hex(&hasher.finalize()))
}

fn summarize_file(path: &Path) -> Result<FileSummary, OpenError> {
    let bytes = map_file(path).at(path)?;
    let sha256 = hex(&Sha256::digest(&bytes));
    Ok(FileSummary { path: path.to_owned(), n_bytes: bytes.len() as u64, sha256 })
}
