//! A checkpoint without its numbers: what plans are checked on.

use crate::{Format, ModelSpec, TensorKey, Weight};

/// What is known of a checkpoint before any weight is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// Shape and choices of the model.
    pub spec: ModelSpec,
    /// Whether a tokenizer travels with it.
    pub has_tokenizer: bool,
    /// Each tensor and the format it will have.
    pub formats: Vec<(TensorKey, Format)>,
}

impl Outline {
    /// A model whose tensors all have one float format (norms and biases are f32).
    pub fn of(spec: ModelSpec, matrices: Format, has_tokenizer: bool) -> Self {
        let is_matrix = |key: &TensorKey| key.shape(&spec).len() == 2;
        let format = |key: &TensorKey| if is_matrix(key) { matrices } else { Format::F32 };
        let formats = TensorKey::all(&spec).into_iter().map(|key| (key, format(&key))).collect();
        Self { spec, has_tokenizer, formats }
    }

    /// Bytes of all tensors, without a file's header and padding.
    pub fn n_bytes(&self) -> u64 {
        let size = |&(key, format): &(TensorKey, Format)| {
            Weight::bytes_for(&key.shape(&self.spec), format).map_or(0, |n| n as u64)
        };
        self.formats.iter().map(size).sum()
    }
}
