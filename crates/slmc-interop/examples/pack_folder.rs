//! Packs a model's projections by plain rounding into one layout, and writes the same weights as floats beside it:
//!
//! ```sh
//! cargo run --release -p slmc-interop --example pack_folder -- MODEL gptq 4 64 asymmetric PACKED FLOAT
//! tests/reference/packed_layouts.py check PACKED FLOAT
//! ```

#![allow(clippy::print_stdout)] // it is a program

use std::{collections::BTreeMap, path::Path, sync::Arc};

use slmc_blocks::{decode_weight, f16_to_f32, f32_to_f16};
use slmc_interop::{PackedLayout, PackedMatrices, WriteOptions, open, write_hf_folder, write_packed_folder};
use slmc_ir::{Format, MemorySource, Quantized, QuantizedParts, SilentHost, Weight};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, layout, bits, group_size, symmetry, packed, float] = &args[..] else {
        return Err("usage: pack_folder MODEL LAYOUT BITS GROUP symmetric|asymmetric PACKED FLOAT".into());
    };
    let model = open(Path::new(model))?;
    let layout =
        PackedLayout::ALL.into_iter().find(|known| known.name() == layout).ok_or("no such layout")?;
    let (bits, group_size): (u8, usize) = (bits.parse()?, group_size.parse()?);
    let symmetric = symmetry == "symmetric";
    let (mut matrices, mut floats) = (BTreeMap::new(), BTreeMap::new());
    for &key in model.weights.keys() {
        let weight = model.weights.read(key)?;
        let numbers = decode_weight(&weight)?;
        if key.block.is_none() || weight.shape().len() != 2 {
            // A packed folder's floats are f16.
            floats.insert(key, slmc_blocks::encode_weight(&weight, Format::F16)?);
            continue;
        }
        let matrix = rounded(&numbers, weight.n_columns(), bits, group_size, symmetric)?;
        floats.insert(key, Weight::from_f32(weight.shape().to_vec(), &matrix.decode())?);
        matrices.insert(key, matrix);
    }
    let options = WriteOptions::default();
    let packing = PackedMatrices { layout, matrices: &matrices };
    let written = write_packed_folder(&model, packing, Path::new(packed), &options, &SilentHost)?;
    println!("{packed}: {} bytes, {} packed matrices", written.file_bytes, matrices.len());
    let source = MemorySource::new(model.spec().clone(), floats)?;
    let options = WriteOptions { float: Some(Format::F32), ..options };
    let float_model = model.with_weights(Arc::new(source));
    write_hf_folder(&float_model, Path::new(float), &options, &SilentHost)?;
    let (opened, expected) = (open(Path::new(packed))?, open(Path::new(float))?);
    for &key in opened.weights.keys() {
        let (a, b) = (opened.weights.read(key)?, expected.weights.read(key)?);
        if decode_weight(&a)? != decode_weight(&b)? {
            return Err(format!("{key} comes back as other weights").into());
        }
    }
    println!("every tensor comes back");
    Ok(())
}

/// Each group from its smallest to its largest weight, or as far on both sides of zero.
fn rounded(
    numbers: &[f32],
    columns: usize,
    bits: u8,
    group_size: usize,
    symmetric: bool,
) -> Result<Quantized, slmc_ir::QuantizedError> {
    let top = f32::from(((1_u16 << bits) - 1) as u8);
    let mut parts = QuantizedParts {
        rows: numbers.len() / columns,
        columns,
        bits,
        group_size,
        ..QuantizedParts::default()
    };
    for run in numbers.chunks(columns).flat_map(|row| row.chunks(group_size)) {
        let low = run.iter().copied().fold(0.0, f32::min);
        let high = run.iter().copied().fold(0.0, f32::max);
        let middle = f32::from(1_u8 << (bits - 1));
        let range = if symmetric { low.abs().max(high) / (middle - 0.5) } else { (high - low) / top };
        let scale = f16_to_f32(f32_to_f16(range));
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        // From 1, which every layout can say.
        let zero = if symmetric { middle } else { (-low * inverse).round().clamp(1.0, top) };
        parts.scales.push(scale);
        parts.zero_points.push(zero as u8);
        parts.levels.extend(run.iter().map(|x| (x * inverse + zero).round().clamp(0.0, top) as u8));
    }
    Quantized::new(parts)
}
