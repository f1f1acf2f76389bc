//! Hugging Face folders whose matrices are packed: GPTQ, AWQ and compressed-tensors.
//!
//! All three hold the same numbers, those of a [`Quantized`], each in an order of its own. A layout is a table of the
//! tensors that stand for a matrix ([`PackedScheme::tensors`]), and their bytes both ways. One scheme holds for the
//! whole file; matrices that are not packed stay floats and are named in the configuration.

mod awq;
mod compressed;
mod config_read;
mod config_write;
mod gptq;
mod limits;
mod source;
mod words;

use bytes::Bytes;
use slmc_formats::Dtype;
use slmc_ir::{Quantized, QuantizedParts};

pub(crate) use config_read::read_scheme;
pub(crate) use config_write::quantization_config;
pub(crate) use limits::fused_roles;
pub use limits::{Runtime, runtime_limits};
pub(crate) use source::{Module, PackedSource, module_name};

/// An order of packed numbers in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedLayout {
    /// GPTQ as AutoGPTQ began it (`checkpoint_format: gptq`): zero points are stored less one.
    Gptq,
    /// GPTQ with zero points as they are (`checkpoint_format: gptq_v2`).
    GptqV2,
    /// AWQ, version `gemm`.
    Awq,
    /// compressed-tensors, format `pack-quantized`.
    CompressedTensors,
}

impl PackedLayout {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gptq, Self::GptqV2, Self::Awq, Self::CompressedTensors];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::GptqV2 => "gptq_v2",
            Self::Awq => "awq",
            Self::CompressedTensors => "compressed-tensors",
        }
    }
}

impl std::fmt::Display for PackedLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How all packed matrices of a file are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedScheme {
    /// The order of the numbers.
    pub layout: PackedLayout,
    /// Bits of a level.
    pub bits: u8,
    /// Columns that share a scale; `None` is a whole row.
    pub group_size: Option<usize>,
    /// Whether every zero point is the middle level.
    pub symmetric: bool,
    /// Whether columns were cut into groups in another order than their own (act-order).
    pub column_order: bool,
}

/// Matrices that a layout cannot hold, or packed tensors that are no matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum PackError {
    #[error("{layout} files hold levels of {known} bits, not {bits}")]
    Bits { layout: PackedLayout, bits: u8, known: &'static str },
    #[error("{what} {found} is not a multiple of {factor}, as {layout} needs")]
    Multiple { layout: PackedLayout, what: &'static str, found: usize, factor: usize },
    #[error("{0} files have no column order (act-order); use gptq, or quantize with the columns as they are")]
    ColumnOrder(PackedLayout),
    #[error(
        "zero point {index} is 0, which files of the layout gptq cannot say (they store one less); use gptq_v2"
    )]
    ZeroPoint { index: usize },
    #[error("`g_idx` of column {column} is {found}: {why}")]
    GroupIndex { column: usize, found: i64, why: &'static str },
    #[error("{0}")]
    Quantized(#[from] slmc_ir::QuantizedError),
}

/// One tensor that stands for a part of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackedTensor {
    /// What its name ends in, after the module's name and a dot.
    pub suffix: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl PackedTensor {
    fn new(suffix: &'static str, dtype: Dtype, shape: &[usize]) -> Self {
        Self { suffix, dtype, shape: shape.to_vec() }
    }
}

/// Rows and columns of a matrix.
type Size = (usize, usize);

impl PackedScheme {
    /// Columns that share a scale, in a matrix of so many columns.
    pub fn group_size_of(&self, columns: usize) -> usize {
        self.group_size.unwrap_or(columns).max(1)
    }

    fn n_groups(&self, columns: usize) -> usize {
        columns.div_ceil(self.group_size_of(columns))
    }

    /// The tensors that stand for a matrix, scales as `scale`.
    ///
    /// # Errors
    /// When the layout has no way to hold a matrix of that size.
    pub(crate) fn tensors(&self, size: Size, scale: Dtype) -> Result<Vec<PackedTensor>, PackError> {
        match self.layout {
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::tensors(self, size),
            PackedLayout::Awq => awq::tensors(self, size),
            PackedLayout::CompressedTensors => compressed::tensors(self, size, scale),
        }
    }

    /// The bytes of these tensors.
    pub(crate) fn pack(&self, matrix: &Quantized) -> Result<Vec<Vec<u8>>, PackError> {
        match self.layout {
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::pack(self, matrix),
            PackedLayout::Awq => Ok(awq::pack(matrix)),
            PackedLayout::CompressedTensors => Ok(compressed::pack(self, matrix)),
        }
    }

    /// The numbers in these tensors, scales left as they are in `scale`'s type.
    fn unpack(&self, size: Size, tensors: &[Bytes], scale: Dtype) -> Result<QuantizedParts, PackError> {
        match self.layout {
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::unpack(self, size, tensors),
            PackedLayout::Awq => Ok(awq::unpack(self, size, tensors)),
            PackedLayout::CompressedTensors => Ok(compressed::unpack(self, size, tensors, scale)),
        }
    }

    /// The zero points in these tensors, without the rest.
    fn zero_points(&self, size: Size, tensors: &[Bytes]) -> Result<Vec<u8>, PackError> {
        match self.layout {
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::zero_points(self, size, tensors),
            PackedLayout::Awq => Ok(awq::zero_points(self, size, tensors)),
            PackedLayout::CompressedTensors => Ok(compressed::zero_points(self, size, tensors)),
        }
    }

    fn check_bits(&self, known: &'static str, bits: &[u8]) -> Result<(), PackError> {
        let Self { layout, bits: found, .. } = *self;
        if bits.contains(&found) { Ok(()) } else { Err(PackError::Bits { layout, bits: found, known }) }
    }

    fn check_multiple(&self, what: &'static str, found: usize, factor: usize) -> Result<(), PackError> {
        if found.is_multiple_of(factor) {
            return Ok(());
        }
        Err(PackError::Multiple { layout: self.layout, what, found, factor })
    }
}

/// The level that stands for 0 in a symmetric file.
const fn middle(bits: u8) -> u8 {
    1 << (bits - 1)
}
