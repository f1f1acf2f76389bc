//! NF4 beside bitsandbytes 0.50 (`functional.quantize_4bit`, blocks of 64), the library that QLoRA was published with.

use slmc_blocks::{decode, encode, unpack};
use slmc_ir::Format;

/// Levels that bitsandbytes gives [`numbers`].
const LEVELS: [u8; 256] = [
    7, 13, 6, 3, 9, 7, 10, 9, 3, 4, 14, 9, 1, 8, 9, 7, 9, 4, 2, 14, 13, 3, 6, 12, 7, 6, 7, 2, 9, 12, 3, 2,
    13, 11, 3, 7, 6, 7, 13, 4, 0, 13, 11, 4, 5, 9, 7, 12, 8, 3, 8, 13, 4, 2, 11, 9, 7, 8, 3, 5, 14, 7, 0, 8,
    11, 6, 7, 4, 3, 15, 9, 2, 6, 14, 6, 4, 7, 6, 10, 12, 1, 2, 15, 10, 4, 7, 7, 8, 13, 3, 0, 11, 11, 2, 5,
    11, 7, 10, 7, 3, 10, 14, 2, 1, 14, 8, 6, 8, 3, 7, 15, 4, 2, 10, 12, 4, 6, 6, 4, 11, 8, 1, 8, 15, 4, 2, 8,
    6, 9, 10, 1, 4, 15, 7, 3, 8, 9, 7, 10, 3, 4, 12, 11, 1, 5, 13, 7, 7, 7, 4, 11, 13, 1, 2, 10, 8, 5, 7, 5,
    8, 14, 5, 3, 11, 12, 3, 5, 8, 7, 10, 7, 1, 9, 14, 3, 5, 9, 8, 9, 9, 1, 5, 12, 7, 2, 9, 11, 6, 9, 5, 5,
    12, 10, 0, 6, 14, 7, 6, 7, 4, 12, 13, 0, 5, 12, 8, 3, 7, 6, 9, 10, 4, 2, 13, 12, 1, 5, 8, 7, 10, 6, 1,
    11, 15, 4, 4, 11, 8, 7, 8, 1, 7, 13, 5, 1, 11, 12, 4, 7, 6, 5, 13, 9, 0, 8, 11, 6, 5, 8, 5, 12, 12, 3, 5,
    14, 7,
];

/// The blocks' largest magnitudes.
const SCALES: [f32; 4] = [2.3018832, 2.0128794, 2.429952, 2.2443419];

/// `sin(1.7 i) cos(0.31 i) (1 + 0.25 (i mod 7))`.
fn numbers() -> Vec<f32> {
    let number = |i: u32| {
        let x = f64::from(i);
        ((x * 1.7).sin() * (x * 0.31).cos() * (1.0 + f64::from(i % 7) * 0.25)) as f32
    };
    (0..256).map(number).collect()
}

#[test]
fn levels_are_those_of_bitsandbytes() {
    let mut bytes = vec![0; Format::Nf4.bytes_for(256).unwrap()];
    encode(Format::Nf4, &numbers(), &mut bytes).unwrap();
    let mut decoded = vec![0.0; 256];
    decode(Format::Nf4, &bytes, &mut decoded).unwrap();
    for (block, (bytes, levels)) in bytes.chunks_exact(34).zip(LEVELS.chunks_exact(64)).enumerate() {
        let parts = unpack(Format::Nf4, bytes).unwrap();
        assert_eq!(&parts.levels[..64], levels, "block {block}");
        let scale = slmc_blocks::f16_to_f32(parts.scale);
        // bitsandbytes keeps them in f32.
        assert!((scale / SCALES[block] - 1.0).abs() < 1.0 / 2048.0, "block {block}: {scale}");
        let ends = [(0, -1.0), (7, 0.0), (15, 1.0)];
        for (i, &level) in levels.iter().enumerate() {
            if let Some((_, step)) = ends.iter().find(|(end, _)| *end == level) {
                assert_eq!(decoded[64 * block + i], scale * step);
            }
        }
    }
}
