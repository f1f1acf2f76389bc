//! How fast the engine is.

use serde_json::json;
use slmc_engine::{Engine, EngineError};
use slmc_ir::{Host, TokenId};

use super::{Session, engine, model};
use crate::{
    args::BenchArgs,
    failure::{Failure, input_error},
    output,
};

/// Measures reading a prompt and writing, each from an empty context.
pub fn bench(args: &BenchArgs, session: &Session<'_>) -> Result<(), Failure> {
    if args.pp == 0 || args.tg == 0 || args.runs == 0 {
        return Err(input_error("--pp, --tg and --runs: at least 1 of each"));
    }
    let checkpoint = model::open(&args.model)?;
    let engine = engine::load(&checkpoint, args.exact, session)?;
    let mut context = engine.session(args.pp.max(args.tg)).map_err(engine::failure)?;
    let (mut reading, mut writing) = (Vec::new(), Vec::new());
    session.terminal.begin("bench", args.runs as u64 + 1, "runs");
    for run in 0..=args.runs {
        let (pp, tg) = measure(&mut context, args, run, session).map_err(engine::failure)?;
        // The first run warms caches and buffers up.
        if run > 0 {
            reading.push(pp);
            writing.push(tg);
        }
        session.terminal.advance_to(run as u64 + 1, &format!("pp {pp:.0} tg {tg:.0}"));
        if session.terminal.stop_requested() {
            session.terminal.end();
            return Err(Failure::Interrupted("nothing is kept: start it again".to_owned()));
        }
    }
    session.terminal.end();
    let (pp, tg) = (median(&mut reading), median(&mut writing));
    let bytes = engine.bytes_per_token();
    let read_gb_per_s = bytes as f64 * tg / 1e9;
    let gops = engine.operations_per_token() as f64 * pp / 1e9;
    let options = engine.options();
    let document = json!({
        "pp": args.pp, "tg": args.tg, "runs": args.runs,
        "pp_tokens_per_s": pp,
        "tg_tokens_per_s": tg,
        "pp_runs": reading,
        "tg_runs": writing,
        "threads": options.n_threads,
        "kernel": engine.kernel_name(),
        "bytes_per_token": bytes,
        "read_gb_per_s": read_gb_per_s,
        "int8_gops": gops,
    });
    let text = format!(
        "pp{} {pp:.1} tokens/s ({gops:.0} GOP/s), tg{} {tg:.1} tokens/s ({read_gb_per_s:.2} GB/s), {} threads",
        args.pp, args.tg, options.n_threads
    );
    output::print(session.global.json, &document, &text)
}

/// Tokens a second of one run's prompt and of its text.
fn measure(
    context: &mut slmc_engine::Session<'_>,
    args: &BenchArgs,
    run: usize,
    session: &Session<'_>,
) -> Result<(f64, f64), EngineError> {
    let n_tokens = args.pp.max(args.tg);
    let seed = session.global.seed.unwrap_or(0).wrapping_add(run as u64);
    let tokens = random_tokens(context.engine(), n_tokens, seed);
    context.truncate(0);
    let clock = || session.terminal.elapsed().as_secs_f64();
    let began = clock();
    context.append(&tokens[..args.pp])?;
    let read = clock();
    context.truncate(0);
    for token in &tokens[..args.tg] {
        context.append(std::slice::from_ref(token))?;
    }
    let wrote = clock();
    Ok((args.pp as f64 / (read - began), args.tg as f64 / (wrote - read)))
}

/// Tokens spread evenly over the vocabulary by splitmix64: each run has its own.
fn random_tokens(engine: &Engine, n: usize, seed: u64) -> Vec<TokenId> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % engine.spec().vocab_size as u64) as TokenId
    };
    (0..n).map(|_| next()).collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
