//! The kinds of numbers that a tensor may hold.

use slmc_ir::Format;

/// A tensor's number type: floats, which every model has, and the integers that packed weights lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// F32, F16 or BF16.
    Float(FloatType),
    /// Bytes.
    U8,
    /// 32 bits, signed.
    I32,
    /// 64 bits, signed.
    I64,
}

/// One of the float formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the variants are the formats' own names
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Float(FloatType::F32),
        Self::Float(FloatType::F16),
        Self::Float(FloatType::Bf16),
        Self::U8,
        Self::I32,
        Self::I64,
    ];

    /// Its name in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float(FloatType::F32) => "F32",
            Self::Float(FloatType::F16) => "F16",
            Self::Float(FloatType::Bf16) => "BF16",
            Self::U8 => "U8",
            Self::I32 => "I32",
            Self::I64 => "I64",
        }
    }

    /// Bytes of one number.
    pub const fn n_bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Float(FloatType::F16 | FloatType::Bf16) => 2,
            Self::Float(FloatType::F32) | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// The float format; `None` for integers.
    pub const fn format(self) -> Option<Format> {
        match self {
            Self::Float(FloatType::F32) => Some(Format::F32),
            Self::Float(FloatType::F16) => Some(Format::F16),
            Self::Float(FloatType::Bf16) => Some(Format::Bf16),
            Self::U8 | Self::I32 | Self::I64 => None,
        }
    }

    /// The type of a float format; `None` for packed ones.
    pub const fn of(format: Format) -> Option<Self> {
        match format {
            Format::F32 => Some(Self::Float(FloatType::F32)),
            Format::F16 => Some(Self::Float(FloatType::F16)),
            Format::Bf16 => Some(Self::Float(FloatType::Bf16)),
            _ => None,
        }
    }

    /// The type of a name in a header.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}
