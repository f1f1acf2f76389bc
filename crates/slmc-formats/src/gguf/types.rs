//! ggml's numbers for the formats: `ggml_type` of a tensor, `llama_ftype` of a whole file.

use slmc_ir::Format;

/// `enum ggml_type` (`ggml.h`), for the formats that slmc knows.
const GGML_TYPES: [(Format, u32); 16] = [
    (Format::F32, 0),
    (Format::F16, 1),
    (Format::Bf16, 30),
    (Format::Q4_0, 2),
    (Format::Q4_1, 3),
    (Format::Q5_0, 6),
    (Format::Q5_1, 7),
    (Format::Q8_0, 8),
    (Format::Q2K, 10),
    (Format::Q3K, 11),
    (Format::Q4K, 12),
    (Format::Q5K, 13),
    (Format::Q6K, 14),
    (Format::Iq4Nl, 20),
    (Format::Iq4Xs, 23),
    (Format::Mxfp4, 39),
];

/// `enum llama_ftype` (`llama.h`): what most of a file's tensors are. K formats map to their `_S`
/// mixes, which are the plain ones.
const FILE_TYPES: [(Format, u32); 16] = [
    (Format::F32, 0),
    (Format::F16, 1),
    (Format::Bf16, 32),
    (Format::Q4_0, 2),
    (Format::Q4_1, 3),
    (Format::Q5_0, 8),
    (Format::Q5_1, 9),
    (Format::Q8_0, 7),
    (Format::Q2K, 10),
    (Format::Q3K, 11),
    (Format::Q4K, 14),
    (Format::Q5K, 16),
    (Format::Q6K, 18),
    (Format::Iq4Nl, 25),
    (Format::Iq4Xs, 30),
    (Format::Mxfp4, 38),
];

/// The `_M` and `_L` mixes, by the format of most of their weights.
const MIXED_FILE_TYPES: [(Format, u32); 5] =
    [(Format::Q3K, 12), (Format::Q3K, 13), (Format::Q4K, 15), (Format::Q5K, 17), (Format::Q2K, 21)];

/// The format that a `ggml_type` stands for, or `None` when slmc does not read it.
pub fn format_of_ggml_type(id: u32) -> Option<Format> {
    GGML_TYPES.iter().find(|(_, number)| *number == id).map(|(format, _)| *format)
}

/// The `ggml_type` of a format, or `None` for one that no file holds.
pub fn ggml_type_of(format: Format) -> Option<u32> {
    number_of(&GGML_TYPES, format)
}

/// `general.file_type` of a file whose matrices are in this format, or `None` for one that no file holds.
pub fn file_type_of(format: Format) -> Option<u32> {
    number_of(&FILE_TYPES, format)
}

/// The format that `general.file_type` says most of the file is in.
pub fn format_of_file_type(id: u32) -> Option<Format> {
    FILE_TYPES.iter().chain(&MIXED_FILE_TYPES).find(|(_, number)| *number == id).map(|(format, _)| *format)
}

fn number_of(table: &[(Format, u32)], format: Format) -> Option<u32> {
    table.iter().find(|(other, _)| *other == format).map(|(_, number)| *number)
}

/// Names of the types that are not read, for the message.
pub(super) fn ggml_type_name(id: u32) -> &'static str {
    match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_that_files_hold_has_its_numbers() {
        for format in Format::ALL {
            let stored = Some(format).filter(|format| format.is_stored());
            assert_eq!(ggml_type_of(format).and_then(format_of_ggml_type), stored);
            assert_eq!(file_type_of(format).and_then(format_of_file_type), stored);
        }
        assert_eq!(format_of_ggml_type(16), None);
        assert_eq!(format_of_file_type(15), Some(Format::Q4K));
    }
}
