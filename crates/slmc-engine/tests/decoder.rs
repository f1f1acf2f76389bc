//! The engine against a decoder in f64, and against itself however the work is cut.

mod common;

use std::sync::Arc;

use common::{Reference, Rounding, checkpoint, distance, tiny, tokens, worst};
use slmc_engine::{BATCH_ROWS, Engine, EngineError, EngineOptions, KvType, Precision, Reading};
use slmc_interop::Rearranged;
use slmc_ir::{
    Channels, Checkpoint, Family, Format, ForwardError, LanguageModel, ModelSpec, Reordering, TokenId,
};

const FLOAT: EngineOptions = EngineOptions::exact(2);

/// Logits of all tokens, written in batches of `at_once`.
fn run(checkpoint: &Checkpoint, options: EngineOptions, tokens: &[TokenId], at_once: usize) -> Vec<Vec<f32>> {
    run_as(Way::Written, checkpoint, options, tokens, at_once)
}

/// Whether tokens are read, or count as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Written,
}

fn run_as(
    way: Way,
    checkpoint: &Checkpoint,
    options: EngineOptions,
    tokens: &[TokenId],
    at_once: usize,
) -> Vec<Vec<f32>> {
    let engine = Engine::load(checkpoint, options).unwrap();
    let mut session = engine.session(tokens.len()).unwrap();
    let mut rows = Vec::new();
    for batch in tokens.chunks(at_once) {
        let each = engine.spec().vocab_size;
        let mut visit = |_: usize, some: &[f32]| rows.extend(some.chunks(each).map(<[f32]>::to_vec));
        match way {
            Way::Read => session.read_each(batch, 0, &mut visit).unwrap(),
            Way::Written => session.append_each(batch, 0, &mut visit).unwrap(),
        }
    }
    assert_eq!(rows.len(), tokens.len());
    rows
}

fn wide(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

fn llama(context_len: usize) -> ModelSpec {
    ModelSpec { context_len, ..tiny::spec(Family::Llama) }
}

#[test]
fn every_kind_of_model_follows_the_formulas() {
    for (seed, spec) in (1..).zip(tiny::every_spec()) {
        let checkpoint = checkpoint(&spec, seed, Format::F32);
        let tokens = tokens(&spec, 37);
        let expected = Reference::new(&checkpoint, Rounding::default()).logits(&tokens);
        for at_once in [1, 5, 37] {
            let found = run(&checkpoint, FLOAT, &tokens, at_once);
            let error = worst(&found, &expected);
            assert!(error < 1e-4, "{at_once} at once, {spec:?}: {error}");
        }
    }
}

#[test]
fn a_prompt_of_several_batches_ends_with_the_logits_of_its_last_token() {
    // One batch for keys and values alone, one of which one row is wanted: the last block is cut short in both.
    let spec = ModelSpec { n_layers: 2, ..llama(1200) };
    let checkpoint = checkpoint(&spec, 6, Format::Q4_0);
    for options in [FLOAT, EngineOptions::fast(2)] {
        let engine = Engine::load(&checkpoint, options).unwrap();
        for n in [BATCH_ROWS, BATCH_ROWS + 1, 2 * BATCH_ROWS + 77] {
            let tokens = tokens(&spec, n);
            let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            let mut session = engine.session(n + 1).unwrap();
            let last = bits(session.read(&tokens).unwrap());
            let next = bits(session.read(&[3]).unwrap());
            let all = run_as(Way::Read, &checkpoint, options, &[&tokens[..], &[3]].concat(), n + 1);
            assert_eq!((last, next), (bits(&all[n - 1]), bits(&all[n])), "{n} tokens");
        }
    }
}

#[test]
fn logits_are_the_head_times_what_is_hidden() {
    let spec = ModelSpec { n_layers: 2, ..llama(700) };
    let checkpoint = checkpoint(&spec, 6, Format::F32);
    let tokens = tokens(&spec, BATCH_ROWS + 19);
    let role = if spec.tied_head { slmc_ir::Role::Embedding } else { slmc_ir::Role::Head };
    let head = checkpoint.weights.read(slmc_ir::TensorKey::model(role)).unwrap();
    let head = slmc_blocks::decode_weight(&head).unwrap();
    let engine = Engine::load(&checkpoint, FLOAT).unwrap();
    let mut session = engine.session(tokens.len()).unwrap();
    let mut hidden = vec![0.5];
    session.read_hidden(&tokens, &mut hidden).unwrap();
    assert_eq!((hidden[0], hidden.len()), (0.5, 1 + tokens.len() * spec.d_model));
    let product = |row: &[f32], head: &[f32]| -> f64 {
        row.iter().zip(head).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum()
    };
    let expected: Vec<Vec<f64>> = hidden[1..]
        .chunks_exact(spec.d_model)
        .map(|row| head.chunks_exact(spec.d_model).map(|head| product(row, head)).collect())
        .collect();
    let error = worst(&run(&checkpoint, FLOAT, &tokens, 700), &expected);
    assert!(error < 1e-4, "{error}");
}

#[test]
fn batches_blocks_and_spans_join_without_a_seam() {
    // Beyond a batch (512 rows), a block of queries (64) and of keys (256), with a remainder in each.
    let spec = ModelSpec { n_layers: 1, ..llama(700) };
    let checkpoint = checkpoint(&spec, 3, Format::F32);
    let tokens = tokens(&spec, BATCH_ROWS + 77);
    let expected = Reference::new(&checkpoint, Rounding::default()).logits(&tokens);
    for at_once in [3, 100, 700] {
        let error = worst(&run(&checkpoint, FLOAT, &tokens, at_once), &expected);
        assert!(error < 1e-4, "{at_once} at once: {error}");
    }
}

#[test]
fn an_f16_cache_costs_what_rounding_keys_and_values_costs() {
    let spec = llama(128);
    let checkpoint = checkpoint(&spec, 4, Format::F32);
    let tokens = tokens(&spec, 100);
    let rounding = Rounding { f16_cache: true, ..Rounding::default() };
    let expected = Reference::new(&checkpoint, rounding).logits(&tokens);
    let options = EngineOptions { kv: KvType::F16, ..FLOAT };
    for at_once in [1, 100] {
        // An f32 and an f64 on two sides of a rounding boundary differ by one step of f16, 2^-11 of the number.
        let error = worst(&run(&checkpoint, options, &tokens, at_once), &expected);
        assert!(error < 1e-3, "{at_once} at once: {error}");
    }
}

#[test]
fn an_int8_cache_costs_little_and_the_same_however_it_is_filled() {
    // A byte is off by a quarter of 1/127 of the largest number of its head, which is two to three times the common one; f16 by
    // a quarter of 2^-10 of the number itself: a factor of 20 to 30, and twice that is an error in the code.
    let spec = llama(400);
    let checkpoint = checkpoint(&spec, 4, Format::F32);
    let tokens = tokens(&spec, 300);
    let exact = wide(&run(&checkpoint, FLOAT, &tokens, 300));
    let on = |kv, n_threads, at_once| {
        let options = EngineOptions { kv, n_threads, ..FLOAT };
        run(&checkpoint, options, &tokens, at_once)
    };
    let all = on(KvType::Int8, 1, 300);
    let [cost, half] = [&all, &on(KvType::F16, 1, 300)].map(|rows| distance(&wide(rows), &exact));
    let factor = cost / half;
    assert!(factor > 10.0 && factor < 60.0, "bytes {cost}, f16 {half}");
    for (n_threads, at_once) in [(2, 300), (2, 1), (3, 37)] {
        assert!(on(KvType::Int8, n_threads, at_once) == all, "{n_threads} threads, {at_once} at once");
    }
}

#[test]
fn int8_activations_cost_what_rounding_to_int8_costs() {
    // The reference rounds its activations likewise; an engine that rounds no worse errs as much, in other places,
    // so by a factor near 1 over 48 × 264 logits. Twice that is an error in the code, not of the method.
    let formats = [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::F16];
    for format in formats {
        let spec = ModelSpec { d_model: 64, ..llama(128) };
        let checkpoint = checkpoint(&spec, 5, format);
        let tokens = tokens(&spec, 48);
        let exact = Reference::new(&checkpoint, Rounding::default()).logits(&tokens);
        let rounding = Rounding { int8: true, ..Rounding::default() };
        let cost = distance(&Reference::new(&checkpoint, rounding).logits(&tokens), &exact);
        assert!(cost > 1e-3 && cost < 0.1, "the method's own error: {cost}");
        let options = EngineOptions { precision: Precision::Int8, reading: Reading::Fastest, ..FLOAT };
        for at_once in [1, 48] {
            let error = distance(&wide(&run(&checkpoint, options, &tokens, at_once)), &exact);
            assert!(error < 2.0 * cost, "{format}, {at_once} at once: {error}, the method {cost}");
        }
        // What is read is held as bf16 where the CPU multiplies that: three bits more than int8 has for most numbers.
        let read = distance(&wide(&run_as(Way::Read, &checkpoint, options, &tokens, 48)), &exact);
        let most = if reads_in_bf16() && format != Format::F16 { 0.7 } else { 2.0 };
        assert!(read < most * cost, "{format}, read: {read}, int8 {cost}");
    }
}

#[test]
fn verdicts_read_as_they_write() {
    let spec = llama(400);
    let checkpoint = checkpoint(&spec, 6, Format::Q4_0);
    let tokens = tokens(&spec, 100);
    let options = EngineOptions::alike(2);
    assert_eq!(run_as(Way::Read, &checkpoint, options, &tokens, 100), run(&checkpoint, options, &tokens, 1));
}

/// Whether this CPU multiplies bf16 in tiles.
fn reads_in_bf16() -> bool {
    slmc_kernels::packed::HalfKernels::detect().is_some()
}

#[test]
fn threads_do_not_change_a_bit() {
    let spec = llama(400);
    let checkpoint = checkpoint(&spec, 6, Format::Q4_0);
    let tokens = tokens(&spec, 330);
    let ways = [(Way::Written, 1), (Way::Written, 330), (Way::Read, 330), (Way::Read, 37)];
    for (way, at_once) in ways {
        for options in [
            EngineOptions::fast(1),
            EngineOptions { kv: KvType::Int8, ..EngineOptions::fast(1) },
            EngineOptions::in_bytes(1),
            EngineOptions { kv: KvType::F16, ..EngineOptions::exact(1) },
        ] {
            let on = |n_threads| {
                let options = EngineOptions { n_threads, ..options };
                let rows = run_as(way, &checkpoint, options, &tokens, at_once);
                rows.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let one = on(1);
            assert!(one == on(2) && one == on(5), "{way:?}, {options:?}, {at_once} at once");
        }
    }
}

#[test]
fn one_at_a_time_or_in_batches_gives_the_same_bits() {
    let spec = llama(400);
    let tokens = tokens(&spec, 300);
    // Batches on both sides of what attention cuts into spans, and of a task of many rows; int8 and float products.
    for (format, options) in [
        (Format::F32, EngineOptions { kv: KvType::F16, ..FLOAT }),
        (Format::Q4_0, EngineOptions::fast(2)),
        (Format::Q4_0, EngineOptions::in_bytes(2)),
    ] {
        let checkpoint = checkpoint(&spec, 7, format);
        for way in [Way::Written, Way::Read] {
            let bits = |at_once| {
                let rows = run_as(way, &checkpoint, options, &tokens, at_once);
                rows.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let single = bits(1);
            for at_once in [3, 8, 9, 64, 300] {
                assert!(bits(at_once) == single, "{format}, {way:?}, {at_once} at once");
            }
        }
    }
}

#[test]
fn a_kept_prefix_gives_what_a_fresh_context_gives() {
    let spec = llama(64);
    let engine = Engine::load(&checkpoint(&spec, 8, Format::F32), FLOAT).unwrap();
    let mut session = engine.session(64).unwrap();
    session.append(&tokens(&spec, 30)).unwrap();
    let mut prompt = tokens(&spec, 20);
    prompt.extend([9, 8, 7]);
    assert_eq!(session.keep_prefix(&prompt), 20);
    let continued = session.append(&prompt[20..]).unwrap().to_vec();
    assert_eq!(session.tokens(), prompt);
    let mut fresh = engine.session(64).unwrap();
    fresh.append(&prompt[..20]).unwrap();
    assert_eq!(continued, fresh.append(&prompt[20..]).unwrap());
    // The whole prompt is there: its last token is run again for its logits.
    assert_eq!(session.keep_prefix(&prompt), 22);
    assert_eq!(session.keep_prefix(&[]), 0);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let spec = llama(16);
    let mut engine = Engine::load(&checkpoint(&spec, 9, Format::F32), FLOAT).unwrap();
    assert!(matches!(engine.session(17), Err(EngineError::Setting { what: "context", .. })));
    assert!(matches!(engine.session(0), Err(EngineError::Setting { .. })));
    let mut session = engine.session(10).unwrap();
    session.append(&[1, 2, 3, 4, 5, 6, 7]).unwrap();
    let full = session.append(&[1, 2, 3, 4]).unwrap_err();
    assert!(matches!(full, EngineError::Context { n_tokens: 4, held: 7, capacity: 10 }), "{full}");
    let unknown = session.append(&[1, 264]).unwrap_err();
    assert!(matches!(unknown, EngineError::Token { token: 264, vocab_size: 264 }), "{unknown}");
    assert!(matches!(session.append(&[]), Err(EngineError::EmptyPrompt)));
    assert_eq!(session.tokens(), [1, 2, 3, 4, 5, 6, 7]);
    session.append(&[1, 2, 3]).unwrap();
    let too_long = engine.forward(&[0; 17], 0, &mut |_, _| {}).unwrap_err();
    assert!(matches!(too_long, ForwardError::Context { n_tokens: 17, context_len: 16 }), "{too_long}");
}

#[test]
fn evaluation_is_handed_the_rows_that_it_asks_for() {
    let spec = llama(700);
    let checkpoint = checkpoint(&spec, 10, Format::F32);
    let mut engine = Engine::load(&checkpoint, FLOAT).unwrap();
    assert_eq!((engine.vocab_size(), engine.context_len()), (spec.vocab_size, 700));
    let tokens = tokens(&spec, 600);
    let all = run(&checkpoint, FLOAT, &tokens, 600);
    // Twice: the second time in the buffers of the first. Shorter, then longer: new ones.
    for (n, first) in [(600, 590), (600, 0), (40, 39), (601, 700), (600, 511)] {
        let mut rows = Vec::new();
        let given: Vec<TokenId> = tokens.iter().copied().chain([0]).take(n).collect();
        let mut visit = |position: usize, some: &[f32]| {
            rows.extend((position..).zip(some.chunks(spec.vocab_size).map(<[f32]>::to_vec)));
        };
        engine.forward(&given, first, &mut visit).unwrap();
        let expected = n.saturating_sub(first);
        assert_eq!(rows.len(), expected);
        for (i, (position, row)) in rows.iter().enumerate() {
            assert_eq!(*position, first + i);
            let error = worst(std::slice::from_ref(row), &wide(std::slice::from_ref(&all[*position])));
            assert!(error < 1e-5, "{n} tokens from {first}, row {position}: {error}");
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    use slmc_ir::{MemorySource, Role, SourceError, TensorKey, Weight, WeightSource};
    let spec = llama(16);
    let good = checkpoint(&spec, 11, Format::F32);
    let bad = TensorKey::block(1, Role::Up);
    let weights = good.weights.keys().iter().map(|&key| {
        let weight = good.weights.read(key).unwrap();
        let mut numbers = slmc_blocks::decode_weight(&weight).unwrap();
        if key == bad {
            numbers[5] = f32::NAN;
        }
        (key, Weight::from_f32(weight.shape().to_vec(), &numbers).unwrap())
    });
    let source = MemorySource::new(spec, weights.collect()).unwrap();
    assert_eq!(source.keys().len(), good.weights.keys().len());
    let error = Engine::load(&good.with_weights(Arc::new(source)), FLOAT).unwrap_err();
    assert!(
        matches!(error, EngineError::Source(SourceError::NotFinite { key, index: 5, .. }) if key == bad),
        "{error}"
    );
}

#[test]
fn channels_in_another_order_and_of_another_size_are_the_same_model() {
    // Each with its channels where a multiplication puts them, packed and as floats.
    let shuffled = |n: usize, step: usize| -> Vec<usize> { (0..n).map(|i| (i * step + 5) % n).collect() };
    let coprime = |n: usize, from: usize| {
        let divides = |step: &usize| (2..=*step).all(|d| !(n.is_multiple_of(d) && step.is_multiple_of(d)));
        (from..).find(divides).unwrap()
    };
    for (seed, spec) in (1..).zip(tiny::every_spec()) {
        let order = Reordering {
            stream: shuffled(spec.d_model, coprime(spec.d_model, 7)),
            hidden: (0..spec.n_layers).map(|i| shuffled(spec.d_ff, coprime(spec.d_ff, 11 + 2 * i))).collect(),
        };
        let sizes = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i % 7) as f32 - 3.0).exp2()).collect() };
        let mut channels = Channels { order, ..Channels::none(&spec) };
        channels.scales.iter_mut().for_each(|block| *block = block.map(|scales| sizes(scales.len())));
        for format in [Format::F32, Format::F16] {
            let plain = checkpoint(&spec, seed, format);
            let weights = Rearranged::new(Arc::clone(&plain.weights), channels.clone());
            let tokens = tokens(&spec, 21);
            let expected = run(&plain, FLOAT, &tokens, 21);
            let found = run(&plain.with_weights(Arc::new(weights)), FLOAT, &tokens, 21);
            let worst = worst(&found, &wide(&expected));
            assert!(worst < 1e-4, "{spec:?} {format}: {worst}");
        }
    }
}
