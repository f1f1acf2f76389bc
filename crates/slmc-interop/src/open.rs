//! Opens a model by what lies at a path.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use slmc_formats::gguf::MAGIC;
use slmc_ir::Checkpoint;

use crate::{
    error::{At as _, OpenError, OpenFault},
    gguf::open_gguf,
    hf::{CONFIG_FILE, open_folder},
};

/// What a model is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be written again, perhaps: with all that its file says.
    Rewrite,
    /// To be run.
    Run,
}

/// Opens a model: a Hugging Face folder, a GGUF file, or a folder with exactly one GGUF and no `config.json`.
/// Content decides, not names. Weights are mapped, not read: only tokenizer and metadata take memory.
///
/// # Errors
/// When nothing that is a model lies there, or it is damaged, incomplete, or of a kind that slmc does not know.
pub fn open(path: &Path) -> Result<Checkpoint, OpenError> {
    open_for(path, Purpose::Rewrite)
}

/// As [`open`], sooner: without what only a writer of the model asks for ([`Checkpoint::extras`] of a GGUF, which are what its
/// metadata say beyond what follows from the model), and without finding out whether a tokenizer could be written again.
///
/// # Errors
/// As [`open`].
pub fn open_to_run(path: &Path) -> Result<Checkpoint, OpenError> {
    open_for(path, Purpose::Run)
}

fn open_for(path: &Path, purpose: Purpose) -> Result<Checkpoint, OpenError> {
    let about = fs::metadata(path).at(path)?;
    if !about.is_dir() {
        return if is_gguf(path)? { open_gguf(path, purpose) } else { Err(OpenFault::NotGguf.at(path)) };
    }
    if path.join(CONFIG_FILE).is_file() {
        return open_folder(path);
    }
    let ggufs = ggufs_in(path)?;
    match ggufs.as_slice() {
        [] => Err(OpenFault::NotAModel.at(path)),
        [one] => open_gguf(one, purpose),
        several => Err(OpenFault::ManyGgufs(several.len()).at(path)),
    }
}

fn ggufs_in(folder: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        if path.is_file() && is_gguf(&path)? {
            found.push(path);
        }
    }
    Ok(found)
}

fn is_gguf(path: &Path) -> Result<bool, OpenError> {
    let mut magic = Vec::new();
    fs::File::open(path).at(path)?.take(MAGIC.len() as u64).read_to_end(&mut magic).at(path)?;
    Ok(magic == MAGIC)
}
