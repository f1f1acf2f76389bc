//! Solved tensors on disk: each candidate format's bytes, and a record of what it costs. A block is there once its record
//! is: an interrupted run goes on behind the last.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use slmc_ir::{ChannelOrder, Format, ModelSpec, SourceError, TensorKey, Weight, WeightSource};
use slmc_recipe::StageError;

use super::scales::Found;
use crate::kept;

/// What one format costs one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The format.
    pub format: Format,
    /// Estimated KL divergence that rounding the weights adds, in nats a token; where that is looked at.
    pub kl: Option<f64>,
    /// Estimated KL divergence that a runtime adds which rounds what the weights are multiplied by in blocks of this width;
    /// where that is looked at.
    pub inputs_kl: Option<f64>,
    /// Squared error of the weights over the weights' squares.
    pub relative_error: f64,
    /// Bytes that it takes.
    pub n_bytes: u64,
}

/// A tensor's candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Solved {
    /// The tensor, as reports name it.
    pub tensor: String,
    /// Damping that was used, as a share of the mean diagonal.
    pub damping: f64,
    /// Input channels that were never active.
    pub n_dead: usize,
    /// Whether what its rows have in common was looked at.
    pub couples_rows: bool,
    /// Its candidates.
    pub candidates: Vec<Candidate>,
}

/// The order of channels.
const ORDER: &str = "order.json";

/// The folder.
pub struct Store {
    folder: PathBuf,
}

impl Store {
    pub fn open(folder: PathBuf) -> Result<Self, StageError> {
        let failed = |e: std::io::Error| StageError::Failed(format!("{}: {e}", folder.display()));
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Self { folder })
    }

    /// What was solved of a part of the model, if all of it was.
    pub fn record(&self, part: &str) -> Option<Vec<Solved>> {
        serde_json::from_slice(&std::fs::read(self.folder.join(format!("{part}.json"))).ok()?).ok()
    }

    /// Whether an earlier sitting has left records whose names begin like this.
    pub fn holds(&self, kind: &str) -> bool {
        let is_one = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(kind);
        std::fs::read_dir(&self.folder).is_ok_and(|entries| entries.filter_map(Result::ok).any(is_one))
    }

    /// Says that all of a part is there.
    pub fn finish(&self, part: &str, solved: &[Solved]) -> Result<(), StageError> {
        kept::write_json(&self.folder.join(format!("{part}.json")), &solved)
    }

    /// The order that channels were brought into, if that was done.
    pub fn order(&self) -> Result<Option<ChannelOrder>, StageError> {
        let path = self.folder.join(ORDER);
        path.exists().then(|| kept::read_json(&path)).transpose()
    }

    /// Keeps that order: what is solved is solved in it.
    pub fn keep_order(&self, order: &ChannelOrder) -> Result<(), StageError> {
        kept::write_json(&self.folder.join(ORDER), order)
    }

    /// The scales that were found for a block, if they were.
    pub fn scales(&self, index: usize) -> Option<Found> {
        serde_json::from_slice(&std::fs::read(self.scales_path(index)).ok()?).ok()
    }

    /// Keeps those scales.
    pub fn keep_scales(&self, index: usize, found: &Found) -> Result<(), StageError> {
        kept::write_json(&self.scales_path(index), found)
    }

    fn scales_path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("scales-{index}.json"))
    }

    /// Keeps a candidate's bytes.
    pub fn keep(&self, key: TensorKey, weight: &Weight) -> Result<(), StageError> {
        kept::write(&self.path(key, weight.format()), weight.bytes())
    }

    fn path(&self, key: TensorKey, format: Format) -> PathBuf {
        self.folder.join(format!("{}.{format}", key.to_string().replace(' ', "-")))
    }
}

/// The model with a candidate chosen for each solved tensor.
pub struct Chosen {
    pub inner: Arc<dyn WeightSource>,
    pub store: Arc<Store>,
    /// The solved tensors' formats; all others stay as they are.
    pub formats: BTreeMap<TensorKey, Format>,
}

impl WeightSource for Chosen {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn keys(&self) -> &[TensorKey] {
        self.inner.keys()
    }

    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let Some(&format) = self.formats.get(&key) else { return self.inner.read(key) };
        let path = self.store.path(key, format);
        let other = |message: String| SourceError::Other { key, message };
        let bytes = std::fs::read(&path).map_err(|e| other(format!("{}: {e}", path.display())))?;
        Weight::new(key.shape(self.spec()), format, bytes.into())
            .map_err(|source| SourceError::Weight { key, source })
    }

    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        self.formats.get(&key).map_or_else(|| self.inner.format(key), |format| Ok(*format))
    }
}
