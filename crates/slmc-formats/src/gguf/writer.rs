//! Writes a GGUF: the plan first, then the tensors' bytes in the plan's order.

use std::path::Path;

use slmc_ir::Format;

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgufError, GgufHeader, MAGIC, TensorFault, TensorInfo, VERSION, Value,
    encode, ggml_type_of,
};
use crate::{AtomicFile, shown::shown};

/// ggml's `GGML_MAX_NAME` counts the closing zero, so its loader takes one byte less than the format allows.
const MAX_LOADABLE_NAME_BYTES: usize = 63;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name in the file, at most 63 bytes.
    pub name: String,
    /// 1 to 4 sizes, fastest first: `[columns, rows]`.
    pub dims: Vec<u64>,
    /// Layout of the bytes.
    pub format: Format,
}

/// A GGUF version 3 being written. The file appears under its name with [`GgufWriter::finish`]; dropped
/// before, it leaves nothing.
#[derive(Debug)]
pub struct GgufWriter {
    file: AtomicFile,
    header: GgufHeader,
    n_written: usize,
    n_bytes: u64,
}

impl GgufWriter {
    /// Writes the header. Metadata and tensors keep their order. The alignment is the metadata's
    /// `general.alignment`, or 32.
    ///
    /// # Errors
    /// When the header would not be one that [`GgufHeader::parse`] accepts, a name is longer than
    /// llama.cpp loads, or the file cannot be made.
    pub fn create(
        path: &Path,
        metadata: &[(String, Value)],
        tensors: &[PlannedTensor],
    ) -> Result<Self, GgufError> {
        let bytes = encode_header(metadata, tensors)?;
        // One gate for reading and writing: what is written here is read back with the same checks.
        let header = GgufHeader::parse_in(&bytes, i64::MAX as u64)?;
        let mut file = AtomicFile::create(path)?;
        file.put(&bytes)?;
        let mut writer = Self { file, header, n_written: 0, n_bytes: bytes.len() as u64 };
        writer.pad()?;
        Ok(writer)
    }

    /// The header as a reader will find it: where each tensor goes.
    pub fn header(&self) -> &GgufHeader {
        &self.header
    }

    /// Writes the next planned tensor's bytes.
    ///
    /// # Errors
    /// When their number is not what shape and format call for, every planned tensor is written already,
    /// or the system cannot write.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        let planned = self.header.tensors.len();
        let Some(TensorInfo { name, n_bytes, .. }) = self.header.tensors.get(self.n_written) else {
            return Err(GgufError::TooManyWritten { planned });
        };
        if bytes.len() as u64 != *n_bytes {
            let fault = TensorFault::WrongBytes { expected: *n_bytes, found: bytes.len() as u64 };
            return Err(GgufError::Tensor { name: shown(name), fault });
        }
        self.file.put(bytes)?;
        self.n_written += 1;
        self.n_bytes += bytes.len() as u64;
        self.pad()
    }

    /// Gives the file its name; returns its size in bytes.
    ///
    /// # Errors
    /// When planned tensors are missing or the system cannot write; then no file appears.
    pub fn finish(self) -> Result<u64, GgufError> {
        let planned = self.header.tensors.len();
        if self.n_written < planned {
            return Err(GgufError::Unfinished { written: self.n_written, planned });
        }
        self.file.commit()?;
        Ok(self.n_bytes)
    }

    /// Zeros up to the next multiple of the alignment: after the header and after every tensor.
    fn pad(&mut self) -> Result<(), GgufError> {
        let padded = self.n_bytes.next_multiple_of(self.header.alignment);
        self.file.put(&vec![0; (padded - self.n_bytes) as usize])?;
        self.n_bytes = padded;
        Ok(())
    }
}

fn encode_header(metadata: &[(String, Value)], tensors: &[PlannedTensor]) -> Result<Vec<u8>, GgufError> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        encode::string(key, &mut out);
        encode::value(value, &mut out);
    }
    let alignment = planned_alignment(metadata);
    let mut offset = 0_u64;
    for PlannedTensor { name, dims, format } in tensors {
        let fault = |fault| GgufError::Tensor { name: shown(name), fault };
        if name.len() > MAX_LOADABLE_NAME_BYTES {
            return Err(fault(TensorFault::NameTooLong(name.len())));
        }
        encode::string(name, &mut out);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        let ggml_type = ggml_type_of(*format).ok_or_else(|| fault(TensorFault::NotStored(*format)))?;
        out.extend(ggml_type.to_le_bytes());
        out.extend(offset.to_le_bytes());
        let n_bytes = super::header::bytes_of(dims, *format).map_err(fault)?;
        let end = offset.checked_add(n_bytes).and_then(|end| end.checked_next_multiple_of(alignment));
        offset = end.ok_or_else(|| fault(TensorFault::TooLarge(dims.clone())))?;
    }
    Ok(out)
}

/// The alignment that the metadata ask for; nonsense is left to the reader's gate to refuse.
fn planned_alignment(metadata: &[(String, Value)]) -> u64 {
    let asked = metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY).and_then(|(_, value)| value.as_u64());
    asked.filter(|&n| n > 0).unwrap_or(DEFAULT_ALIGNMENT)
}
