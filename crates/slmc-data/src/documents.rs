//! What lies at a path, as documents: a text, a JSONL file, a folder of such, or a dataset manifest.

use std::{
    io,
    path::{Path, PathBuf},
};

use slmc_ir::Input;

use crate::{
    Content, Document, Split,
    jsonl::{JsonLines, read_list},
    manifest::Manifest,
};

/// Longest text file, in bytes: it is read whole, being one document.
const MAX_TEXT_BYTES: u64 = 4 << 30;
/// Most files in a folder of texts.
const MAX_FILES: usize = 1 << 20;

/// Data that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing in slmc reads files with this name.
    #[error(
        "{path}: slmc reads .txt, .raw and .md as text, .jsonl as one document a line, .json as a \
         list of such documents, .toml as a dataset manifest, and folders of such texts; rename or convert the file",
        path = .0.display()
    )]
    UnknownKind(PathBuf),
    /// A folder holds no text.
    #[error("{path}: no .txt, .raw, .md, .jsonl or .json file lies in this folder", path = .0.display())]
    EmptyFolder(PathBuf),
    /// A text file is too long to be one document.
    #[error("{path} has {n_bytes} bytes; a text of one document may have {MAX_TEXT_BYTES}: split it", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
    },
    /// A text file is not UTF-8.
    #[error("{path}: byte {at} is not UTF-8: convert the file, for example with iconv", path = path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first bad byte, from 0.
        at: usize,
    },
    /// A line of a JSONL file is no document.
    #[error("{path}:{line}: {message}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        message: String,
    },
    /// A manifest that is none.
    #[error("{path}: {message}", path = path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file of a dataset is not there.
    #[error("dataset `{dataset}`: there is no {looked}. To get it: {get}")]
    NotThere {
        /// The dataset.
        dataset: String,
        /// Where it was looked for.
        looked: String,
        /// The manifest's advice.
        get: String,
    },
    /// A file of a dataset is another file.
    #[error("dataset `{dataset}`: {path} has {found}, but the manifest says {expected}. To get the right one: {get}", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The dataset.
        dataset: String,
        /// Size and hash by the manifest.
        expected: String,
        /// Size and hash of the file.
        found: String,
        /// The manifest's advice.
        get: String,
    },
}

/// A file that documents are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    path: PathBuf,
    /// The part of a document's id that names the file.
    name: String,
    split: Option<Split>,
}

/// The documents at a path, not yet read: only one file's are held at a time.
#[derive(Clone, Debug)]
pub struct Documents {
    sources: Vec<Source>,
}

impl Documents {
    /// Finds the documents at a path:
    ///
    /// - `.txt`, `.raw`, `.md`: the whole file is one document;
    /// - `.jsonl`: one document a line; `.json`: a list of the same;
    /// - a folder: all such files in it, sorted by name (not those in folders below it);
    /// - `.toml`: a dataset manifest; its files are looked for below `data_root`, then beside the manifest, and
    ///   their hashes are checked now.
    ///
    /// # Errors
    /// When there is nothing, or nothing that slmc can read.
    pub fn open(path: &Path, data_root: Option<&Path>) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.is_dir() {
            return Self::open_folder(path);
        }
        if has_extension(path, &["toml"]) {
            return Self::open_manifest(path, data_root);
        }
        if !is_data(path) {
            return Err(DataError::UnknownKind(path.to_owned()));
        }
        Ok(Self { sources: vec![Source { path: path.to_owned(), name: file_name(path), split: None }] })
    }

    fn open_folder(folder: &Path) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: folder.to_owned(), source };
        let mut sources = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.is_file() && is_data(&path) {
                sources.push(Source { name: file_name(&path), path, split: None });
            }
            if sources.len() > MAX_FILES {
                return Err(read(io::Error::other(format!(
                    "more than {MAX_FILES} files: join them as .jsonl"
                ))));
            }
        }
        if sources.is_empty() {
            return Err(DataError::EmptyFolder(folder.to_owned()));
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { sources })
    }

    fn open_manifest(path: &Path, data_root: Option<&Path>) -> Result<Self, DataError> {
        let manifest = Manifest::read(path)?;
        let locate = |file: &crate::ManifestFile| {
            let path = manifest.locate(file, path, data_root)?;
            if !is_data(&path) {
                return Err(DataError::UnknownKind(path));
            }
            Ok(Source { path, name: file.path.clone(), split: file.split })
        };
        Ok(Self { sources: manifest.files.iter().map(locate).collect::<Result<_, _>>()? })
    }

    /// Reads the documents in order. After a line that is no document the file's next one follows; after any other error
    /// nothing more of that file.
    pub fn iter(&self) -> impl Iterator<Item = Result<Document, DataError>> + '_ {
        self.sources.iter().flat_map(read_source)
    }

    /// The files that the documents are in.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }

    /// The files with their hashes, for the lineage of what is made from them.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn inputs(&self, role: &str) -> Result<Vec<Input>, DataError> {
        let input = |source: &Source| {
            let sha256 = crate::sha256_file(&source.path)
                .map_err(|error| DataError::Read { path: source.path.clone(), source: error })?;
            Ok(Input { role: role.to_owned(), path: source.name.clone(), sha256 })
        };
        self.sources.iter().map(input).collect()
    }
}

fn read_source(source: &Source) -> Box<dyn Iterator<Item = Result<Document, DataError>> + '_> {
    let document = |(number, content)| Document {
        id: format!("{}:{number}", source.name),
        split: source.split,
        content,
    };
    if has_extension(&source.path, &["json"]) {
        return match read_list(&source.path) {
            Err(error) => Box::new(std::iter::once(Err(error))),
            Ok(list) => Box::new(list.into_iter().map(document).map(Ok)),
        };
    }
    if !has_extension(&source.path, &["jsonl"]) {
        let document = read_text(&source.path).map(|text| Document {
            id: source.name.clone(),
            split: source.split,
            content: Content::Text(text),
        });
        return Box::new(std::iter::once(document));
    }
    match JsonLines::open(&source.path) {
        Err(error) => Box::new(std::iter::once(Err(error))),
        Ok(lines) => Box::new(lines.map(move |line| line.map(document))),
    }
}

/// Reads a text file whole.
///
/// # Errors
/// When it cannot be read, is too long for one document, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, DataError> {
    let read = |source| DataError::Read { path: path.to_owned(), source };
    let n_bytes = std::fs::metadata(path).map_err(read)?.len();
    if n_bytes > MAX_TEXT_BYTES {
        return Err(DataError::TooLong { path: path.to_owned(), n_bytes });
    }
    let bytes = std::fs::read(path).map_err(read)?;
    String::from_utf8(bytes)
        .map_err(|e| DataError::NotUtf8 { path: path.to_owned(), at: e.utf8_error().valid_up_to() })
}

fn is_data(path: &Path) -> bool {
    has_extension(path, &["txt", "raw", "md", "jsonl", "json"])
}

fn has_extension(path: &Path, names: &[&str]) -> bool {
    path.extension().is_some_and(|e| names.iter().any(|name| e.eq_ignore_ascii_case(name)))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
