//! How the numbers of a tensor are laid out in bytes.

use serde::{Deserialize, Serialize};

/// A storage format: plain floats, or blocks of packed levels with their scales.
///
/// The layouts are ggml's (`ggml-common.h`), but for NF4, which is ours; `slmc-blocks` encodes and decodes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the variants are the formats' own names
pub enum Format {
    F32,
    F16,
    Bf16,
    #[serde(rename = "q4_0")]
    Q4_0,
    #[serde(rename = "q4_1")]
    Q4_1,
    #[serde(rename = "q5_0")]
    Q5_0,
    #[serde(rename = "q5_1")]
    Q5_1,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q2_k")]
    Q2K,
    #[serde(rename = "q3_k")]
    Q3K,
    #[serde(rename = "q4_k")]
    Q4K,
    #[serde(rename = "q5_k")]
    Q5K,
    #[serde(rename = "q6_k")]
    Q6K,
    #[serde(rename = "iq4_nl")]
    Iq4Nl,
    #[serde(rename = "iq4_xs")]
    Iq4Xs,
    Mxfp4,
    /// QLoRA's NormalFloat: in memory only, no file holds it.
    Nf4,
}

impl Format {
    /// Every format, in the order of the enum.
    pub const ALL: [Self; 17] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Nf4,
    ];

    /// Those that files hold, in the order of the enum.
    pub fn stored() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|format| format.is_stored())
    }

    /// Lower-case name, as recipes and the command line write it: `q4_0`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
            Self::Mxfp4 => "mxfp4",
            Self::Nf4 => "nf4",
        }
    }

    /// Weights in one block: 1 for floats, 32, 64 or 256 for packed formats. A row is a whole number of blocks.
    pub const fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl | Self::Mxfp4 => 32,
            Self::Nf4 => 64,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 | Self::Nf4 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
            Self::Mxfp4 => 17,
        }
    }

    /// Stored bits a weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_weights() as f64
    }

    /// Whether a weight is stored as a plain float.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Whether files hold it.
    pub const fn is_stored(self) -> bool {
        !matches!(self, Self::Nf4)
    }

    /// Bytes of `n_weights` weights, or `None` when they are not whole blocks or the count overflows.
    pub fn bytes_for(self, n_weights: usize) -> Option<usize> {
        if !n_weights.is_multiple_of(self.block_weights()) {
            return None;
        }
        (n_weights / self.block_weights()).checked_mul(self.block_bytes())
    }
}

/// A format's name that slmc does not know.
#[derive(Debug, thiserror::Error)]
#[error(
    "unknown format `{0}`: the formats are f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k … q6_k iq4_nl iq4_xs mxfp4"
)]
pub struct UnknownFormat(pub String);

impl std::str::FromStr for Format {
    type Err = UnknownFormat;
    /// Reads a name in either case: `q4_0`, `Q4_0`.
    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let lower = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|f| f.name() == lower).ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for format in Format::ALL {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
            assert_eq!(format.name().to_uppercase().parse::<Format>().unwrap(), format);
        }
        assert!("q4_2".parse::<Format>().is_err());
    }

    #[test]
    fn part_of_a_block_has_no_size() {
        assert_eq!(Format::Q4_0.bytes_for(64), Some(36));
        assert_eq!(Format::Q4_0.bytes_for(33), None);
        assert_eq!(Format::F32.bytes_for(usize::MAX), None);
    }
}
