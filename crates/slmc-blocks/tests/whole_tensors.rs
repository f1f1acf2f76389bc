//! Lengths, errors, and results that do not depend on how the work was split.

use slmc_blocks::{BlockError, decode, decode_weight, encode, encode_weight, first_non_finite};
use slmc_ir::{Format, Weight, WeightError};

/// More pieces than threads, the last one short.
const N_WEIGHTS: usize = 300 * 1024 + 256;

/// A fixed sequence of numbers in [-0.5, 0.5).
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect()
}

fn in_pool<T: Send>(n_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(work)
}

#[test]
fn threads_change_nothing() {
    let weights = numbers(N_WEIGHTS);
    for format in Format::ALL {
        let run = || {
            let mut bytes = vec![0; format.bytes_for(N_WEIGHTS).unwrap()];
            encode(format, &weights, &mut bytes).unwrap();
            let mut decoded = vec![0.0; N_WEIGHTS];
            decode(format, &bytes, &mut decoded).unwrap();
            (bytes, decoded)
        };
        assert!(in_pool(1, run) == in_pool(3, run), "{format}");
    }
}

#[test]
fn piecewise_recoding_is_decoding_then_encoding() {
    let weight = Weight::from_f32(vec![N_WEIGHTS / 256, 256], &numbers(N_WEIGHTS)).unwrap();
    let half = encode_weight(&weight, Format::F16).unwrap();
    let packed = encode_weight(&half, Format::Q4_0).unwrap();
    let mut expected = vec![0; packed.bytes().len()];
    encode(Format::Q4_0, &decode_weight(&half).unwrap(), &mut expected).unwrap();
    assert!(packed.bytes() == &expected);
    assert_eq!(packed.shape(), weight.shape());
    // From blocks of 32 to single floats and back: the piece sizes differ.
    let widened = encode_weight(&packed, Format::F32).unwrap();
    assert!(decode_weight(&widened).unwrap() == decode_weight(&packed).unwrap());
    assert!(encode_weight(&packed, Format::Q4_0).unwrap().bytes().as_ptr() == packed.bytes().as_ptr());
}

#[test]
fn rounding_error_is_within_half_a_step() {
    let weights = numbers(4096);
    for (format, n_steps) in [(Format::Q8_0, 254.0), (Format::Q5_1, 31.0), (Format::Q4_1, 15.0)] {
        let mut bytes = vec![0; format.bytes_for(weights.len()).unwrap()];
        encode(format, &weights, &mut bytes).unwrap();
        let mut decoded = vec![0.0; weights.len()];
        decode(format, &bytes, &mut decoded).unwrap();
        // Numbers span at most 1 (Q8_0: at most ±0.5); f16 scales add a relative 2^-11 of the range.
        let bound = 0.5 / n_steps + 2.0_f32.powi(-11);
        let worst = weights.iter().zip(&decoded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= bound, "{format}: {worst} > {bound}");
    }
}

#[test]
fn lengths_are_checked() {
    let error = decode(Format::Q4_0, &[0; 18], &mut [0.0; 33]).unwrap_err();
    assert_eq!(error, BlockError::PartialBlock { format: Format::Q4_0, n_weights: 33 });
    let error = decode(Format::Q4_0, &[0; 17], &mut [0.0; 32]).unwrap_err();
    assert!(matches!(error, BlockError::Length { expected: 18, found: 17, .. }));
    let error = encode(Format::Q8_0, &[0.0; 32], &mut [0; 35]).unwrap_err();
    assert!(matches!(error, BlockError::Length { expected: 34, found: 35, .. }));
    for format in Format::ALL {
        decode(format, &[], &mut []).unwrap();
    }
    let weight = Weight::from_f32(vec![2, 48], &[0.0; 96]).unwrap();
    let error = encode_weight(&weight, Format::Q4_0).unwrap_err();
    assert!(matches!(error, BlockError::Weight(WeightError::PartialBlock { columns: 48, .. })));
}

#[test]
fn packed_formats_refuse_what_they_cannot_hold() {
    let n_weights = 20_480;
    for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0] {
        let mut bytes = vec![0; format.bytes_for(n_weights).unwrap()];
        let mut weights = numbers(n_weights);
        (weights[19_000], weights[19_001]) = (f32::NAN, f32::INFINITY);
        let error = encode(format, &weights, &mut bytes).unwrap_err();
        assert!(matches!(error, BlockError::NotFinite { index: 19_000, .. }), "{format}: {error}");
        weights[7] = f32::NEG_INFINITY;
        let error = encode(format, &weights, &mut bytes).unwrap_err();
        let value = f32::NEG_INFINITY;
        assert_eq!(error, BlockError::NotFinite { format, index: 7, value });
        // The largest scale that f16 holds is 65504.
        weights[7] = -1e9;
        let error = encode(format, &weights, &mut bytes).unwrap_err();
        assert_eq!(error, BlockError::TooLarge { format, index: 7, value: -1e9 });
    }
}

#[test]
fn floats_keep_infinities_but_make_none() {
    let numbers = [1.0, f32::INFINITY, f32::NAN, 65519.0];
    let mut bytes = [0; 8];
    encode(Format::F16, &numbers, &mut bytes).unwrap();
    let error = encode(Format::F16, &[f32::NAN, 65520.0], &mut [0; 4]).unwrap_err();
    assert_eq!(error, BlockError::TooLarge { format: Format::F16, index: 1, value: 65520.0 });
    let error = encode(Format::Bf16, &[1.0, f32::MIN], &mut [0; 4]).unwrap_err();
    assert_eq!(error, BlockError::TooLarge { format: Format::Bf16, index: 1, value: f32::MIN });
}

#[test]
fn non_finite_weights_are_found_in_every_format() {
    for format in Format::ALL {
        let block = format.block_weights();
        let n_blocks = N_WEIGHTS / 256;
        let shape = vec![n_blocks, block];
        let mut bytes = vec![0x11_u8; format.bytes_for(n_blocks * block).unwrap()];
        let clean = Weight::new(shape.clone(), format, bytes.clone().into()).unwrap();
        assert_eq!(first_non_finite(&clean), None, "{format}");
        // All ones make every float and every f16 scale NaN; MXFP4's largest exponent overflows.
        let bad = n_blocks - 2;
        let n_bytes = format.block_bytes();
        bytes[bad * n_bytes..(bad + 1) * n_bytes].fill(0xff);
        if format == Format::Mxfp4 {
            bytes[bad * n_bytes + 1..(bad + 1) * n_bytes].fill(0x77);
        }
        let weight = Weight::new(shape, format, bytes.into()).unwrap();
        let (index, value) = first_non_finite(&weight).unwrap_or_else(|| panic!("{format}"));
        assert_eq!(index, bad * block, "{format}");
        assert!(!value.is_finite());
    }
}
