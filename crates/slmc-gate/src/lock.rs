//! The lock file: what the gate's baseline is, so that a build cannot be compared with something else unnoticed.
//!
//! `GATE.lock.json` beside `GATE.toml`. It pins the baseline, its tokenizer, the text, the tasks, the settings and the
//! version of slmc. The model's hash and figures are there for people: a model changes with every build and is not pinned.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use slmc_formats::AtomicFile;

use crate::GateError;

/// Largest lock file, in bytes.
const MAX_LOCK_BYTES: u64 = 16 << 20;

/// What a gate's comparison rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// What is pinned, by name: each is a hash or a setting.
    pub pinned: BTreeMap<String, String>,
    /// The baseline's figures.
    pub baseline: BTreeMap<String, f64>,
    /// The model's hash when the lock was made.
    pub model_sha256: String,
    /// The model's figures then.
    pub model: BTreeMap<String, f64>,
}

/// Where a gate file's lock lies.
pub fn lock_path(gate_file: &Path) -> PathBuf {
    gate_file.with_extension("lock.json")
}

impl Lock {
    /// The lock at a path, if there is one.
    ///
    /// # Errors
    /// When it is there and is none.
    pub fn read(path: &Path) -> Result<Option<Self>, GateError> {
        let bad = |why: String| {
            GateError::Input(format!("{}: {why}: make it again with --update-lock", path.display()))
        };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(error.to_string())),
            Ok(about) if about.len() > MAX_LOCK_BYTES => {
                return Err(bad("it is too long for a lock".to_owned()));
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        serde_json::from_str(&text).map(Some).map_err(|e| bad(format!("it is no lock file: {e}")))
    }

    /// Writes the lock.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), GateError> {
        let text = serde_json::to_string_pretty(self).map_err(|e| GateError::Failed(e.to_string()))?;
        let mut file = AtomicFile::create(path)?;
        file.put(text.as_bytes())?;
        file.put(b"\n")?;
        Ok(file.commit()?)
    }

    /// What is compared now and is not what was pinned, in words; empty where all is as it was.
    pub fn differences(&self, now: &BTreeMap<String, String>) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.pinned.keys().chain(now.keys()).collect();
        let word = |side: Option<&String>| side.map_or_else(|| "nothing".to_owned(), |s| short(s));
        let differs = |name: &&String| self.pinned.get(*name) != now.get(*name);
        let say = |name: &String| {
            format!("{name} is {} and was {}", word(now.get(name)), word(self.pinned.get(name)))
        };
        names.into_iter().filter(differs).map(say).collect()
    }
}

/// Enough of a hash to tell it from another.
fn short(text: &str) -> String {
    let is_hash = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash { format!("{}…", &text[..12]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_says_what_changed() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let pinned = map(&[("baseline", &"a".repeat(64)), ("ctx", "512")]);
        let lock =
            Lock { pinned, baseline: BTreeMap::new(), model_sha256: String::new(), model: BTreeMap::new() };
        assert!(lock.differences(&lock.pinned).is_empty());
        let now = map(&[("baseline", &"b".repeat(64)), ("ctx", "512"), ("chunks", "24")]);
        assert_eq!(
            lock.differences(&now),
            ["baseline is bbbbbbbbbbbb… and was aaaaaaaaaaaa…", "chunks is 24 and was nothing"]
        );
        let folder = tempfile::tempdir().unwrap();
        let path = lock_path(&folder.path().join("g.toml"));
        assert!(path.ends_with("g.lock.json"));
        assert_eq!(Lock::read(&path).unwrap(), None);
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), Some(lock));
        std::fs::write(&path, "{}").unwrap();
        assert!(Lock::read(&path).unwrap_err().to_string().contains("--update-lock"));
    }
}
