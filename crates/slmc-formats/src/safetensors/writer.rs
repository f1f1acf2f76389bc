//! Writes a safetensors file: the plan first, then the tensors' bytes in the plan's order.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use slmc_ir::Format;

use super::{
    DataFault, Dtype, LENGTH_BYTES, MAX_DIMS, MAX_HEADER_BYTES, MAX_NAME_BYTES, METADATA_KEY,
    SafetensorsError, header::bytes_of,
};
use crate::{AtomicFile, shown::shown};

/// The header is padded with spaces, so that data begin at multiples of this.
const HEADER_ALIGNMENT: usize = 8;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSafeTensor {
    /// Its name in the file.
    pub name: String,
    /// F32, F16 or BF16.
    pub format: Format,
    /// Sizes, fastest last: `[rows, columns]`.
    pub shape: Vec<usize>,
}

/// A tensor to be written, integers included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTypedTensor {
    /// Its name in the file.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Sizes, fastest last: `[rows, columns]`.
    pub shape: Vec<usize>,
}

/// A safetensors file being written. It appears under its name with [`SafetensorsWriter::finish`];
/// dropped before, it leaves nothing.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: AtomicFile,
    /// Name and bytes of each planned tensor.
    planned: Vec<(String, u64)>,
    n_written: usize,
    n_bytes: u64,
}

impl SafetensorsWriter {
    /// As [`SafetensorsWriter::create_typed`], of floats only.
    ///
    /// # Errors
    /// As there, and [`SafetensorsError::NoDtype`] for a packed format.
    pub fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        tensors: &[PlannedSafeTensor],
    ) -> Result<Self, SafetensorsError> {
        let typed = |PlannedSafeTensor { name, format, shape }: &PlannedSafeTensor| match Dtype::of(*format) {
            Some(dtype) => Ok(PlannedTypedTensor { name: name.clone(), dtype, shape: shape.clone() }),
            None => Err(SafetensorsError::NoDtype { name: shown(name), format: *format }),
        };
        Self::create_typed(path, metadata, &tensors.iter().map(typed).collect::<Result<Vec<_>, _>>()?)
    }

    /// Writes the header. Data are laid out in the plan's order without gaps.
    ///
    /// # Errors
    /// When the header would not be one that [`super::TypedHeader::parse`] accepts, or the file cannot be made.
    pub fn create_typed(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        tensors: &[PlannedTypedTensor],
    ) -> Result<Self, SafetensorsError> {
        let (json, planned) = encode_header(metadata, tensors)?;
        let mut file = AtomicFile::create(path)?;
        file.put(&(json.len() as u64).to_le_bytes())?;
        file.put(&json)?;
        Ok(Self { file, planned, n_written: 0, n_bytes: (LENGTH_BYTES + json.len()) as u64 })
    }

    /// Writes the next planned tensor's bytes, little-endian.
    ///
    /// # Errors
    /// When their number is not what shape and format call for, every planned tensor is written already,
    /// or the system cannot write.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<(), SafetensorsError> {
        let Some((name, expected)) = self.planned.get(self.n_written) else {
            return Err(SafetensorsError::TooManyWritten { planned: self.planned.len() });
        };
        let (expected, found) = (*expected, bytes.len() as u64);
        if found != expected {
            let fault = DataFault::WrongBytes { expected, found };
            return Err(SafetensorsError::Tensor { name: shown(name), fault });
        }
        self.file.put(bytes)?;
        self.n_written += 1;
        self.n_bytes += found;
        Ok(())
    }

    /// Gives the file its name; returns its size in bytes.
    ///
    /// # Errors
    /// When planned tensors are missing or the system cannot write; then no file appears.
    pub fn finish(self) -> Result<u64, SafetensorsError> {
        let planned = self.planned.len();
        if self.n_written < planned {
            return Err(SafetensorsError::Unfinished { written: self.n_written, planned });
        }
        self.file.commit()?;
        Ok(self.n_bytes)
    }
}

/// The padded JSON, and name and bytes of each tensor.
type Encoded = (Vec<u8>, Vec<(String, u64)>);

fn encode_header(
    metadata: &BTreeMap<String, String>,
    tensors: &[PlannedTypedTensor],
) -> Result<Encoded, SafetensorsError> {
    let mut members = Vec::new();
    if !metadata.is_empty() {
        let map = serde_json::to_string(metadata).map_err(SafetensorsError::Json)?;
        members.push(format!("\"{METADATA_KEY}\":{map}"));
    }
    let mut planned = Vec::with_capacity(tensors.len());
    let mut names = BTreeSet::from([METADATA_KEY]);
    let mut start = 0_u64;
    for PlannedTypedTensor { name, dtype, shape } in tensors {
        let fault = |fault| SafetensorsError::Tensor { name: shown(name), fault };
        let sizes: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(SafetensorsError::NameLength { found: name.len(), limit: MAX_NAME_BYTES });
        }
        if !names.insert(name) {
            return Err(fault(DataFault::Duplicate));
        }
        if sizes.len() > MAX_DIMS {
            return Err(fault(DataFault::Dimensions { found: sizes.len(), limit: MAX_DIMS }));
        }
        let too_large = || fault(DataFault::TooLarge(sizes.clone()));
        let (_, n_bytes) = bytes_of(&sizes, *dtype).ok_or_else(too_large)?;
        let end = start.checked_add(n_bytes).ok_or_else(too_large)?;
        let key = serde_json::to_string(name).map_err(SafetensorsError::Json)?;
        members.push(format!(
            "{key}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{start},{end}]}}",
            dtype.name(),
            serde_json::to_string(shape).map_err(SafetensorsError::Json)?
        ));
        planned.push((name.clone(), n_bytes));
        start = end;
    }
    let mut json = format!("{{{}}}", members.join(",")).into_bytes();
    json.resize(json.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(SafetensorsError::HeaderTooLong { found: json.len() as u64, limit: MAX_HEADER_BYTES });
    }
    Ok((json, planned))
}
