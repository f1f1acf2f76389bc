//! Folders with packed matrices, out and in: against bytes that an independent program packed
//! (`tests/golden/packed.json`, written by `tests/reference/packed_layouts.py write`), and against one another.

mod common;

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use common::{bpe, checkpoint, spec};
use serde_json::{Value, json};
use slmc_blocks::{decode_weight, f16_to_f32, from_quantized};
use slmc_formats::TypedHeader;
use slmc_interop::{
    PackedLayout, PackedMatrices, WriteOptions, open, write_gguf, write_hf_folder, write_packed_folder,
};
use slmc_ir::{
    Checkpoint, Family, Format, MemorySource, ModelSpec, Quantized, QuantizedParts, Role, SilentHost,
    TensorKey,
};

const PROJECTIONS: [Role; 7] =
    [Role::Query, Role::Key, Role::Value, Role::AttnOutput, Role::Gate, Role::Up, Role::Down];

/// Every projection of the model.
fn projections(spec: &ModelSpec) -> Vec<TensorKey> {
    (0..spec.n_layers).flat_map(|block| PROJECTIONS.map(|role| TensorKey::block(block, role))).collect()
}

/// How a made-up matrix is made.
#[derive(Clone, Copy)]
struct Make {
    bits: u8,
    group_size: usize,
    symmetric: bool,
    column_order: bool,
}

/// A matrix with levels, scales and zero points that differ everywhere; the same on every run.
fn quantized(rows: usize, columns: usize, make: Make) -> Quantized {
    let mut state = (rows * 31 + columns) as u32;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % limit
    };
    let Make { bits, group_size, symmetric, column_order } = make;
    let (n_levels, n_groups) = (1 << bits, columns.div_ceil(group_size));
    let zero = |level: usize| if symmetric { 1 << (bits - 1) } else { level.max(1) as u8 };
    Quantized::new(QuantizedParts {
        rows,
        columns,
        bits,
        group_size,
        levels: (0..rows * columns).map(|_| below(n_levels) as u8).collect(),
        scales: (0..rows * n_groups).map(|_| (below(2047) as f32 - 1023.0) / 65536.0).collect(),
        zero_points: (0..rows * n_groups).map(|_| zero(below(n_levels))).collect(),
        column_order: column_order.then(|| (0..columns as u32).map(|c| c * 7 % columns as u32).collect()),
    })
    .unwrap()
}

fn matrices(spec: &ModelSpec, make: Make) -> BTreeMap<TensorKey, Quantized> {
    let matrix = |key: TensorKey| {
        let shape = key.shape(spec);
        (key, quantized(shape[0], shape[1], make))
    };
    projections(spec).into_iter().map(matrix).collect()
}

fn write(
    model: &Checkpoint,
    layout: PackedLayout,
    matrices: &BTreeMap<TensorKey, Quantized>,
    path: &Path,
) -> Result<(), slmc_interop::WriteError> {
    let packed = PackedMatrices { layout, matrices };
    write_packed_folder(model, packed, path, &WriteOptions::default(), &SilentHost).map(|_| ())
}

/// The weights of a key, as numbers.
fn weights(model: &Checkpoint, key: TensorKey) -> Vec<f32> {
    decode_weight(&model.weights.read(key).unwrap()).unwrap()
}

fn layout_named(name: &str) -> PackedLayout {
    PackedLayout::ALL.into_iter().find(|layout| layout.name() == name).unwrap()
}

fn bytes_of_hex(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes();
    digits
        .as_chunks()
        .0
        .iter()
        .map(|pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The golden file's matrix: 32 rows and 64 columns, the tiny model's down projection.
fn golden_matrix(case: &Value) -> Quantized {
    let size = |field: &str| case[field].as_u64().unwrap() as usize;
    let scales = bytes_of_hex(&case["scales"]);
    let order = case["column_order"].as_array();
    Quantized::new(QuantizedParts {
        rows: size("rows"),
        columns: size("columns"),
        bits: size("bits") as u8,
        group_size: size("group_size"),
        levels: bytes_of_hex(&case["levels"]),
        scales: scales.as_chunks().0.iter().map(|half| f16_to_f32(u16::from_le_bytes(*half))).collect(),
        zero_points: bytes_of_hex(&case["zero_points"]),
        column_order: order.map(|order| order.iter().map(|c| c.as_u64().unwrap() as u32).collect()),
    })
    .unwrap()
}

#[test]
fn bytes_are_those_of_the_programs_that_read_them() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("golden/packed.json")).unwrap();
    assert_eq!(cases.len(), 10);
    for case in &cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let model = checkpoint(spec(Family::Llama), None);
        let key = TensorKey::block(1, Role::Down);
        let matrix = golden_matrix(case);
        let layout = layout_named(case["layout"].as_str().unwrap());
        let matrices = BTreeMap::from([(key, matrix.clone())]);
        write(&model, layout, &matrices, &path).unwrap();

        let file = fs::read(path.join("model.safetensors")).unwrap();
        let header = TypedHeader::parse(&file).unwrap();
        let prefix = "model.layers.1.mlp.down_proj.";
        let found: Vec<_> = header.tensors.iter().filter(|tensor| tensor.name.starts_with(prefix)).collect();
        let expected = case["tensors"].as_object().unwrap();
        assert_eq!(found.len(), expected.len(), "{layout}");
        for tensor in found {
            let expected = &expected[tensor.name.strip_prefix(prefix).unwrap()];
            assert_eq!(json!(tensor.shape), expected["shape"], "{layout} {}", tensor.name);
            assert!(
                file[tensor.range.clone()] == bytes_of_hex(&expected["bytes"]),
                "{layout} {}",
                tensor.name
            );
        }
        let opened = open(&path).unwrap();
        assert_eq!(weights(&opened, key), matrix.decode(), "{layout}");
        let other = TensorKey::block(0, Role::Down);
        assert_eq!(weights(&opened, other), weights(&model, other));
    }
}

#[test]
fn one_matrix_is_the_same_weights_in_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = checkpoint(ModelSpec { tied_head: false, ..spec(Family::Llama) }, Some(bpe()));
    let make = Make { bits: 4, group_size: 32, symmetric: true, column_order: false };
    let matrices = matrices(model.spec(), make);
    let mut paths = Vec::new();
    for layout in PackedLayout::ALL {
        paths.push(folder.path().join(layout.name()));
        write(&model, layout, &matrices, paths.last().unwrap()).unwrap();
    }
    // And in a GGUF.
    let mut packed: BTreeMap<_, _> =
        model.weights.keys().iter().map(|&key| (key, model.weights.read(key).unwrap())).collect();
    for (&key, matrix) in &matrices {
        packed.insert(key, from_quantized(matrix, Format::Q4_0).unwrap());
    }
    let source = MemorySource::new(model.spec().clone(), packed).unwrap();
    paths.push(folder.path().join("model.gguf"));
    let packed = model.clone().with_weights(Arc::new(source));
    write_gguf(&packed, paths.last().unwrap(), &WriteOptions::default(), &SilentHost).unwrap();

    for path in paths {
        let opened = open(&path).unwrap();
        assert_eq!(opened.spec(), model.spec(), "{}", path.display());
        for &key in model.weights.keys() {
            let expected = matrices.get(&key).map_or_else(|| weights(&model, key), Quantized::decode);
            assert_eq!(weights(&opened, key), expected, "{} {key}", path.display());
            if matrices.contains_key(&key) {
                let formats =
                    (opened.weights.format(key).unwrap(), opened.weights.read(key).unwrap().format());
                assert_eq!(formats, (Format::Q4_0, Format::Q4_0), "{} {key}", path.display());
            }
        }
    }
}

#[test]
fn every_scheme_comes_back() {
    let make = |bits, group_size, symmetric, column_order| Make { bits, group_size, symmetric, column_order };
    let (gptq, v2, awq, ct) =
        (PackedLayout::Gptq, PackedLayout::GptqV2, PackedLayout::Awq, PackedLayout::CompressedTensors);
    for (layout, make, format) in [
        (gptq, make(4, 32, false, false), Format::Q5_0),
        (gptq, make(4, 32, true, true), Format::F32),
        (gptq, make(8, 32, true, false), Format::Q8_0),
        (v2, make(2, 32, false, false), Format::Q4_0),
        (v2, make(4, 8, false, true), Format::F32),
        (v2, make(8, 16, false, false), Format::F32),
        (awq, make(4, 32, false, false), Format::Q5_0),
        (awq, make(4, 16, true, false), Format::F32),
        (ct, make(4, 32, false, false), Format::Q5_0),
        (ct, make(8, 32, true, false), Format::Q8_0),
        (ct, make(8, 32, false, false), Format::F32),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let model = checkpoint(spec(Family::Qwen3), Some(bpe()));
        let matrices = matrices(model.spec(), make);
        write(&model, layout, &matrices, &path).unwrap();
        let opened = open(&path).unwrap();
        for (&key, matrix) in &matrices {
            assert_eq!(weights(&opened, key), matrix.decode(), "{layout} {key}");
            // The other projections have one group a row, where no order is another order.
            if key.role == Role::Down {
                assert_eq!(opened.weights.format(key).unwrap(), format, "{layout} {key}");
            }
        }
        // Written again as floats it is an ordinary folder, and says nothing of packing any more.
        let float = folder.path().join("float");
        let options = WriteOptions { float: Some(Format::F32), ..WriteOptions::default() };
        write_hf_folder(&opened, &float, &options, &SilentHost).unwrap();
        let again = open(&float).unwrap();
        for (&key, matrix) in &matrices {
            assert_eq!(weights(&again, key), matrix.decode(), "{layout} {key}");
        }
        assert!(!fs::read_to_string(float.join("config.json")).unwrap().contains("quantization_config"));
    }
}

/// What the writer says to matrices that `change` was done to.
fn refused(layout: PackedLayout, change: impl Fn(&mut BTreeMap<TensorKey, Quantized>), words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let model = checkpoint(spec(Family::Llama), None);
    let make = Make { bits: 4, group_size: 32, symmetric: true, column_order: false };
    let mut matrices = matrices(model.spec(), make);
    change(&mut matrices);
    let message = write(&model, layout, &matrices, &path).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(!path.exists());
}

fn edited(matrix: &Quantized, edit: impl Fn(&mut QuantizedParts)) -> Quantized {
    let mut parts = matrix.parts().clone();
    edit(&mut parts);
    Quantized::new(parts).unwrap()
}

#[test]
fn what_a_layout_cannot_say_is_refused() {
    let down = TensorKey::block(0, Role::Down);
    let change = |key: TensorKey, edit: fn(&mut QuantizedParts)| {
        move |matrices: &mut BTreeMap<TensorKey, Quantized>| {
            let matrix = edited(&matrices[&key], edit);
            matrices.insert(key, matrix);
        }
    };
    let zero = change(down, |parts| parts.zero_points[5] = 0);
    refused(PackedLayout::Gptq, zero, &["block 0 down", "zero point 5", "gptq_v2"]);
    let order = change(down, |parts| parts.column_order = Some((0..64).rev().collect()));
    refused(PackedLayout::Awq, order, &["column order", "awq"]);
    refused(PackedLayout::CompressedTensors, order, &["column order"]);
    let order =
        change(TensorKey::block(1, Role::Key), |parts| parts.column_order = Some((0..32).rev().collect()));
    refused(PackedLayout::Gptq, order, &["block 1", "query, key, value"]);
    let finer = change(down, |parts| {
        *parts = quantized(32, 64, Make { bits: 4, group_size: 16, symmetric: true, column_order: false })
            .into_parts();
    });
    refused(PackedLayout::Gptq, finer, &["block 0", "groups of 16", "groups of 32", "one scheme"]);
    let five = Make { bits: 5, group_size: 32, symmetric: true, column_order: false };
    refused(PackedLayout::Awq, |m| *m = matrices(&spec(Family::Llama), five), &["awq", "4 bits", "5"]);
    let odd = Make { bits: 4, group_size: 24, symmetric: true, column_order: false };
    let uneven = |m: &mut BTreeMap<_, _>| *m = matrices(&spec(Family::Llama), odd);
    refused(PackedLayout::CompressedTensors, uneven, &["multiple of 24"]);
    let half = |m: &mut BTreeMap<_, _>| {
        m.remove(&TensorKey::block(1, Role::Gate));
    };
    refused(PackedLayout::Gptq, half, &["block 1", "gate, up"]);
    let make = Make { bits: 4, group_size: 32, symmetric: true, column_order: false };
    let embedding = TensorKey::model(Role::Embedding);
    let head = move |m: &mut BTreeMap<_, _>| {
        m.insert(embedding, quantized(common::VOCAB_SIZE, 32, make));
    };
    refused(PackedLayout::Gptq, head, &["embedding", "stay floats"]);
    let wide = move |m: &mut BTreeMap<_, _>| {
        m.insert(down, quantized(32, 32, make));
    };
    refused(PackedLayout::Gptq, wide, &["block 0 down", "[32, 32]", "[32, 64]"]);
}

#[test]
fn brain_floats_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let matrices = BTreeMap::new();
    let packed = PackedMatrices { layout: PackedLayout::Awq, matrices: &matrices };
    let options = WriteOptions { float: Some(Format::Bf16), ..WriteOptions::default() };
    let model = checkpoint(spec(Family::Llama), None);
    let error = write_packed_folder(&model, packed, &folder.path().join("m"), &options, &SilentHost);
    assert!(error.unwrap_err().to_string().contains("bf16"));
}

#[test]
fn the_configuration_names_what_stayed_float() {
    let make = Make { bits: 4, group_size: 32, symmetric: true, column_order: false };
    for layout in PackedLayout::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let model = checkpoint(ModelSpec { tied_head: false, ..spec(Family::Llama) }, None);
        let mut matrices = matrices(model.spec(), make);
        matrices.remove(&TensorKey::block(1, Role::Down));
        write(&model, layout, &matrices, &path).unwrap();
        let config: Value =
            serde_json::from_str(&fs::read_to_string(path.join("config.json")).unwrap()).unwrap();
        let config = &config["quantization_config"];
        let down = "model.layers.1.mlp.down_proj";
        match layout {
            PackedLayout::Gptq | PackedLayout::GptqV2 => {
                assert_eq!(config["quant_method"], "gptq");
                assert_eq!(config["checkpoint_format"], layout.name());
                assert_eq!((&config["sym"], &config["desc_act"]), (&json!(true), &json!(false)));
                assert!(config["dynamic"]["-:^model\\.layers\\.1\\.mlp\\.down_proj$"].is_object());
            }
            PackedLayout::Awq => {
                assert_eq!(config["modules_to_not_convert"], json!([down, "lm_head"]));
                assert_eq!((&config["version"], &config["group_size"]), (&json!("gemm"), &json!(32)));
            }
            PackedLayout::CompressedTensors => {
                assert_eq!(config["ignore"], json!([down, "lm_head"]));
                assert_eq!(config["config_groups"]["group_0"]["weights"]["num_bits"], 4);
            }
        }
        open(&path).unwrap();
    }
}
