//! Times whole training steps: gradients, clipping, AdamW. `benches/train_step_pytorch.py` does the same.
//!
//! ```text
//! train_step small|smollm2 [STEPS] [DEVICE] [--recompute] [--bf16]
//! ```
//!
//! The number of threads is rayon's (`RAYON_NUM_THREADS`). The last line of stdout is JSON: `tokens_per_s` (median
//! of the steps after two warm-up steps), `peak_rss_bytes`, `threads`.
#![allow(clippy::print_stdout)] // it is a program

use std::time::Instant;

use slmc_ir::{Activation, Biases, Family, ModelSpec, RopeScaling, TokenId};
use slmc_model::{AdamW, AdamWHyper, Decoder, DeviceChoice, Products, gradients, next_token_loss};

const BATCH: usize = 4;
const SEQ: usize = 256;
const WARM_UP: usize = 2;

fn spec(name: &str) -> Option<ModelSpec> {
    let (vocab_size, d_model, n_layers, n_heads, n_kv_heads, d_ff) = match name {
        "small" => (4096, 288, 6, 6, 6, 768),
        "smollm2" => (49152, 576, 30, 9, 3, 1536),
        _ => return None,
    };
    Some(ModelSpec {
        family: Family::Llama,
        vocab_size,
        context_len: 2048,
        d_model,
        n_layers,
        n_heads,
        n_kv_heads,
        d_head: d_model / n_heads,
        d_ff,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::None,
        activation: Activation::Silu,
        biases: Biases::default(),
        qk_norm: false,
        tied_head: true,
    })
}

/// Peak resident memory of this process, in bytes; 0 where the system does not say.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let recompute = arguments.iter().any(|a| a == "--recompute");
    let products = match arguments.iter().any(|a| a == "--bf16") {
        true => Products::half().expect("a CPU with bf16 tiles"),
        false => Products::Single,
    };
    arguments.retain(|a| a != "--recompute" && a != "--bf16");
    let argument = |i: usize, default: &str| arguments.get(i).map_or(default, String::as_str).to_owned();
    let spec = spec(&argument(0, "small")).expect("small or smollm2");
    let n_steps: usize = argument(1, "10").parse().expect("a number of steps");
    let choice: DeviceChoice = argument(2, "flex").parse().expect("a device");
    let device = choice.open().expect("a device of this build").autodiff();

    slmc_kernels::keep_freed_memory(); // as the training loop does
    let mut decoder = Decoder::fresh(&spec, 0, &device).with_products(products);
    let mut optimizer = AdamW::new();
    let mut state = 1_u32;
    let mut token = || -> TokenId {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % spec.vocab_size as u32
    };
    let mut times = Vec::new();
    for step in 0..n_steps + WARM_UP {
        let tokens: Vec<TokenId> = (0..BATCH * SEQ).map(|_| token()).collect();
        let targets: Vec<TokenId> = (0..BATCH * SEQ).map(|_| token()).collect();
        let start = Instant::now();
        let loss = |hidden, head| (next_token_loss(hidden, head, &targets, None, products), ());
        let (loss, (), mut grads) = gradients(&decoder, &tokens, BATCH, SEQ, loss, recompute);
        let back = start.elapsed();
        grads.clip(1.0);
        decoder = optimizer.step(decoder, grads, 1e-3, AdamWHyper::default());
        let time = start.elapsed();
        println!(
            "step {step} loss {loss:.4} {:.4} s, {:.4} s of it gradients",
            time.as_secs_f64(),
            back.as_secs_f64()
        );
        times.push(time.as_secs_f64());
    }
    times.drain(..WARM_UP);
    times.sort_by(f64::total_cmp);
    let tokens_per_s = (BATCH * SEQ) as f64 / times[times.len() / 2];
    println!(
        r#"{{"tokens_per_s": {tokens_per_s:.1}, "peak_rss_bytes": {}, "threads": {}}}"#,
        peak_rss_bytes(),
        rayon_threads()
    );
}

/// What rayon uses: its variable, or the cores.
fn rayon_threads() -> usize {
    let set = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    set.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}
