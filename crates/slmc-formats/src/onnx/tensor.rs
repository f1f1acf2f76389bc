//! Element types, and how many bytes a tensor has.

/// Element types that decoders are made of (onnx.proto, `TensorProto.DataType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the variants are the types' own names
pub enum ElementType {
    F32,
    U8,
    I8,
    I32,
    I64,
    Bool,
    F16,
    U4,
    I4,
}

impl ElementType {
    const ALL: [Self; 9] =
        [Self::F32, Self::U8, Self::I8, Self::I32, Self::I64, Self::Bool, Self::F16, Self::U4, Self::I4];

    /// Its number in onnx.proto.
    pub const fn code(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Bool => 9,
            Self::F16 => 10,
            Self::U4 => 21,
            Self::I4 => 22,
        }
    }

    /// The type of a number in onnx.proto; `None` for types that slmc does not read.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|element| element.code() == code)
    }

    const fn bits(self) -> u64 {
        match self {
            Self::F32 | Self::I32 => 32,
            Self::I64 => 64,
            Self::F16 => 16,
            Self::U8 | Self::I8 | Self::Bool => 8,
            Self::U4 | Self::I4 => 4,
        }
    }

    /// Bytes of a tensor of this shape: types of 4 bits lie two in a byte, the first one low, and the last byte of an
    /// odd number is padded. `None` when a dimension is negative or the count overflows.
    pub fn bytes_for(self, dims: &[i64]) -> Option<u64> {
        let multiply = |n: u64, &dim: &i64| n.checked_mul(u64::try_from(dim).ok()?);
        let n_elements = dims.iter().try_fold(1_u64, multiply)?;
        Some(n_elements.checked_mul(self.bits())?.div_ceil(8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_sizes() {
        for element in ElementType::ALL {
            assert_eq!(ElementType::from_code(element.code()), Some(element));
        }
        assert_eq!(ElementType::from_code(8), None); // strings
        assert_eq!(ElementType::I4.bytes_for(&[3, 3]), Some(5));
        assert_eq!(ElementType::F16.bytes_for(&[]), Some(2));
        assert_eq!(ElementType::F32.bytes_for(&[i64::MAX, 2]), None);
        assert_eq!(ElementType::F32.bytes_for(&[-1, 2]), None);
    }
}
