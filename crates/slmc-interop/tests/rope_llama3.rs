//! The tensor of rotary factors in GGUF against an independent implementation
//! (`tests/reference/interop_rope.py`).

mod common;

use common::{checkpoint, spec};
use serde_json::Value;
use slmc_formats::GgufHeader;
use slmc_interop::{WriteOptions, open, write_gguf};
use slmc_ir::{Family, ModelSpec, RopeScaling, SilentHost};

#[test]
fn factors_are_the_reference_s() {
    let golden: Value = serde_json::from_str(include_str!("golden/rope_llama3.json")).unwrap();
    for setting in golden.as_array().unwrap() {
        let number = |field: &str| setting[field].as_f64().unwrap();
        let scaling = RopeScaling::Llama3 {
            factor: number("factor"),
            low_freq_factor: number("low"),
            high_freq_factor: number("high"),
            original_context_len: number("original") as usize,
        };
        let spec = ModelSpec {
            rope_theta: number("theta"),
            d_head: number("d_head") as usize,
            rope_scaling: scaling,
            ..spec(Family::Llama)
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        write_gguf(&checkpoint(spec, None), &path, &WriteOptions::default(), &SilentHost).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let header = GgufHeader::parse(&bytes).unwrap();
        let (factors, _) =
            bytes[header.tensor_range(header.tensor("rope_freqs.weight").unwrap())].as_chunks::<4>();
        let expected = setting["divisors"].as_array().unwrap();
        assert_eq!(factors.len(), expected.len());
        for (found, expected) in factors.iter().zip(expected) {
            let (found, expected) = (f32::from_le_bytes(*found), expected.as_f64().unwrap());
            // f32 against f64: a few units in the last place, more where frequencies are blended.
            assert!((f64::from(found) / expected - 1.0).abs() < 1e-5, "{found} {expected}");
        }
        assert_eq!(open(&path).unwrap().spec().rope_scaling, scaling);
    }
}
