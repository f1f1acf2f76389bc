//! The JSON header of one file, proven sound against the file it stands in.

use std::{collections::BTreeMap, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use slmc_ir::Format;

use super::{
    DataFault, Dtype, LENGTH_BYTES, MAX_DIMS, MAX_HEADER_BYTES, MAX_NAME_BYTES, METADATA_KEY,
    SafetensorsError,
};
use crate::{
    json::{UniqueMap, duplicate, insert_unique},
    shown::shown,
};

/// The header of a safetensors file that holds floats only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// Tensors in the order of their data.
    pub tensors: Vec<SafeTensorInfo>,
    /// `__metadata__`: free text by key, such as `format: pt`.
    pub metadata: BTreeMap<String, String>,
}

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafeTensorInfo {
    /// Its name in the file.
    pub name: String,
    /// F32, F16 or BF16.
    pub format: Format,
    /// Sizes, fastest last: `[rows, columns]`; empty for a single number. A size may be 0.
    pub shape: Vec<usize>,
    /// Its bytes in the file: inside it, as `parse` has proven.
    pub range: Range<usize>,
}

/// The header of a safetensors file, packed weights included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedHeader {
    /// Tensors in the order of their data.
    pub tensors: Vec<TypedTensorInfo>,
    /// `__metadata__`: free text by key, such as `format: pt`.
    pub metadata: BTreeMap<String, String>,
}

/// Where a tensor is and what it holds, integers included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedTensorInfo {
    /// Its name in the file.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Sizes, fastest last: `[rows, columns]`; empty for a single number. A size may be 0.
    pub shape: Vec<usize>,
    /// Its bytes in the file: inside it, as `parse` has proven.
    pub range: Range<usize>,
}

impl SafetensorsHeader {
    /// As [`TypedHeader::parse`], of floats only.
    ///
    /// # Errors
    /// As there, and [`SafetensorsError::UnsupportedDtype`] for integers.
    pub fn parse(file: &[u8]) -> Result<Self, SafetensorsError> {
        let TypedHeader { tensors, metadata } = TypedHeader::parse(file)?;
        let float = |TypedTensorInfo { name, dtype, shape, range }: TypedTensorInfo| match dtype.format() {
            Some(format) => Ok(SafeTensorInfo { name, format, shape, range }),
            None => {
                Err(SafetensorsError::UnsupportedDtype { name: shown(&name), dtype: dtype.name().to_owned() })
            }
        };
        Ok(Self { tensors: tensors.into_iter().map(float).collect::<Result<_, _>>()?, metadata })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&SafeTensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

impl TypedHeader {
    /// Reads the header of a whole file and proves that its tensors fill the data without gap or overlap.
    ///
    /// # Errors
    /// For anything that the format does not allow or that exceeds slmc's limits; see [`SafetensorsError`].
    pub fn parse(file: &[u8]) -> Result<Self, SafetensorsError> {
        let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(SafetensorsError::TooShort(file.len()));
        };
        let header_bytes = u64::from_le_bytes(*length);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(SafetensorsError::HeaderTooLong { found: header_bytes, limit: MAX_HEADER_BYTES });
        }
        let Some((json, data)) = rest.split_at_checked(header_bytes as usize) else {
            return Err(SafetensorsError::Truncated { header_bytes, file_bytes: file.len() as u64 });
        };
        // The format forbids white space before the object, so that readers agree where it begins.
        if json.first() != Some(&b'{') {
            return Err(SafetensorsError::NotAnObject);
        }
        let Object { metadata, entries } = serde_json::from_slice(json).map_err(SafetensorsError::Json)?;
        let mut placed = entries.into_iter().map(check_entry).collect::<Result<Vec<_>, _>>()?;
        placed.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
        check_places(&placed, data.len() as u64)?;
        let data_start = LENGTH_BYTES + json.len();
        let tensors = placed.into_iter().map(|tensor| tensor.at(data_start)).collect();
        Ok(Self { tensors, metadata })
    }
}

/// A tensor whose size fits its shape; where its data are is not checked yet.
struct Placed {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    end: u64,
}

impl Placed {
    fn at(self, data_start: usize) -> TypedTensorInfo {
        let Self { name, dtype, shape, start, end } = self;
        // Both ends are at most the length of the data, a slice: they fit and the sums do not overflow.
        TypedTensorInfo { name, dtype, shape, range: data_start + start as usize..data_start + end as usize }
    }
}

fn check_entry((name, entry): (String, Entry)) -> Result<Placed, SafetensorsError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(SafetensorsError::NameLength { found: name.len(), limit: MAX_NAME_BYTES });
    }
    let Entry { dtype, shape, data_offsets: (start, end) } = entry;
    let Some(dtype) = Dtype::named(&dtype) else {
        return Err(SafetensorsError::UnsupportedDtype { name: shown(&name), dtype: shown(&dtype) });
    };
    let fault = |fault| SafetensorsError::Tensor { name: shown(&name), fault };
    let Some(found) = end.checked_sub(start) else {
        return Err(fault(DataFault::Backwards { start, end }));
    };
    let (shape, expected) =
        bytes_of(&shape, dtype).ok_or_else(|| fault(DataFault::TooLarge(shape.clone())))?;
    if found != expected {
        return Err(fault(DataFault::WrongBytes { expected, found }));
    }
    Ok(Placed { name, dtype, shape, start, end })
}

/// The shape in this machine's numbers, and its bytes. No product of sizes may overflow, whatever the
/// order of multiplication: a 0 excuses nothing.
pub(super) fn bytes_of(shape: &[u64], dtype: Dtype) -> Option<(Vec<usize>, u64)> {
    let sizes = shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>()?;
    let ceiling = sizes.iter().try_fold(dtype.n_bytes(), |n, &size| n.checked_mul(size.max(1)))?;
    let n_bytes = if sizes.contains(&0) { 0 } else { ceiling };
    Some((sizes, n_bytes as u64))
}

/// Proves that data in order of their offsets follow one another from the first byte to the last.
fn check_places(placed: &[Placed], data_bytes: u64) -> Result<(), SafetensorsError> {
    let mut expected = 0;
    for Placed { name, start, end, .. } in placed {
        let fault = if *start != expected {
            DataFault::NotContiguous { expected, found: *start }
        } else if *end > data_bytes {
            DataFault::OutsideFile { end: *end, data_bytes }
        } else {
            expected = *end;
            continue;
        };
        return Err(SafetensorsError::Tensor { name: shown(name), fault });
    }
    if expected != data_bytes {
        return Err(SafetensorsError::DataLength { end: expected, data_bytes });
    }
    Ok(())
}

/// The JSON object as it stands.
struct Object {
    metadata: BTreeMap<String, String>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    #[serde(deserialize_with = "short_list")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A shape, given up as soon as it has too many sizes: `0,` takes four times its bytes once parsed.
fn short_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct ShapeVisitor;
    impl<'de> Visitor<'de> for ShapeVisitor {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_DIMS} sizes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<u64>, A::Error> {
            let mut sizes = Vec::with_capacity(MAX_DIMS);
            while let Some(size) = access.next_element()? {
                if sizes.len() == MAX_DIMS {
                    return Err(Error::invalid_length(MAX_DIMS + 1, &self));
                }
                sizes.push(size);
            }
            Ok(sizes)
        }
    }
    deserializer.deserialize_seq(ShapeVisitor)
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
        let mut metadata = None;
        let mut entries = BTreeMap::new();
        while let Some(name) = access.next_key::<String>()? {
            if name == METADATA_KEY {
                let UniqueMap(map) =
                    access.next_value().map_err(|e| Error::custom(format!("`{METADATA_KEY}`: {e}")))?;
                if metadata.replace(map).is_some() {
                    return Err(duplicate(METADATA_KEY));
                }
                continue;
            }
            let entry = access
                .next_value::<Entry>()
                .map_err(|e| Error::custom(format!("tensor `{}`: {e}", shown(&name))))?;
            insert_unique(&mut entries, name, entry)?;
        }
        Ok(Object { metadata: metadata.unwrap_or_default(), entries })
    }
}
