//! What writers of every container share.

use slmc_ir::{Checkpoint, Format, Host, Part, SourceError, TensorKey, Weight};

use crate::error::WriteError;

/// How a checkpoint is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Float format of float matrices; `None` keeps each as it is stored.
    pub float: Option<Format>,
    /// The model's name in the file; `None` keeps the one that it came with.
    pub name: Option<String>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file, or of all files of the folder.
    pub file_bytes: u64,
    /// Each tensor and its format in the file, in the order of the file.
    pub tensors: Vec<(TensorKey, Format)>,
    /// What was done other than asked, in words.
    pub notes: Vec<String>,
}

/// Tensors and their formats, in the order of a file.
pub(crate) type Formats = Vec<(TensorKey, Format)>;

/// Whether the key names a matrix: norms and biases are vectors.
pub(crate) fn is_matrix(key: TensorKey) -> bool {
    key.role.is_matrix() && key.part == Part::Weight
}

/// Refuses options that no writer can follow.
pub(crate) fn check_options(options: &WriteOptions) -> Result<(), WriteError> {
    match options.float {
        Some(format) if !format.is_float() => Err(WriteError::NotFloat(format)),
        _ => Ok(()),
    }
}

/// Reads a tensor and holds the source to its promise about shapes.
pub(crate) fn read_checked(checkpoint: &Checkpoint, key: TensorKey) -> Result<Weight, SourceError> {
    let weight = checkpoint.weights.read(key)?;
    let expected = key.shape(checkpoint.spec());
    if weight.shape() != expected {
        return Err(SourceError::Shape { key, expected, found: weight.shape().to_vec() });
    }
    Ok(weight)
}

/// Tensors written so far, told to the host.
pub(crate) struct Progress<'a> {
    host: &'a dyn Host,
    done: u64,
}

impl<'a> Progress<'a> {
    pub(crate) fn begin(host: &'a dyn Host, what: &str, n_tensors: usize) -> Self {
        host.begin(what, n_tensors as u64, "tensors");
        Self { host, done: 0 }
    }

    /// One more tensor is written.
    ///
    /// # Errors
    /// [`WriteError::Stopped`] when the user asked to stop.
    pub(crate) fn advance(&mut self) -> Result<(), WriteError> {
        self.done += 1;
        self.host.advance_to(self.done, "");
        if self.host.stop_requested() { Err(WriteError::Stopped) } else { Ok(()) }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.host.end();
    }
}
