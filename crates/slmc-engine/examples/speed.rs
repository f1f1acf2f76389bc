//! How many tokens the engine reads and writes in a second of the calling thread's CPU time: what can be measured while
//! other programs use the machine. `slmc bench` measures by the clock.
//!
//! `cargo run --release -p slmc-engine --example speed MODEL [THREADS [PROMPT [TEXT [RUNS]]]]`: a prompt and a text of so
//! many tokens, the best of some runs. Linux only.
#![allow(clippy::print_stdout)]

use std::path::Path;

use slmc_engine::{Engine, EngineOptions};

/// Seconds that this thread has been on a core.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.expect("nanoseconds first") / 1e9
}

/// The least time of some runs.
fn best(n_runs: usize, mut run: impl FnMut()) -> f64 {
    let time = |()| {
        let began = cpu();
        run();
        cpu() - began
    };
    std::iter::repeat_n((), n_runs).map(time).fold(f64::INFINITY, f64::min)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| arguments.get(i).map_or(default, |n| n.parse().expect("a number"));
    let (n_threads, pp, tg, n_runs) = (number(1, 1), number(2, 512), number(3, 128), number(4, 3));
    let model = arguments.first().expect("a model");
    let checkpoint = slmc_interop::open(Path::new(model)).expect("a model");
    let engine = Engine::load(&checkpoint, EngineOptions::fast(n_threads)).expect("a model that runs");
    let mut session = engine.session(pp.max(tg).max(1)).expect("a context");
    let vocab_size = engine.spec().vocab_size as u32;
    let tokens: Vec<u32> =
        (0..pp.max(tg) as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab_size).collect();
    let reading = best(n_runs, || {
        session.truncate(0);
        if pp > 0 {
            session.read(&tokens[..pp]).expect("room");
        }
    });
    let writing = best(n_runs, || {
        session.truncate(0);
        for token in &tokens[..tg] {
            session.append(std::slice::from_ref(token)).expect("room");
        }
    });
    let (pp, tg) = (pp as f64 / reading, tg as f64 / writing);
    println!(
        "{} {n_threads} threads: pp {pp:.1} tokens/s {:.1} GOP/s, tg {tg:.1} tokens/s {:.2} GB/s",
        engine.kernel_name(),
        engine.operations_per_token() as f64 * pp / 1e9,
        engine.bytes_per_token() as f64 * tg / 1e9
    );
}
