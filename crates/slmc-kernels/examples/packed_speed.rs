//! How fast products with packed weights are, beside what the machine can do at all.
//!
//! `cargo run --release -p slmc-kernels --example packed_speed [THREADS [FORMAT...]]`: for each format the bytes read a
//! second with one row of activations, and the products a second with 512. The matrices are those of a small
//! model's layers, as many as exceed the caches. First the bounds: bytes read from memory, and byte products
//! in registers. The last line is JSON.
#![allow(clippy::print_stdout)]

use std::{hint::black_box, time::Instant};

use slmc_ir::{Format, Weight};
use slmc_kernels::{
    Team,
    packed::{
        Activations, HalfKernels, PackedMatrix, Precision, Store, Sweep, byte_products, product, products,
    },
};

/// Rows and columns of a layer of SmolLM2-135M: queries, keys, values, output, gate, up, down.
const LAYER: [[usize; 2]; 7] =
    [[576, 576], [192, 576], [192, 576], [576, 576], [1536, 576], [1536, 576], [576, 1536]];
/// Bytes that exceed the caches.
const MEMORY: usize = 128 << 20;
const TOKENS: usize = 512;
const FORMATS: [Format; 12] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Iq4Nl,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
    Format::F16,
    Format::Bf16,
    Format::F32,
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let n_threads = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(2);
    let names: Vec<String> = arguments.collect();
    let team = Team::new(n_threads).expect("threads");
    let bandwidth = bandwidth(&team);
    let int8_peak = int8_peak(&team);
    println!("{n_threads} threads: {:.1} GB/s read, {:.0} GOP/s int8", bandwidth / 1e9, int8_peak / 1e9);
    let mut rows = Vec::new();
    for format in FORMATS.into_iter().filter(|f| names.is_empty() || names.iter().any(|n| n == f.name())) {
        let (read, operations, name) = speed(format, &team);
        println!(
            "{name:28} 1 row: {:6.2} GB/s ({:3.0} %)   {TOKENS} rows: {:7.1} GOP/s ({:3.0} %)",
            read / 1e9,
            100.0 * read / bandwidth,
            operations / 1e9,
            100.0 * operations / int8_peak
        );
        rows.push(format!(
            r#"{{"kernel":"{name}","format":"{format}","bytes_per_s":{read:.3e},"ops_per_s":{operations:.3e}}}"#
        ));
    }
    println!(
        r#"{{"n_threads":{n_threads},"read_bytes_per_s":{bandwidth:.3e},"int8_ops_per_s":{int8_peak:.3e},"kernels":[{}]}}"#,
        rows.join(",")
    );
}

/// The shortest of some runs, in seconds: what other programs take away is not the kernel's.
fn best(n: usize, mut run: impl FnMut()) -> f64 {
    let time = |()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    std::iter::repeat_n((), n).map(time).fold(f64::INFINITY, f64::min)
}

/// Bytes a second of reading memory, once over.
fn bandwidth(team: &Team) -> f64 {
    let sweep = Sweep::new(MEMORY).expect("memory");
    let seconds = best(8, || sweep.read(team));
    MEMORY as f64 / seconds
}

/// Products and sums a second of bytes in registers.
fn int8_peak(team: &Team) -> f64 {
    const ROUNDS: u32 = 4_000_000;
    let seconds = best(5, || {
        team.run(team.n_threads(), &|_| {
            black_box(byte_products(ROUNDS));
        });
    });
    byte_products(1) as f64 * f64::from(ROUNDS) * team.n_threads() as f64 / seconds
}

fn matrix(format: Format, [rows, columns]: [usize; 2], store: &Store) -> PackedMatrix {
    let columns = columns.next_multiple_of(format.block_weights());
    let n_bytes = Weight::bytes_for(&[rows, columns], format).expect("a small matrix");
    // As scales, these bytes are small normal numbers in every float format.
    let weight = Weight::new(vec![rows, columns], format, vec![0x11; n_bytes].into());
    let weight = weight.expect("as many bytes as asked for");
    PackedMatrix::stacked(&[weight], Some(store)).expect("a small matrix")
}

/// Bytes a second with one row, products a second with many, and the kernel's name.
fn speed(format: Format, team: &Team) -> (f64, f64, String) {
    let store = Store::new(2 * MEMORY).expect("memory");
    let layer = || LAYER.map(|shape| matrix(format, shape, &store));
    let layer_bytes: usize = layer().iter().map(PackedMatrix::n_bytes).sum();
    let layers: Vec<_> = (0..MEMORY.div_ceil(layer_bytes)).map(|_| layer()).collect();
    let precision = layers[0][0].best_precision();
    let numbers: Vec<f32> = (0..TOKENS * 2048).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    // Many rows are read in bf16 where the CPU can.
    let many = match (precision, HalfKernels::detect()) {
        (Precision::Int8, Some(kernels)) => Precision::Half(kernels),
        _ => precision,
    };
    let held = |n_columns: usize, n_rows: usize| {
        let mut x = Activations::new(n_columns, if n_rows == 1 { precision } else { many });
        x.set(&numbers[..n_rows * n_columns]);
        x
    };
    let [narrow, wide] = [&layers[0][0], &layers[0][6]].map(PackedMatrix::n_columns);
    // On cache lines, as the engine's are.
    let mut outs = LAYER.map(|[rows, _]| vec![[0.0_f32; 16]; TOKENS * rows / 16 + 4]);
    let mut outs = outs.each_mut().map(|lines| {
        let numbers = lines.as_flattened_mut();
        let first = numbers.as_ptr().align_offset(64);
        &mut numbers[first..]
    });

    let (x, hidden) = (held(narrow, 1), held(wide, 1));
    let seconds = best(8, || {
        for [q, k, v, o, gate, up, down] in &layers {
            let [q_out, k_out, v_out, o_out, gate_out, up_out, down_out] = &mut outs;
            let pairs = &mut [(q, &mut q_out[..576]), (k, &mut k_out[..192]), (v, &mut v_out[..192])];
            products(pairs, &x, team);
            product(o, &x, &mut o_out[..576], team);
            products(&mut [(gate, &mut gate_out[..1536]), (up, &mut up_out[..1536])], &x, team);
            product(down, &hidden, &mut down_out[..576], team);
        }
    });
    let read = (layers.len() * layer_bytes) as f64 / seconds;

    let (x, hidden) = (held(narrow, TOKENS), held(wide, TOKENS));
    let layer = &layers[0];
    let seconds = best(10, || {
        for _ in 0..2 {
            for (i, (matrix, out)) in layer.iter().zip(&mut outs).enumerate() {
                product(matrix, if i == 6 { &hidden } else { &x }, &mut out[..TOKENS * LAYER[i][0]], team);
            }
        }
    });
    let products: usize = layer.iter().map(|m| m.n_rows() * m.n_columns()).sum();
    (read, (2 * 2 * TOKENS * products) as f64 / seconds, layer[0].kernel_name(many))
}
