//! Where what is done of an evaluation is kept, and what it is known by.

use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use slmc_data::sha256_bytes;
use slmc_eval::{EvalText, Journal};
use slmc_ir::Host;

/// Files of a model's folder that are looked at.
const MAX_FILES: usize = 10_000;
/// How deep folders lie in each other.
const MAX_DEPTH: usize = 3;

/// Where what is done of an evaluation is kept.
#[derive(Clone, Debug)]
pub struct Keeping {
    folder: PathBuf,
    /// All that results follow from, but the text or the items.
    parts: Vec<String>,
}

impl Keeping {
    /// In a folder. The evaluation follows from these files and folders, known by their sizes and times, and from these
    /// settings.
    pub fn new(folder: PathBuf, files: &[&Path], settings: &[String]) -> Self {
        let mut parts = settings.to_vec();
        for path in files {
            let mut found = Vec::new();
            stamp(path, 0, &mut found);
            found.sort_unstable();
            parts.push(found.join("\n"));
        }
        Self { folder, parts }
    }

    /// The journal of an evaluation that follows from these parts too. Where there can be none, the host is told why.
    pub fn journal(&self, parts: &[&str], host: &dyn Host) -> Journal {
        let parts: Vec<&str> = self.parts.iter().map(String::as_str).chain(parts.iter().copied()).collect();
        Journal::open(&self.folder, &parts).unwrap_or_else(|error| {
            host.warn(&format!("{error}: what is done of this evaluation is not kept"));
            Journal::none()
        })
    }
}

/// A text's own part.
pub(crate) fn part_of_text(text: &EvalText) -> String {
    let bytes: Vec<u8> = text.tokens().iter().flat_map(|token| token.to_le_bytes()).collect();
    sha256_bytes(&bytes)
}

/// Names, sizes and times of a file, or of the files in a folder.
fn stamp(path: &Path, depth: usize, found: &mut Vec<String>) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        if depth < MAX_DEPTH {
            entries.for_each(|entry| stamp(&entry.path(), depth + 1, found));
        }
    } else if found.len() < MAX_FILES {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        found.push(format!(
            "{} {} {}",
            path.display(),
            metadata.len(),
            modified.unwrap_or_default().as_nanos()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slmc_ir::SilentHost;

    #[test]
    fn another_model_or_setting_is_another_evaluation() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("a"), "1").unwrap();
        let parts =
            |setting: &str| Keeping::new(folder.path().join("kept"), &[&model], &[setting.to_owned()]).parts;
        let first = parts("x");
        assert_eq!(first, parts("x"));
        assert_ne!(first, parts("y"));
        fs::write(model.join("b"), "2").unwrap();
        assert_ne!(first, parts("x"));
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_no_reason_not_to_evaluate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let keeping = Keeping::new(file.path().to_owned(), &[], &[]);
        assert_eq!(keeping.journal(&[], &SilentHost).n_kept(), 0);
    }
}
