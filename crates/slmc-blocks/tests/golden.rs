//! Every layout against gguf-py, bit for bit: `tests/golden/blocks.bin`, written by
//! `tests/reference/blocks_golden.py write`.

use slmc_blocks::{decode, encode};
use slmc_ir::Format;

/// One line of the golden file: these bytes are these weights.
struct Record {
    encodes: bool,
    format: Format,
    bytes: Vec<u8>,
    weights: Vec<f32>,
}

fn records() -> Vec<Record> {
    let mut rest: &[u8] = include_bytes!("golden/blocks.bin");
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at_checked(n)?;
        rest = tail;
        Some(head)
    };
    let mut records = Vec::new();
    while let Some(head) = take(2) {
        let (encodes, name_len) = (head[0] == 1, usize::from(head[1]));
        let name = std::str::from_utf8(take(name_len).unwrap()).unwrap();
        let format = name.parse().unwrap();
        let mut size = || u32::from_le_bytes(take(4).unwrap().try_into().unwrap()) as usize;
        let (n_weights, n_bytes) = (size(), size());
        let bytes = take(n_bytes).unwrap().to_vec();
        let weights = take(n_weights * 4).unwrap().as_chunks().0.iter().map(|w| f32::from_le_bytes(*w));
        records.push(Record { encodes, format, bytes, weights: weights.collect() });
    }
    records
}

/// Bits, with every NaN the same: payloads are not part of a layout.
fn bits(weights: &[f32]) -> Vec<u32> {
    weights.iter().map(|w| if w.is_nan() { f32::NAN.to_bits() } else { w.to_bits() }).collect()
}

#[test]
fn decodes_random_bytes_as_gguf_py_does() {
    let mut seen = Vec::new();
    for Record { format, bytes, weights, .. } in records().into_iter().filter(|r| !r.encodes) {
        let mut decoded = vec![0.0; weights.len()];
        decode(format, &bytes, &mut decoded).unwrap();
        assert_eq!(bits(&decoded), bits(&weights), "{format}");
        seen.push(format);
    }
    assert_eq!(seen, Format::stored().collect::<Vec<_>>(), "the golden file covers every format");
}

#[test]
fn encodes_the_bytes_that_gguf_py_does() {
    let mut seen = Vec::new();
    for Record { format, bytes, weights, .. } in records().into_iter().filter(|r| r.encodes) {
        let mut encoded = vec![0; bytes.len()];
        encode(format, &weights, &mut encoded).unwrap();
        if weights.iter().any(|w| w.is_nan()) {
            // NaN payloads again: compare what the bytes mean.
            let (mut ours, mut theirs) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
            decode(format, &encoded, &mut ours).unwrap();
            decode(format, &bytes, &mut theirs).unwrap();
            assert_eq!(bits(&ours), bits(&theirs), "{format}");
        } else {
            let block = format.block_bytes();
            for (index, (ours, theirs)) in encoded.chunks(block).zip(bytes.chunks(block)).enumerate() {
                assert_eq!(ours, theirs, "{format} block {index}");
            }
        }
        seen.push(format);
    }
    // The other formats have no plain scale: their bytes are ours.
    let exact = ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"].map(|f| f.parse().unwrap());
    assert_eq!(seen, exact, "the golden file covers every format that is rounded as ggml does");
}
