//! Everything before the tensor data, proven sound against the file it stands in.

use std::{collections::BTreeSet, ops::Range};

use slmc_ir::Format;

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgufError, MAGIC, MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_METADATA,
    MAX_NAME_BYTES, MAX_TENSORS, TensorFault, VERSION, Value, cursor::Cursor, format_of_ggml_type,
    types::ggml_type_name,
};
use crate::shown::shown;

/// The header of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufHeader {
    /// 2 or 3.
    pub version: u32,
    /// Tensor data begin at multiples of this, a power of two.
    pub alignment: u64,
    /// Keys and values in the order of the file; no key is there twice.
    pub metadata: Vec<(String, Value)>,
    /// Tensors in the order of the file; no name is there twice, none overlap.
    pub tensors: Vec<TensorInfo>,
    /// Where tensor data begin, in bytes from the start of the file.
    pub data_start: u64,
}

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// 1 to 4 sizes, fastest first: `[columns, rows]`. None is 0.
    pub dims: Vec<u64>,
    /// Layout of the numbers; `dims[0]` is whole blocks of it.
    pub format: Format,
    /// Bytes from [`GgufHeader::data_start`].
    pub offset: u64,
    /// Bytes that shape and format call for.
    pub n_bytes: u64,
}

impl GgufHeader {
    /// Reads the header of a whole file and proves that every tensor lies inside it.
    ///
    /// # Errors
    /// For anything that the format does not allow or that exceeds slmc's limits; see [`GgufError`].
    pub fn parse(file: &[u8]) -> Result<Self, GgufError> {
        Self::parse_in(file, file.len() as u64)
    }

    /// Reads a header that begins a file of `file_bytes`, of which `bytes` may be only the start.
    pub(super) fn parse_in(bytes: &[u8], file_bytes: u64) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes);
        let version = read_version(&mut cursor)?;
        let n_tensors = cursor.count(MAX_TENSORS, &"the number of tensors")?;
        let n_metadata = cursor.count(MAX_METADATA, &"the number of metadata entries")?;
        let metadata = read_metadata(&mut cursor, n_metadata)?;
        let alignment = alignment_of(&metadata)?;
        let tensors = read_tensors(&mut cursor, n_tensors)?;
        let data_start = cursor.offset().next_multiple_of(alignment);
        check_places(&tensors, data_start, alignment, file_bytes)?;
        Ok(Self { version, alignment, metadata, tensors, data_start })
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Where one of this header's tensors lies in the file: inside it, as `parse` has proven.
    pub fn tensor_range(&self, tensor: &TensorInfo) -> Range<usize> {
        // For parsed tensors nothing saturates and nothing is cut: the end is at most the length of a slice.
        let start = self.data_start.saturating_add(tensor.offset);
        start as usize..start.saturating_add(tensor.n_bytes) as usize
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let found = cursor.take(4, &"the magic")?;
    if found != MAGIC {
        return Err(GgufError::NotGguf { found: found.to_vec() });
    }
    match cursor.u32(&"the version")? {
        version @ 2..=VERSION => Ok(version),
        version if matches!(version.swap_bytes(), 1..=VERSION) => Err(GgufError::BigEndian),
        version => Err(GgufError::Version(version)),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, n: u64) -> Result<Vec<(String, Value)>, GgufError> {
    let mut metadata = Vec::new();
    let mut keys = BTreeSet::new();
    for i in 0..n {
        let key = cursor.name(MAX_KEY_BYTES, &format_args!("metadata key {i}"))?;
        if !keys.insert(key) {
            return Err(GgufError::DuplicateKey { key: shown(key) });
        }
        let value = cursor.value(&format_args!("metadata `{}`", Shown(key)))?;
        metadata.push((key.to_owned(), value));
    }
    Ok(metadata)
}

/// Defers the work of [`shown`] to when an error is printed.
struct Shown<'a>(&'a str);
impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(self.0))
    }
}

fn alignment_of(metadata: &[(String, Value)]) -> Result<u64, GgufError> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(n))) if n.is_power_of_two() && u64::from(*n) <= MAX_ALIGNMENT => Ok((*n).into()),
        Some((_, Value::U32(n))) => Err(GgufError::Alignment { found: n.to_string() }),
        Some((_, other)) => Err(GgufError::Alignment { found: format!("of value type {}", other.type_id()) }),
    }
}

fn read_tensors(cursor: &mut Cursor<'_>, n: u64) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = Vec::new();
    let mut names = BTreeSet::new();
    for i in 0..n {
        let name = cursor.name(MAX_NAME_BYTES, &format_args!("name of tensor {i}"))?;
        if !names.insert(name) {
            return Err(GgufError::Tensor { name: shown(name), fault: TensorFault::Duplicate });
        }
        tensors.push(read_tensor(cursor, name)?);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<'_>, name: &str) -> Result<TensorInfo, GgufError> {
    let what = format_args!("tensor `{}`", Shown(name));
    let fault = |fault| GgufError::Tensor { name: shown(name), fault };
    let n_dims = cursor.u32(&what)?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(fault(TensorFault::Dimensions(n_dims)));
    }
    let dims = (0..n_dims).map(|_| cursor.u64(&what)).collect::<Result<Vec<_>, _>>()?;
    let id = cursor.u32(&what)?;
    let offset = cursor.u64(&what)?;
    let Some(format) = format_of_ggml_type(id) else {
        return Err(fault(TensorFault::Type { id, name: ggml_type_name(id) }));
    };
    let n_bytes = bytes_of(&dims, format).map_err(fault)?;
    Ok(TensorInfo { name: name.to_owned(), dims, format, offset, n_bytes })
}

/// Bytes of a tensor, when it has dimensions, rows are whole blocks and the count fits.
pub(super) fn bytes_of(dims: &[u64], format: Format) -> Result<u64, TensorFault> {
    if dims.is_empty() || dims.len() > MAX_DIMS as usize {
        return Err(TensorFault::Dimensions(dims.len() as u32));
    }
    if dims.contains(&0) {
        return Err(TensorFault::EmptyDimension(dims.to_vec()));
    }
    let block = format.block_weights() as u64;
    if !dims[0].is_multiple_of(block) {
        return Err(TensorFault::PartialBlock { columns: dims[0], format });
    }
    let n_blocks = dims[1..].iter().try_fold(dims[0] / block, |n, &dim| n.checked_mul(dim));
    let n_bytes = n_blocks.and_then(|n| n.checked_mul(format.block_bytes() as u64));
    n_bytes.ok_or_else(|| TensorFault::TooLarge(dims.to_vec()))
}

/// Proves that tensors are aligned, inside the file and apart from each other.
fn check_places(
    tensors: &[TensorInfo],
    data_start: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), GgufError> {
    for TensorInfo { name, offset, n_bytes, .. } in tensors {
        let end = u128::from(data_start) + u128::from(*offset) + u128::from(*n_bytes);
        let fault = if !offset.is_multiple_of(alignment) {
            TensorFault::Misaligned { offset: *offset, alignment }
        } else if end > u128::from(file_bytes) {
            TensorFault::OutsideFile { end, file_bytes }
        } else {
            continue;
        };
        return Err(GgufError::Tensor { name: shown(name), fault });
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].n_bytes > pair[1].offset {
            return Err(GgufError::Overlap { first: shown(&pair[0].name), second: shown(&pair[1].name) });
        }
    }
    Ok(())
}
