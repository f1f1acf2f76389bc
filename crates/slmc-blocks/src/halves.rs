//! Where blocks keep the f16 numbers that all their weights are multiples of: what can be changed without taking a block
//! apart.

use slmc_ir::Format;

/// Byte offsets of a block's own scale and minimum, both f16.
///
/// A weight is `scale * a + min * b`, where `a` is what its level and its group's scale make, and `b` is 1 ([Q4_1,
/// Q5_1](crate::PartsLayout)) or minus the group's minimum (formats whose groups have minimums).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHalves {
    /// Offset of the scale.
    pub scale: usize,
    /// Offset of the minimum, where there is one.
    pub min: Option<usize>,
}

impl BlockHalves {
    /// Of a packed format; `None` for plain floats and for MXFP4, whose scale is a power of two.
    pub const fn of(format: Format) -> Option<Self> {
        let (scale, min) = match format {
            Format::F32 | Format::F16 | Format::Bf16 | Format::Mxfp4 => return None,
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs | Format::Nf4 => {
                (0, None)
            }
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => (0, Some(2)),
            Format::Q2K => (80, Some(82)),
            Format::Q3K => (108, None),
            Format::Q6K => (208, None),
        };
        Some(Self { scale, min })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack;

    #[test]
    fn they_are_the_parts_of_the_block() {
        for format in Format::ALL.into_iter().filter(|&format| BlockHalves::of(format).is_some()) {
            let halves = BlockHalves::of(format).unwrap();
            let block: Vec<u8> = (0..format.block_bytes()).map(|i| (i * 73 + 41) as u8).collect();
            let parts = unpack(format, &block).unwrap();
            let at = |offset: usize| u16::from_le_bytes([block[offset], block[offset + 1]]);
            assert_eq!(at(halves.scale), parts.scale, "{format}");
            assert_eq!(halves.min.map_or(0, at), parts.min, "{format}");
        }
    }
}
