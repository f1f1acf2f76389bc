//! Tensors on their way out: converted where that is asked for, and proven finite.

use slmc_blocks::{BlockError, encode_weight, first_non_finite};
use slmc_ir::{Format, SourceError, TensorKey, Weight};

use crate::error::WriteError;

/// Proves that every weight is finite; a damaged scale makes its whole block not.
///
/// # Errors
/// [`SourceError::NotFinite`] with the first weight that is not.
pub fn check_finite(key: TensorKey, weight: &Weight) -> Result<(), SourceError> {
    match first_non_finite(weight) {
        None => Ok(()),
        Some((index, value)) => Err(SourceError::NotFinite { key, index, value }),
    }
}

/// The weight in another format.
pub(crate) fn convert(key: TensorKey, weight: &Weight, format: Format) -> Result<Weight, SourceError> {
    encode_weight(weight, format).map_err(|error| match error {
        BlockError::NotFinite { index, value, .. } => SourceError::NotFinite { key, index, value },
        other => SourceError::Other { key, message: other.to_string() },
    })
}

/// The weight in the format in which it is written, proven finite. `name` is its name in the file.
pub(crate) fn ready(
    key: TensorKey,
    weight: &Weight,
    format: Format,
    name: &str,
) -> Result<Weight, WriteError> {
    let expected = |(index, value)| WriteError::NotFinite { name: name.to_owned(), value, index };
    first_non_finite(weight).map_or(Ok(()), |bad| Err(expected(bad)))?;
    if weight.format() == format {
        return Ok(weight.clone());
    }
    encode_weight(weight, format).map_err(|error| match error {
        BlockError::TooLarge { index, value, format } => {
            WriteError::Overflow { name: name.to_owned(), value, index, format }
        }
        other => SourceError::Other { key, message: other.to_string() }.into(),
    })
}

/// Whether every number of the weight survives the way to `format` and back.
pub(crate) fn is_lossless(key: TensorKey, weight: &Weight, format: Format) -> Result<bool, SourceError> {
    let back = match encode_weight(weight, format) {
        Ok(narrow) => convert(key, &narrow, weight.format())?,
        Err(_) => return Ok(false),
    };
    Ok(back.bytes() == weight.bytes())
}
