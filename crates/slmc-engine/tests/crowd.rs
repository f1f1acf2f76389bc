//! Sequences side by side, against each of them alone.

mod common;

use common::{checkpoint, tiny, tokens};
use slmc_engine::{Engine, EngineError, EngineOptions};
use slmc_ir::{Checkpoint, Family, Format, ModelSpec, TokenId};

fn model(format: Format) -> (Checkpoint, ModelSpec) {
    let spec = ModelSpec { n_layers: 2, context_len: 700, ..tiny::spec(Family::Llama) };
    (checkpoint(&spec, 11, format), spec)
}

/// Logits after the last token of a sequence that came token by token.
fn alone(engine: &Engine, tokens: &[TokenId]) -> Vec<u32> {
    let mut session = engine.session(tokens.len()).unwrap();
    let mut last = Vec::new();
    for token in tokens {
        last = session.append(&[*token]).unwrap().iter().map(|x| x.to_bits()).collect();
    }
    last
}

#[test]
fn a_crowd_gives_the_bits_of_each_sequence_alone() {
    let (checkpoint, spec) = model(Format::F32);
    // More than eight rows, so that other paths than those of single rows would be taken; and more than a span of keys.
    let (n, len) = (11, 300);
    for options in [EngineOptions::fast(1), EngineOptions::fast(2), EngineOptions::exact(2)] {
        let engine = Engine::load(&checkpoint, options).unwrap();
        let texts: Vec<Vec<TokenId>> = (0..n).map(|i| tokens(&spec, len + i)[i..].to_vec()).collect();
        let mut crowd = engine.crowd(n, len).unwrap();
        for at in 0..len {
            // One sequence begins anew on the way: the others must not notice, and it must have forgotten.
            if at == 100 {
                crowd.clear(4);
            }
            let step: Vec<TokenId> = texts.iter().map(|text| text[at]).collect();
            let logits = crowd.step(&step).unwrap();
            if [0, 50, 100, 257, len - 1].contains(&at) {
                for (i, (text, logits)) in texts.iter().zip(logits.chunks_exact(spec.vocab_size)).enumerate()
                {
                    let from = if i == 4 && at >= 100 { 100 } else { 0 };
                    let bits: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
                    assert!(bits == alone(&engine, &text[from..=at]), "sequence {i} at {at}, {options:?}");
                }
            }
        }
        assert_eq!((crowd.lens()[0], crowd.lens()[4]), (len, len - 100));
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_changes_nothing() {
    let (checkpoint, spec) = model(Format::F32);
    let engine = Engine::load(&checkpoint, EngineOptions::fast(1)).unwrap();
    assert!(matches!(engine.crowd(0, 5), Err(EngineError::Setting { .. })));
    assert!(matches!(engine.crowd(2, 701), Err(EngineError::Setting { .. })));
    let mut crowd = engine.crowd(2, 2).unwrap();
    assert!(matches!(crowd.step(&[1]), Err(EngineError::Setting { .. })));
    let outside = spec.vocab_size as TokenId;
    assert!(matches!(crowd.step(&[1, outside]), Err(EngineError::Token { .. })));
    assert_eq!(crowd.lens(), [0, 0]);
    crowd.step(&[1, 2]).unwrap();
    crowd.step(&[3, 4]).unwrap();
    assert!(matches!(crowd.step(&[5, 6]), Err(EngineError::Context { .. })));
    assert_eq!(crowd.lens(), [2, 2]);
}
