//! How fast two models write, measured in turn: what slows the machine slows both.

use slmc_engine::Engine;
use slmc_ir::{Host, TokenId};

use crate::GateError;

/// Tokens read before writing begins.
const PROMPT: usize = 32;
/// Tokens written in a run.
const WRITTEN: usize = 32;
/// Runs of each, after one to warm up.
const RUNS: usize = 5;

/// Tokens written a second: medians over runs in turn.
pub(crate) fn tokens_per_second(
    model: &Engine,
    baseline: &Engine,
    host: &dyn Host,
) -> Result<(f64, f64), GateError> {
    let mut rates = [Vec::new(), Vec::new()];
    host.begin("speed", RUNS as u64 + 1, "runs");
    for run in 0..=RUNS {
        for (rates, engine) in rates.iter_mut().zip([model, baseline]) {
            let rate = one_run(engine, run as u32, host)?;
            if run > 0 {
                rates.push(rate);
            }
        }
        host.advance_to(run as u64 + 1, "");
    }
    host.end();
    let [model, baseline] = rates.map(median);
    if model.is_finite() && baseline.is_finite() && baseline > 0.0 {
        return Ok((model, baseline));
    }
    Err(GateError::Failed("the clock stood still while speed was measured".to_owned()))
}

fn one_run(engine: &Engine, salt: u32, host: &dyn Host) -> Result<f64, GateError> {
    let vocab_size = engine.spec().vocab_size as u32;
    let capacity = (PROMPT + WRITTEN).min(engine.spec().context_len);
    let mut session = engine.session(capacity)?;
    // Tokens that follow no pattern: what they are does not matter for speed.
    let token = |i: u32| -> TokenId { (i.wrapping_mul(2_654_435_761).wrapping_add(salt * 97)) % vocab_size };
    let prompt: Vec<TokenId> = (0..PROMPT.min(capacity / 2) as u32).map(token).collect();
    session.read(&prompt)?;
    let n_written = capacity - prompt.len();
    let started = host.elapsed();
    for i in 0..n_written as u32 {
        session.append(&[token(1000 + i)])?;
    }
    Ok(n_written as f64 / (host.elapsed() - started).as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
