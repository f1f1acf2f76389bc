use slmc_blocks::{decode_weight, f16_to_f32, f32_to_f16};
use slmc_ir::{Format, Weight};

use super::{Activations, HalfKernels, PackedMatrix, Precision, Store, products_on, reference, select::Isa};
use crate::{Team, Update, testing::numbers};

/// Formats whose levels are multiplied with int8 activations.
const LEVELS: [Format; 9] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Iq4Nl,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// Bytes from a counter: the same in every run.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    numbers(n, seed).into_iter().map(|x| ((x + 1.0) * 127.99) as u8).collect()
}

/// A matrix of any bits, but for scales, which are finite and of both signs.
fn any_weight(format: Format, n_rows: usize, n_columns: usize, seed: u64) -> Weight {
    let shape = vec![n_rows, n_columns];
    let n_bytes = Weight::bytes_for(&shape, format).unwrap();
    if format.block_weights() == 1 {
        let numbers = numbers(n_rows * n_columns, seed);
        let bytes: Vec<u8> = match format {
            Format::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Format::F16 => numbers.iter().flat_map(|&x| f32_to_f16(x).to_le_bytes()).collect(),
            _ => numbers.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        };
        return Weight::new(shape, format, bytes.into()).unwrap();
    }
    let mut bytes = noise(n_bytes, seed);
    let halves: &[usize] = match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q6K => &[208],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Mxfp4 => &[],
        _ => &[0],
    };
    for (unit, scale) in bytes.chunks_exact_mut(format.block_bytes()).zip(numbers(n_bytes, seed + 1)) {
        for (i, &at) in halves.iter().enumerate() {
            let half = f32_to_f16(scale * 0.1 * (1.0 + i as f32));
            unit[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        if format == Format::Mxfp4 {
            unit[0] = 120 + unit[0] % 8;
        }
    }
    Weight::new(shape, format, bytes.into()).unwrap()
}

/// The product on one instruction set, written between NaN that must stay.
fn product_of(isa: Isa, matrix: &PackedMatrix, x: &Activations, team: &Team) -> Vec<f32> {
    const GUARD: usize = 64;
    let n = matrix.n_rows() * x.n_rows();
    let mut out = vec![f32::NAN; n + 2 * GUARD];
    products_on(isa, &mut [(matrix, &mut out[GUARD..GUARD + n])], x, Update::Set, team);
    assert!(out[..GUARD].iter().chain(&out[GUARD + n..]).all(|x| x.is_nan()), "written outside");
    out[GUARD..GUARD + n].to_vec()
}

fn activations(x: &[f32], n_columns: usize, precision: Precision) -> Activations {
    let mut activations = Activations::new(n_columns, precision);
    activations.set(x);
    activations
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// `[rows, columns, tokens]`: rows below, at and above a tile and a panel of two; tokens on both sides of what goes
/// straight from memory (4), with every remainder of what registers hold, and past a task (128); columns of one
/// block, of a small model (64), of stretches of unequal length (576 = 18 blocks, 1536 = 3 panels, 608 = 2 panels); what
/// AMX multiplies at once (16 tokens, 4 tiles), with and without a rest, in one stretch (18 blocks, an odd one) and two.
fn sizes(format: Format) -> Vec<[usize; 3]> {
    let mut sizes = Vec::new();
    let unit = format.block_weights().max(32);
    for n_rows in [1, 15, 16, 17, 31, 32, 33, 49] {
        sizes.push([n_rows, 2 * unit, 1 + n_rows % 9]);
    }
    sizes.extend((1..=9).map(|n_tokens| [37, unit, n_tokens]));
    let columns = if unit == 32 { [576, 608, 1536] } else { [512, 768, 1536] };
    sizes.extend(columns.into_iter().flat_map(|n| [[50, n, 1], [50, n, 7]]));
    sizes.push([20, 2 * unit, 131]);
    sizes.extend([[64, columns[0], 16], [79, unit, 32], [65, columns[0] + unit, 35], [50, columns[2], 149]]);
    sizes
}

/// The name of the instruction set that the caller of the tests says this CPU has: one that goes undetected would not be tested.
const EXPECTED_ISA: &str = "SLMC_TEST_ISA";

#[test]
fn the_instruction_set_that_should_be_there_is_found() {
    let fastest = Isa::all().last().map(|isa| isa.name());
    if let Ok(expected) = std::env::var(EXPECTED_ISA) {
        assert_eq!(fastest, Some(expected.as_str()));
    }
}

#[test]
fn int8_products_are_the_references_bits() {
    let team = Team::new(2).unwrap();
    for format in LEVELS {
        for [n_rows, n_columns, n_tokens] in sizes(format) {
            let weight = any_weight(format, n_rows, n_columns, 1);
            let x = numbers(n_tokens * n_columns, 2);
            let expected = reference::product_int8(&weight, &x).unwrap();
            let matrix = PackedMatrix::new(&weight).unwrap();
            let x = activations(&x, n_columns, Precision::Int8);
            for isa in Isa::all() {
                let found = product_of(isa, &matrix, &x, &team);
                let what = format!("{} {format} {n_rows} {n_columns} {n_tokens}", isa.name());
                assert_eq!(bits(&found), bits(&expected), "{what}");
            }
        }
    }
}

#[test]
fn float_products_are_the_references_bits() {
    let team = Team::new(2).unwrap();
    for format in Format::ALL {
        let unit = format.block_weights().max(32);
        let odd = if format.block_weights() == 1 { 37 } else { unit };
        // Rows around a tile, a panel of two, and the four that a few tokens take at once; tokens on both sides of
        // four and of six, and past a task; columns beyond a panel's 256.
        let mut sizes = vec![[1, unit, 1], [17, odd, 6], [33, unit, 7], [50, 3 * unit, 2], [20, odd, 131]];
        sizes.extend((1..=5).map(|n_tokens| [64 + 7 * n_tokens, odd, n_tokens]));
        sizes.push([18, 9 * unit, 8]);
        for [n_rows, n_columns, n_tokens] in sizes {
            let weight = any_weight(format, n_rows, n_columns, 3);
            let x = numbers(n_tokens * n_columns, 4);
            let expected = reference::product_float(&weight, &x).unwrap();
            let matrix = PackedMatrix::new(&weight).unwrap();
            let x = activations(&x, n_columns, Precision::Float);
            for isa in Isa::all() {
                let found = product_of(isa, &matrix, &x, &team);
                assert_eq!(bits(&found), bits(&expected), "{} {format} {n_rows} {n_columns}", isa.name());
            }
        }
    }
}

#[test]
fn every_half_is_the_number_that_it_stands_for() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let weight = Weight::new(vec![1 << 16, 1], Format::F16, halves.into()).unwrap();
    let matrix = PackedMatrix::new(&weight).unwrap();
    let team = Team::new(1).unwrap();
    // From memory, and through a panel.
    for n_tokens in [1, 5] {
        let x = activations(&vec![1.0; n_tokens], 1, Precision::Float);
        for isa in Isa::all() {
            let found = product_of(isa, &matrix, &x, &team);
            for (found, half) in found.into_iter().zip((0..=u16::MAX).cycle()) {
                let expected = f16_to_f32(half);
                let same = found == expected || found.is_nan() && expected.is_nan();
                assert!(same, "{} {half:#x}: {found} {expected}", isa.name());
            }
        }
    }
}

#[test]
fn the_references_follow_the_products_in_f64() {
    for format in LEVELS {
        let (n_rows, n_columns) = (7, 512);
        let weight = any_weight(format, n_rows, n_columns, 5);
        let x = numbers(3 * n_columns, 6);
        let weights = decode_weight(&weight).unwrap();
        let float = reference::product_float(&weight, &x).unwrap();
        let int8 = reference::product_int8(&weight, &x).unwrap();
        for (token, x) in x.chunks(n_columns).enumerate() {
            // What the int8 activations stand for.
            let blocks = reference::quantize(x);
            let held: Vec<f64> = blocks
                .iter()
                .flat_map(|(q, scale)| q.iter().map(|&q| f64::from(q) * f64::from(*scale)))
                .collect();
            for (row, weights) in weights.chunks(n_columns).enumerate() {
                let sum = |x: &dyn Fn(usize) -> f64| -> [f64; 2] {
                    let terms = weights.iter().enumerate().map(|(i, &w)| f64::from(w) * x(i));
                    terms.fold([0.0; 2], |[sum, magnitude], term| [sum + term, magnitude + term.abs()])
                };
                // A chain of n roundings is off by at most n half-units of the sum of magnitudes.
                let unit = f64::from(f32::EPSILON) / 2.0;
                let [exact, magnitude] = sum(&|i| f64::from(x[i]));
                let found = f64::from(float[token * n_rows + row]);
                assert!((found - exact).abs() <= 512.0 * unit * magnitude, "{format}: {found} {exact}");
                // Here a block has up to eight roundings, and the minimum's part and the level's may cancel: levels
                // and minimums together are at most twice the largest weight's magnitude each.
                let [exact, magnitude] = sum(&|i| held[i]);
                let largest = weights.iter().fold(0.0_f64, |m, w| m.max(f64::from(w.abs())));
                let whole: f64 = held.iter().map(|x| 4.0 * largest * x.abs()).sum();
                let found = f64::from(int8[token * n_rows + row]);
                let bound = (16.0 * 8.0) * unit * (whole + magnitude);
                assert!((found - exact).abs() <= bound, "{format}: {found} {exact} {bound}");
            }
        }
    }
}

#[test]
fn rows_decode_to_the_weights_own_bits() {
    for format in Format::ALL {
        let n_columns = 2 * format.block_weights().max(32);
        let weight = any_weight(format, 19, n_columns, 7);
        let matrix = PackedMatrix::new(&weight).unwrap();
        let weights = decode_weight(&weight).unwrap();
        let mut row = vec![0.0; n_columns];
        for (i, expected) in weights.chunks(n_columns).enumerate() {
            matrix.decode_row(i, &mut row).unwrap();
            assert_eq!(bits(&row), bits(expected), "{format} row {i}");
        }
        assert!(matrix.decode_row(0, &mut row[1..]).is_err());
    }
}

#[test]
fn activations_are_the_references() {
    let team = Team::new(2).unwrap();
    // One block, a partial one, and several tasks of rows; a row of zeros and one of numbers near the smallest.
    for (n_rows, n_columns) in [(1, 32), (3, 37), (19, 64), (40, 576)] {
        let mut rows = numbers(n_rows * n_columns, 8);
        rows[..n_columns.min(32)].fill(0.0);
        rows[n_columns - 1] = 1e-38;
        let x = activations(&rows, n_columns, Precision::Int8);
        let expected = rows.chunks(n_columns).flat_map(reference::quantize);
        assert_eq!(x.blocks.len(), n_rows * n_columns.div_ceil(32));
        for (block, (quants, scale)) in x.blocks.iter().zip(expected) {
            let found: Vec<i32> =
                block.quants.as_flattened().iter().map(|q| i32::from(q.cast_signed())).collect();
            assert_eq!((found.as_slice(), block.scale), (&quants[..], scale));
            assert_eq!(block.minus_sum, -quants.iter().sum::<i32>());
            let halves = [&quants[..16], &quants[16..]].map(|half| -half.iter().sum::<i32>() as i16);
            assert_eq!(block.minus_halves, halves);
            assert_eq!(block.weighted_sum, scale * quants.iter().sum::<i32>() as f32);
        }
        let mut shared = Activations::new(n_columns, Precision::Int8);
        shared.set_with(&rows, &team);
        assert_eq!(shared.blocks, x.blocks);
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let team = Team::new(1).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for format in [Format::Q4_0, Format::Q8_0, Format::Q4_1, Format::F32] {
            let matrix = PackedMatrix::new(&any_weight(format, 16, 64, 9)).unwrap();
            let mut x = numbers(64, 10);
            x[40] = bad;
            for isa in Isa::all() {
                let out = product_of(isa, &matrix, &activations(&x, 64, Precision::Int8), &team);
                assert!(out.iter().all(|x| !x.is_finite()), "{} {format}: {out:?}", isa.name());
            }
        }
    }
}

#[test]
fn float_weights_take_what_int8_activations_stand_for() {
    let team = Team::new(1).unwrap();
    let weight = any_weight(Format::F16, 18, 70, 11);
    let x = numbers(5 * 70, 12);
    let held: Vec<f32> = x
        .chunks(70)
        .flat_map(|row| {
            let blocks = reference::quantize(row);
            let numbers = blocks.into_iter().flat_map(|(q, scale)| q.map(|q| scale * q as f32));
            numbers.take(70).collect::<Vec<_>>()
        })
        .collect();
    let expected = reference::product_float(&weight, &held).unwrap();
    let matrix = PackedMatrix::new(&weight).unwrap();
    for isa in Isa::all() {
        let found = product_of(isa, &matrix, &activations(&x, 70, Precision::Int8), &team);
        assert_eq!(bits(&found), bits(&expected));
    }
}

#[test]
fn several_products_at_once_are_each_alone_on_any_team() {
    let weights = [(Format::Q4_0, 33), (Format::Q8_0, 100), (Format::F16, 17), (Format::Q4_1, 16)];
    let matrices =
        weights.map(|(format, n_rows)| PackedMatrix::new(&any_weight(format, n_rows, 96, 13)).unwrap());
    for n_tokens in [1, 3, 40, 260] {
        let x = activations(&numbers(n_tokens * 96, 14), 96, Precision::Int8);
        let one = Team::new(1).unwrap();
        let alone = matrices.each_ref().map(|matrix| product_of(Isa::best(), matrix, &x, &one));
        for n_threads in [1, 2, 5] {
            let team = Team::new(n_threads).unwrap();
            let mut together = alone.each_ref().map(|out| vec![f32::NAN; out.len()]);
            let mut pairs: Vec<_> = matrices
                .iter()
                .zip(&mut together)
                .map(|(matrix, out)| (matrix, out.as_mut_slice()))
                .collect();
            super::products(&mut pairs, &x, &team);
            assert_eq!(together, alone);
        }
    }
}

#[test]
fn matrices_laid_out_together_are_one_matrix() {
    let team = Team::new(2).unwrap();
    // In and out of a store, rows that do and do not fill tiles, and a matrix without rows.
    let store = Store::new(1 << 20).unwrap();
    for format in LEVELS.into_iter().chain([Format::F16, Format::Q3K]) {
        let n_columns = 2 * format.block_weights().max(32);
        let weights = [16, 7, 0, 30].map(|n_rows| any_weight(format, n_rows, n_columns, n_rows as u64));
        let joined = weights.iter().flat_map(|weight| weight.bytes().to_vec()).collect::<Vec<u8>>();
        let joined =
            PackedMatrix::new(&Weight::new(vec![53, n_columns], format, joined.into()).unwrap()).unwrap();
        let x = activations(&numbers(3 * n_columns, 23), n_columns, Precision::Int8);
        let expected = product_of(Isa::best(), &joined, &x, &team);
        for store in [None, Some(&store)] {
            let stacked = PackedMatrix::stacked(&weights, store).unwrap();
            assert_eq!((stacked.n_rows(), stacked.n_bytes()), (53, joined.n_bytes()));
            assert_eq!(bits(&product_of(Isa::best(), &stacked, &x, &team)), bits(&expected), "{format}");
        }
    }
}

#[test]
fn empty_products_are_empty() {
    let team = Team::new(2).unwrap();
    let none = Weight::new(vec![0, 64], Format::Q4_0, Vec::new().into()).unwrap();
    let matrix = PackedMatrix::new(&none).unwrap();
    super::product(&matrix, &activations(&numbers(64, 1), 64, Precision::Int8), &mut [], &team);
    let matrix = PackedMatrix::new(&any_weight(Format::Q4_0, 16, 64, 15)).unwrap();
    super::product(&matrix, &Activations::new(64, Precision::Int8), &mut [], &team);
    assert!(matrix.kernel_name(Precision::Int8).ends_with("-q4_0i8-16x1"));
}

#[test]
fn norms_and_gates_are_those_of_the_separate_steps() {
    let (n_rows, n_columns) = (19, 70);
    let team = Team::new(2).unwrap();
    let (rows, gain) = (numbers(n_rows * n_columns, 16), numbers(n_columns, 17));
    let (mut normed, mut inverse) = (vec![0.0; rows.len()], vec![0.0; n_rows]);
    crate::rms_norm(&rows, &gain, 1e-5, &mut normed, &mut inverse);
    let ups = numbers(n_rows * n_columns, 18);
    let pairs = rows.chunks(n_columns).zip(ups.chunks(n_columns));
    let gate_up: Vec<f32> = pairs.flat_map(|(gate, up)| [gate, up].concat()).collect();
    let mut gated = vec![0.0; rows.len()];
    crate::swiglu(&gate_up, &mut gated, n_columns);
    for precision in [Precision::Int8, Precision::Float] {
        let mut found = Activations::new(n_columns, precision);
        found.set_rms_norm(&rows, &gain, 1e-5, &team);
        let expected = activations(&normed, n_columns, precision);
        assert_eq!((&found.blocks, &found.floats), (&expected.blocks, &expected.floats));
        let row = |row: usize| [&rows, &ups].map(|x| &x[row * n_columns..(row + 1) * n_columns]);
        found.set_swiglu(n_rows, &row, &team);
        let expected = activations(&gated, n_columns, precision);
        assert_eq!((&found.blocks, &found.floats), (&expected.blocks, &expected.floats));
    }
}

/// bf16 nearest to a number, as f32.
fn half(x: f32) -> f32 {
    slmc_blocks::bf16_to_f32(slmc_blocks::f32_to_bf16(x))
}

/// Activations in bf16, and rows of them as they are held.
fn halves(kernels: HalfKernels, x: &[f32], n_columns: usize) -> Activations {
    activations(x, n_columns, Precision::Half(kernels))
}

/// In f64, of factors rounded to bf16; and the sums of the magnitudes, which errors are measured by.
fn product_in_halves(weight: &Weight, x: &[f32]) -> Vec<[f64; 2]> {
    let (n_rows, n_columns) = (weight.n_rows(), weight.n_columns());
    let weights = decode_weight(weight).unwrap();
    let mut out = Vec::with_capacity(n_rows * x.len() / n_columns);
    for x in x.chunks(n_columns) {
        for row in weights.chunks(n_columns) {
            let products = x.iter().zip(row).map(|(&x, &w)| f64::from(half(x)) * f64::from(half(w)));
            out.push(products.fold([0.0; 2], |[sum, all], p| [sum + p, all + p.abs()]));
        }
    }
    out
}

#[test]
fn half_products_are_those_of_rounded_factors_and_tokens_do_not_see_each_other() {
    let Some(kernels) = HalfKernels::detect() else { return };
    let team = Team::new(2).unwrap();
    for format in LEVELS {
        for [n_rows, n_columns, n_tokens] in sizes(format) {
            let weight = any_weight(format, n_rows, n_columns, 1);
            let numbers = numbers(n_tokens * n_columns, 2);
            let expected = product_in_halves(&weight, &numbers);
            let matrix = PackedMatrix::new(&weight).unwrap();
            let x = halves(kernels, &numbers, n_columns);
            let found = product_of(Isa::best(), &matrix, &x, &team);
            for (found, [sum, all]) in found.iter().zip(&expected) {
                // Sums in f32, in an order of the unit's own. A weight that lies between two bf16 may have gone to the
                // other one: it is one fused multiply-add here, and two roundings where it is decoded.
                let most = 2e-5 * all + 1e-30;
                assert!((f64::from(*found) - sum).abs() < most, "{format} {n_rows} {n_columns} {n_tokens}");
            }
            let alone: Vec<f32> = numbers
                .chunks(n_columns)
                .flat_map(|row| product_of(Isa::best(), &matrix, &halves(kernels, row, n_columns), &team))
                .collect();
            assert_eq!(bits(&alone), bits(&found), "{format} {n_rows} {n_columns} {n_tokens}: alone");
            let mut sums = vec![1.0; found.len()];
            assert!(super::add_product(&matrix, &x, &mut sums, &team));
            for (sum, (found, [_, all])) in sums.iter().zip(found.iter().zip(&expected)) {
                assert!(
                    (f64::from(*sum) - 1.0 - f64::from(*found)).abs() < 1e-6 * (1.0 + all),
                    "{format}: added"
                );
            }
        }
    }
}

#[test]
fn gates_and_ups_that_are_not_kept_give_the_bits_of_those_that_are() {
    let Some(kernels) = HalfKernels::detect() else { return };
    let team = Team::new(2).unwrap();
    // Stretches of one and of several, tokens around a group, a square and a task; in one matrix, and in two of two formats.
    for (d, n_columns, n_tokens) in [(32, 64, 1), (96, 576, 33), (64, 1536, 47), (64, 608, 530)] {
        let numbers = numbers(n_tokens * n_columns, 5);
        let x = halves(kernels, &numbers, n_columns);
        let both = PackedMatrix::new(&any_weight(Format::Q4_0, 2 * d, n_columns, 6)).unwrap();
        let other = PackedMatrix::new(&any_weight(Format::Q5_1, d, n_columns, 7)).unwrap();
        for pair in [[(&both, 0), (&both, d)], [(&both, d), (&other, 0)]] {
            let kept = pair.map(|(matrix, _)| product_of(Isa::best(), matrix, &x, &team));
            let rows = |token: usize| {
                [0, 1].map(|which| {
                    let (matrix, first): (&PackedMatrix, usize) = pair[which];
                    &kept[which][token * matrix.n_rows() + first..][..d]
                })
            };
            let mut expected = Activations::new(d, Precision::Half(kernels));
            expected.set_swiglu(n_tokens, &rows, &team);
            let mut found = Activations::new(d, Precision::Half(kernels));
            assert!(found.set_gate_up(pair, &x, &team));
            assert_eq!(found.n_rows(), n_tokens);
            for token in 0..n_tokens {
                let row = |x: &Activations| {
                    let mut row = vec![0.0; d];
                    x.dequantize(token, 0, &mut row);
                    bits(&row)
                };
                assert_eq!(row(&found), row(&expected), "{d} {n_columns} {n_tokens}: token {token}");
            }
        }
    }
}

#[test]
fn every_way_in_rounds_to_the_nearest_half() {
    let Some(kernels) = HalfKernels::detect() else { return };
    let team = Team::new(2).unwrap();
    let (d, n_rows) = (70, 19);
    let (rows, gain) = (numbers(n_rows * d, 8), numbers(d, 9));
    let mut normed = rows.clone();
    crate::norm_rows(&mut normed, &gain, 1e-5);
    let up = |row: usize| [&rows[row * d..][..d], &normed[row * d..][..d]];
    let swiglu: Vec<f32> = (0..n_rows)
        .flat_map(|row| up(row)[0].iter().zip(up(row)[1]).map(|(&g, &u)| super::activations::gated(g, u)))
        .collect();
    let held = |set: &dyn Fn(&mut Activations)| {
        let mut x = Activations::new(d, Precision::Half(kernels));
        set(&mut x);
        let mut out = vec![0.0; n_rows * d];
        out.chunks_mut(d).enumerate().for_each(|(row, out)| x.dequantize(row, 0, out));
        out
    };
    let rounded = |x: &[f32]| bits(&x.iter().map(|&x| half(x)).collect::<Vec<_>>());
    assert_eq!(bits(&held(&|x| x.set(&rows))), rounded(&rows));
    assert_eq!(bits(&held(&|x| x.set_with(&rows, &team))), rounded(&rows));
    assert_eq!(bits(&held(&|x| x.set_rms_norm(&rows, &gain, 1e-5, &team))), rounded(&normed));
    assert_eq!(bits(&held(&|x| x.set_swiglu(n_rows, &up, &team))), rounded(&swiglu));
}
