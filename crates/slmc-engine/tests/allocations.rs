//! Steps of one token allocate nothing of their own.

mod common;

use common::{checkpoint, tiny, tokens};
use peak_alloc::PeakAlloc;
use slmc_engine::{Engine, EngineOptions};
use slmc_ir::{Family, Format, ModelSpec, Role, TensorKey};
use slmc_kernels::packed::{Activations, PackedMatrix, Precision, product};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The most bytes that were allocated at any time during `f`, beyond those before.
fn bytes_during(f: impl FnOnce()) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    f();
    ALLOCATOR.peak_usage() - before
}

#[test]
fn a_warm_session_allocates_no_more_than_its_products() {
    let spec = ModelSpec { context_len: 600, d_ff: 96, ..tiny::spec(Family::Llama) };
    let checkpoint = checkpoint(&spec, 1, Format::Q8_0);
    let engine = Engine::load(&checkpoint, EngineOptions::fast(1)).unwrap();
    let mut session = engine.session(600).unwrap();
    session.append(&tokens(&spec, 250)).unwrap();
    session.append(&[1]).unwrap();

    // The widest product alone: what the kernels take for themselves.
    let down = checkpoint.weights.read(TensorKey::block(0, Role::Down)).unwrap();
    let matrix = PackedMatrix::new(&down).unwrap();
    let mut input = Activations::new(spec.d_ff, Precision::Int8);
    input.set(&vec![0.5; spec.d_ff]);
    let mut out = vec![0.0; spec.d_model];
    let of_products = bytes_during(|| product(&matrix, &input, &mut out, engine.team()));

    // Beyond a span of keys, where another one begins.
    let of_steps = bytes_during(|| {
        for token in 0..20 {
            session.append(&[token]).unwrap();
        }
    });
    assert!(of_steps <= of_products, "{of_steps} bytes in steps, {of_products} in products");
    assert!(bytes_during(|| drop(vec![0_u8; 1000])) >= 1000, "the measure sees short-lived bytes");
}
