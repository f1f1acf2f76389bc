//! A real model gives llama.cpp's logits.
//!
//! `SLMC_MODELS` names the folder that holds `smollm2-float/`; without it, `models-cache` in the repository's root.

use std::path::PathBuf;

use slmc_ir::{LanguageModel, TokenId};
use slmc_model::{Decoder, DeviceChoice, Evaluator};

/// llama.cpp keeps keys and values as f16: its own logits are this far from exact ones.
const TOLERANCE: f32 = 0.05;

fn model(name: &str) -> PathBuf {
    let cache = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models-cache");
    let path = std::env::var_os("SLMC_MODELS").map_or(cache, PathBuf::from).join(name);
    assert!(path.exists(), "{} is not there: set SLMC_MODELS to the folder of the models", path.display());
    path
}

#[test]
#[ignore = "needs the real model: SLMC_MODELS"]
fn logits_are_those_of_llama_cpp() {
    let golden = include_str!("golden/smollm2_logits.tsv");
    let rows = golden.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        (fields[0].parse().unwrap(), fields[1].parse().unwrap(), fields[2].parse().unwrap())
    });
    let rows: Vec<(TokenId, usize, f32)> = rows.collect();
    let tokens: Vec<TokenId> = rows.iter().map(|row| row.0).collect();

    let checkpoint = slmc_interop::open(&model("smollm2-float")).unwrap();
    let device = DeviceChoice::default().open().unwrap();
    let mut evaluator = Evaluator::new(&Decoder::load(checkpoint.weights.as_ref(), &device).unwrap());
    let mut worst = 0.0_f32;
    let mut visit = |position: usize, row: &[f32]| {
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let (_, token, logit) = rows[position];
        assert_eq!(best, token, "most likely token after position {position}");
        worst = worst.max((row[best] - logit).abs());
    };
    evaluator.forward(&tokens, 0, &mut visit).unwrap();
    assert!(worst < TOLERANCE, "a logit differs by {worst}");
}
