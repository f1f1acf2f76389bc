//! How close another program's packed tensors are to a float model, and how close ours in the same formats:
//!
//! ```sh
//! cargo run --release -p slmc-interop --example rounding_error -- model-f32.gguf model-Q4_K_M.gguf [BLOCKS]
//! ```
//!
//! One line a tensor format: tensors, Σ error² / Σ weight² of theirs, of our searched scales, of our plain rounding,
//! and the seconds that each of ours took. With BLOCKS only that many blocks of the model are looked at.

#![allow(clippy::print_stdout)] // it is a program

use std::{collections::BTreeMap, path::Path, time::Instant};

use slmc_blocks::{decode, decode_weight, encode, encode_weighted};
use slmc_ir::Format;

#[derive(Default)]
struct Sums {
    n: usize,
    squares: f64,
    theirs: f64,
    searched: f64,
    plain: f64,
    search_s: f64,
    plain_s: f64,
    worse: Vec<String>,
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [float, packed, rest @ ..] = &paths[..] else {
        return Err("two models are needed: float, packed".into());
    };
    let n_blocks: usize = rest.first().map_or(Ok(usize::MAX), |n| n.parse())?;
    let (float, packed) = (slmc_interop::open(Path::new(float))?, slmc_interop::open(Path::new(packed))?);
    let mut by_format: BTreeMap<Format, Sums> = BTreeMap::new();
    for &key in float.weights.keys() {
        if n_blocks != usize::MAX && key.block.is_none_or(|block| block >= n_blocks) {
            continue;
        }
        let theirs = packed.weights.read(key)?;
        let format = theirs.format();
        if format.is_float() {
            continue;
        }
        let weights = decode_weight(&float.weights.read(key)?)?;
        let sums = by_format.entry(format).or_default();
        let mut bytes = vec![0; theirs.bytes().len()];
        let mut decoded = vec![0.0; weights.len()];
        sums.n += 1;
        sums.squares += weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
        let their_error = squared_error(&weights, &decode_weight(&theirs)?);
        sums.theirs += their_error;
        let began = Instant::now();
        encode_weighted(format, &weights, None, &mut bytes)?;
        sums.search_s += began.elapsed().as_secs_f64();
        decode(format, &bytes, &mut decoded)?;
        let our_error = squared_error(&weights, &decoded);
        sums.searched += our_error;
        if our_error > their_error {
            sums.worse.push(format!("{key} {:.4}", our_error / their_error));
        }
        let began = Instant::now();
        encode(format, &weights, &mut bytes)?;
        sums.plain_s += began.elapsed().as_secs_f64();
        decode(format, &bytes, &mut decoded)?;
        sums.plain += squared_error(&weights, &decoded);
    }
    println!(
        "format  tensors  theirs      searched    plain       searched/theirs  search s  plain s  worse"
    );
    for (format, s) in by_format {
        println!(
            "{:<7} {:>7}  {:.4e}  {:.4e}  {:.4e}  {:.4}           {:<8.2}  {:<7.2}  {:?}",
            format.name(),
            s.n,
            s.theirs / s.squares,
            s.searched / s.squares,
            s.plain / s.squares,
            s.searched / s.theirs,
            s.search_s,
            s.plain_s,
            s.worse
        );
    }
    Ok(())
}
