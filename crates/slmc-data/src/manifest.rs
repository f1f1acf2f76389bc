//! A dataset manifest: which files make a dataset, where they come from, under which licence, and what their
//! bytes must be. The files themselves lie wherever the user put them.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::{DataError, Split};

/// Longest manifest, in bytes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// A manifest as it is written in `datasets/*.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The dataset's name.
    pub name: String,
    /// Who made it: an address or a citation.
    pub source: String,
    /// The licence, as SPDX writes it where it can.
    pub licence: String,
    /// How to get the files: what to download and where to put it.
    pub get: String,
    /// Anything a user should know.
    #[serde(default)]
    pub note: Option<String>,
    /// The files, in order.
    #[serde(rename = "file")]
    pub files: Vec<ManifestFile>,
}

/// One file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Below the data root, else below the manifest's folder; written with `/`.
    pub path: String,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
    /// Its size in bytes.
    pub n_bytes: u64,
    /// The part that all its documents belong to; by document id where absent.
    #[serde(default)]
    pub split: Option<Split>,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it cannot be read, is not a manifest, or names a path that leaves the data root.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.to_owned(), source };
        let bad = |message| DataError::Manifest { path: path.to_owned(), message };
        let n_bytes = std::fs::metadata(path).map_err(read)?.len();
        if n_bytes > MAX_MANIFEST_BYTES {
            return Err(bad(format!("has {n_bytes} bytes, more than the {MAX_MANIFEST_BYTES} allowed")));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?, path)
    }

    /// Checks a manifest's text; `path` is where its own files are looked for, and names it in messages.
    ///
    /// # Errors
    /// When it is not a manifest, or names a path that leaves the data root.
    pub fn parse(text: &str, path: &Path) -> Result<Self, DataError> {
        let bad = |message| DataError::Manifest { path: path.to_owned(), message };
        let manifest: Self = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
        if manifest.files.is_empty() {
            return Err(bad("names no file".into()));
        }
        for file in &manifest.files {
            let inside = Path::new(&file.path).components().all(|c| matches!(c, Component::Normal(_)));
            if file.path.is_empty() || !inside {
                return Err(bad(format!(
                    "path `{}` must be relative and stay below the data root",
                    file.path
                )));
            }
            let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            if file.sha256.len() != 64 || !file.sha256.chars().all(is_hex) {
                return Err(bad(format!("sha256 of `{}` must be 64 lower-case hex digits", file.path)));
            }
        }
        Ok(manifest)
    }

    /// Where a file lies: below the data root if it is there, else below the manifest's folder.
    ///
    /// # Errors
    /// When it is in neither place, or its bytes are not those that the manifest names.
    pub fn locate(
        &self,
        file: &ManifestFile,
        manifest_path: &Path,
        data_root: Option<&Path>,
    ) -> Result<PathBuf, DataError> {
        let folder = manifest_path.parent().unwrap_or(Path::new(""));
        let candidates: Vec<PathBuf> =
            data_root.into_iter().chain([folder]).map(|root| root.join(&file.path)).collect();
        let Some(path) = candidates.iter().find(|path| path.is_file()) else {
            let looked = candidates.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ");
            return Err(DataError::NotThere { dataset: self.name.clone(), looked, get: self.get.clone() });
        };
        let read = |source| DataError::Read { path: path.clone(), source };
        let n_bytes = std::fs::metadata(path).map_err(read)?.len();
        let sha256 = crate::sha256_file(path).map_err(read)?;
        if n_bytes != file.n_bytes || sha256 != file.sha256 {
            return Err(DataError::Changed {
                path: path.clone(),
                dataset: self.name.clone(),
                expected: format!("{} bytes, sha256 {}", file.n_bytes, file.sha256),
                found: format!("{n_bytes} bytes, sha256 {sha256}"),
                get: self.get.clone(),
            });
        }
        Ok(path.clone())
    }
}
