//! How fast the engine is.

use serde_json::json;
use slmc_engine::{Engine, EngineError, Sweep, byte_products};
use slmc_ir::{Host, TokenId};

use super::{Session, engine, model};
use crate::{
    args::BenchArgs,
    failure::{Failure, OrFail, input_error},
    output,
};

/// Measures reading a prompt and writing, each from an empty context.
pub fn bench(args: &BenchArgs, session: &Session<'_>) -> Result<(), Failure> {
    if args.pp == 0 || args.tg == 0 || args.runs == 0 {
        return Err(input_error("--pp, --tg and --runs: at least 1 of each"));
    }
    let checkpoint = model::open_to_run(&args.model)?;
    let engine = engine::load(&checkpoint, args.how.exactness(), session)?;
    let Runs { mut reading, mut writing, mut energy } =
        Runs::measure(&engine, [args.pp, args.tg], args.runs, session)?;
    let (pp, tg) = (median(&mut reading), median(&mut writing));
    let joules = if energy.is_empty() { None } else { Some(median(&mut energy)) };
    let bytes = engine.bytes_per_token();
    let read_gb_per_s = bytes as f64 * tg / 1e9;
    let gops = engine.operations_per_token() as f64 * pp / 1e9;
    let bounds = Bounds::measure(&engine, session).or_run()?;
    let (read_share, int8_share) = (read_gb_per_s / bounds.gb_per_s, gops / bounds.gops);
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
        "bandwidth_gb_per_s": bounds.gb_per_s,
        "read_share": read_share,
        "int8_peak_gops": bounds.gops,
        "int8_share": int8_share,
        "joules_per_token": joules,
    });
    let text = format!(
        "pp{} {pp:.1} tokens/s ({gops:.0} GOP/s, {:.0} % of the CPU's byte products), \
         tg{} {tg:.1} tokens/s ({read_gb_per_s:.2} GB/s, {:.0} % of the memory's), {} threads{}",
        args.pp,
        100.0 * int8_share,
        args.tg,
        100.0 * read_share,
        options.n_threads,
        joules.map_or(String::new(), |joules| format!(", {joules:.3} J a written token")),
    );
    output::print(session.global.json, &document, &text)
}

/// What the machine can do at all, measured right after the model.
struct Bounds {
    /// Bytes read from memory, in 10^9 a second.
    gb_per_s: f64,
    /// Products and sums of bytes in registers, in 10^9 a second.
    gops: f64,
}

impl Bounds {
    fn measure(engine: &Engine, session: &Session<'_>) -> std::io::Result<Self> {
        /// Beyond what caches hold.
        const MEMORY: usize = 256 << 20;
        const ROUNDS: u32 = 2_000_000;
        let team = engine.team();
        let shortest = |run: &dyn Fn()| {
            let time = |()| {
                let began = session.terminal.elapsed();
                run();
                (session.terminal.elapsed() - began).as_secs_f64()
            };
            std::iter::repeat_n((), 8).map(time).fold(f64::INFINITY, f64::min)
        };
        let sweep = Sweep::new(MEMORY)?;
        let read = shortest(&|| sweep.read(team));
        let products = shortest(&|| {
            team.run(team.n_threads(), &|_| {
                std::hint::black_box(byte_products(ROUNDS));
            });
        });
        let n_products = byte_products(1) as f64 * f64::from(ROUNDS) * team.n_threads() as f64;
        Ok(Self { gb_per_s: MEMORY as f64 / read / 1e9, gops: n_products / products / 1e9 })
    }
}

/// What the processors' packages have used so far, in joules, where the system tells (RAPL).
fn joules_used() -> Option<f64> {
    let mut total = None;
    for entry in std::fs::read_dir("/sys/class/powercap").ok()?.flatten() {
        // `intel-rapl:0` is a package; `intel-rapl:0:0` is a part of one.
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("intel-rapl:") && name.matches(':').count() == 1)
        {
            let used = std::fs::read_to_string(entry.path().join("energy_uj")).ok()?;
            total = Some(total.unwrap_or(0.0) + used.trim().parse::<f64>().ok()? * 1e-6);
        }
    }
    total
}

/// What each run gave, in tokens a second and joules a token.
struct Runs {
    reading: Vec<f64>,
    writing: Vec<f64>,
    energy: Vec<f64>,
}

impl Runs {
    /// Prompts of `pp` tokens and texts of `tg`, after a run that warms caches and buffers up.
    fn measure(
        engine: &Engine,
        [pp, tg]: [usize; 2],
        n_runs: usize,
        session: &Session<'_>,
    ) -> Result<Self, Failure> {
        let mut context = engine.session(pp.max(tg)).map_err(engine::failure)?;
        let mut runs = Self { reading: Vec::new(), writing: Vec::new(), energy: Vec::new() };
        session.terminal.begin("bench", n_runs as u64 + 1, "runs");
        for run in 0..=n_runs {
            let (read, wrote, joules) =
                measure(&mut context, [pp, tg], run, session).map_err(engine::failure)?;
            if run > 0 {
                runs.reading.push(read);
                runs.writing.push(wrote);
                runs.energy.extend(joules);
            }
            session.terminal.advance_to(run as u64 + 1, &format!("pp {read:.0} tg {wrote:.0}"));
            if session.terminal.stop_requested() {
                session.terminal.end();
                return Err(Failure::Interrupted("nothing is kept: start it again".to_owned()));
            }
        }
        session.terminal.end();
        Ok(runs)
    }
}

/// Tokens a second of reading a prompt of `lengths[0]` tokens and of writing `lengths[1]`: medians of three runs.
pub(super) fn speed(
    engine: &Engine,
    lengths: [usize; 2],
    session: &Session<'_>,
) -> Result<[f64; 2], Failure> {
    let Runs { mut reading, mut writing, .. } = Runs::measure(engine, lengths, 3, session)?;
    Ok([median(&mut reading), median(&mut writing)])
}

/// Tokens a second of one run's prompt and of its text, and joules a token of the text.
fn measure(
    context: &mut slmc_engine::Session<'_>,
    [pp, tg]: [usize; 2],
    run: usize,
    session: &Session<'_>,
) -> Result<(f64, f64, Option<f64>), EngineError> {
    let n_tokens = pp.max(tg);
    let seed = session.global.seed.unwrap_or(0).wrapping_add(run as u64);
    let tokens = random_tokens(context.engine(), n_tokens, seed);
    context.truncate(0);
    let clock = || session.terminal.elapsed().as_secs_f64();
    let began = clock();
    context.read(&tokens[..pp])?;
    let read = clock();
    context.truncate(0);
    let before = joules_used();
    for token in &tokens[..tg] {
        context.append(std::slice::from_ref(token))?;
    }
    let wrote = clock();
    // The counters wrap around once in minutes: a run that sees it says nothing.
    let joules = before.zip(joules_used()).map(|(before, after)| (after - before) / tg as f64);
    let joules = joules.filter(|joules| *joules > 0.0);
    Ok((pp as f64 / (read - began), tg as f64 / (wrote - read), joules))
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
