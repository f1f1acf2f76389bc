//! Packed folders that are not what they should be: errors that name the place, never a panic.

mod common;

use std::{fs, path::Path};

use common::write_packed;
use serde_json::{Value, json};
use slmc_formats::{Dtype, PlannedTypedTensor, SafetensorsWriter, TypedHeader};
use slmc_interop::{PackedLayout, open};
use slmc_ir::{Role, TensorKey};

const DOWN: &str = "model.layers.1.mlp.down_proj";

fn down() -> TensorKey {
    TensorKey::block(1, Role::Down)
}

/// Opens and reads everything of a folder that was damaged; the error must have all words.
fn check(layout: PackedLayout, damage: impl FnOnce(&Path), words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write_packed(layout, &path);
    damage(&path);
    let message = match open(&path) {
        Err(error) => error.to_string(),
        Ok(model) => {
            let read = model.weights.keys().iter().find_map(|&key| model.weights.read(key).err());
            read.expect("a damaged folder is not read").to_string()
        }
    };
    for word in words {
        assert!(message.contains(word), "{word}: {message}");
    }
}

fn edit_config(edit: impl FnOnce(&mut Value)) -> impl FnOnce(&Path) {
    move |folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        edit(&mut config["quantization_config"]);
        fs::write(path, config.to_string()).unwrap();
    }
}

/// A tensor while it is edited.
struct Tensor {
    planned: PlannedTypedTensor,
    bytes: Vec<u8>,
}

fn edit_tensors(edit: impl Fn(&mut Tensor) -> bool) -> impl FnOnce(&Path) {
    move |folder| {
        let path = folder.join("model.safetensors");
        let file = fs::read(&path).unwrap();
        let header = TypedHeader::parse(&file).unwrap();
        let mut kept = Vec::new();
        for tensor in header.tensors {
            let bytes = file[tensor.range].to_vec();
            let planned = PlannedTypedTensor { name: tensor.name, dtype: tensor.dtype, shape: tensor.shape };
            let mut tensor = Tensor { planned, bytes };
            if edit(&mut tensor) {
                kept.push(tensor);
            }
        }
        let planned: Vec<_> = kept.iter().map(|tensor| tensor.planned.clone()).collect();
        let mut writer = SafetensorsWriter::create_typed(&path, &header.metadata, &planned).unwrap();
        for tensor in kept {
            writer.tensor(&tensor.bytes).unwrap();
        }
        writer.finish().unwrap();
    }
}

fn edit_tensor(suffix: &'static str, edit: impl Fn(&mut Tensor)) -> impl FnOnce(&Path) {
    edit_tensors(move |tensor| {
        if tensor.planned.name == format!("{DOWN}.{suffix}") {
            edit(tensor);
        }
        true
    })
}

#[test]
fn configurations_that_are_not_known() {
    let set = |field: &'static str, value: Value| edit_config(move |config| config[field] = value);
    let gptq = PackedLayout::Gptq;
    check(gptq, set("quant_method", json!("exl2")), &["config.json", "quant_method", "exl2"]);
    check(gptq, set("quant_method", Value::Null), &["quant_method", "missing"]);
    check(gptq, set("checkpoint_format", json!("marlin")), &["checkpoint_format", "marlin"]);
    check(gptq, set("pack_dtype", json!("int64")), &["pack_dtype"]);
    check(gptq, set("lm_head", json!(true)), &["lm_head"]);
    check(gptq, set("bits", json!(3)), &[DOWN, "3"]);
    check(gptq, set("bits", json!(0)), &["bits", "2 to 8"]);
    check(gptq, set("bits", json!(33)), &["bits", "2 to 8"]);
    check(gptq, set("bits", json!("4")), &["bits", "number"]);
    check(gptq, set("group_size", json!(0)), &["group_size"]);
    check(gptq, set("group_size", json!(-2)), &["group_size"]);
    check(gptq, set("group_size", json!(u64::MAX)), &[DOWN]);
    check(gptq, set("group_size", json!(16)), &[DOWN, "[2, 4]", "[4, 4]"]);
    check(gptq, set("dynamic", json!({ "+:.*": { "bits": 8 } })), &["dynamic", "one scheme"]);
    check(gptq, |p| edit_config(|c| *c = json!([1]))(p), &["quant_method"]);
    let awq = PackedLayout::Awq;
    check(awq, set("version", json!("gemv")), &["version", "gemv"]);
    check(awq, set("zero_point", json!(false)), &["zero_point"]);
    check(awq, set("bits", json!(8)), &[DOWN, "awq", "8"]);
    check(awq, set("group_size", json!(24)), &[DOWN, "multiple of 24"]);
    let ct = PackedLayout::CompressedTensors;
    check(ct, set("format", json!("nvfp4-pack-quantized")), &["format", "nvfp4"]);
    check(ct, set("config_groups", json!({})), &["config_groups"]);
    check(ct, set("config_groups", Value::Null), &["config_groups", "missing"]);
    check(ct, set("quantization_status", json!("frozen")), &["quantization_status"]);
    check(ct, set("kv_cache_scheme", json!({ "num_bits": 8 })), &["kv_cache_scheme"]);
    check(ct, set("sparsity_config", json!({ "format": "sparse-24" })), &["sparsity_config.format"]);
    let weights = |field: &'static str, value: Value| {
        edit_config(move |config| config["config_groups"]["group_0"]["weights"][field] = value)
    };
    check(ct, weights("type", json!("float")), &["type", "float"]);
    check(ct, weights("strategy", json!("block")), &["strategy", "block"]);
    check(ct, weights("actorder", json!("group")), &["actorder"]);
    check(ct, weights("num_bits", json!(9)), &["num_bits"]);
    check(ct, weights("symmetric", json!(true)), &["weight_zero_point", "not part"]);
    let activations = edit_config(|config| {
        config["config_groups"]["group_0"]["input_activations"] = json!({ "num_bits": 8 });
    });
    check(ct, activations, &["input_activations"]);
}

#[test]
fn tensors_that_do_not_belong() {
    for layout in PackedLayout::ALL {
        let first = if layout == PackedLayout::CompressedTensors { "weight_packed" } else { "qweight" };
        let scales = if layout == PackedLayout::CompressedTensors { "weight_scale" } else { "scales" };
        for suffix in [first, scales] {
            let name = format!("{DOWN}.{suffix}");
            let drop = edit_tensors(|tensor| tensor.planned.name != format!("{DOWN}.{suffix}"));
            check(layout, drop, &[&name, "missing"]);
            let turn = edit_tensor(suffix, |tensor| tensor.planned.shape.reverse());
            check(layout, turn, &[&name, "shape"]);
        }
        let retype = edit_tensor(first, |tensor| {
            tensor.planned.dtype = Dtype::U8;
            tensor.planned.shape[1] *= 4;
        });
        check(layout, retype, &[first, "U8", "I32"]);
        let rename = edit_tensor(first, |tensor| tensor.planned.name = format!("{DOWN}.secret"));
        check(layout, rename, &[DOWN]);
        let beyond = edit_tensors(|tensor| {
            tensor.planned.name = tensor.planned.name.replace("layers.1.mlp.down", "layers.9.mlp.down");
            true
        });
        check(layout, beyond, &["layers.9.mlp.down_proj", "not part"]);
        let elsewhere = edit_tensor(first, |tensor| tensor.planned.name = format!("model.norm.{first}"));
        check(layout, elsewhere, &["model.norm"]);
        // An embedding that is packed is read nowhere.
        let integers = edit_tensors(|tensor| {
            if tensor.planned.name == "model.embed_tokens.weight" {
                tensor.planned.dtype = Dtype::U8;
                tensor.planned.shape[1] *= 2;
            }
            true
        });
        check(layout, integers, &["model.embed_tokens.weight", "U8", "floats"]);
    }
}

fn set_word(at: usize, word: i32) -> impl Fn(&mut Tensor) {
    move |tensor| tensor.bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes())
}

#[test]
fn groups_and_zero_points_are_checked() {
    let v2 = PackedLayout::GptqV2;
    check(v2, edit_tensor("g_idx", set_word(63, 2)), &[DOWN, "column 63 is 2", "no such group"]);
    check(v2, edit_tensor("g_idx", set_word(5, -1)), &[DOWN, "column 5 is -1"]);
    check(v2, edit_tensor("g_idx", set_word(5, i32::MIN)), &[DOWN, "column 5"]);
    check(v2, edit_tensor("g_idx", set_word(5, 0)), &[DOWN, "g_idx", "other sizes"]);
    let missing = edit_tensors(|tensor| !tensor.planned.name.ends_with("g_idx"));
    check(v2, missing, &["g_idx", "missing"]);
    // Stored 15 is 16, or 0: nobody knows.
    check(
        PackedLayout::Gptq,
        edit_tensor("qzeros", set_word(0, 0x7777_77f7)),
        &[DOWN, "zero point", "gptq_v2"],
    );
    let ct = PackedLayout::CompressedTensors;
    check(ct, edit_tensor("weight_shape", |tensor| tensor.bytes[0] = 33), &[DOWN, "weight_shape"]);
}

#[test]
fn scales_that_are_not_finite_are_found_when_they_are_read() {
    for layout in PackedLayout::ALL {
        let suffix = if layout == PackedLayout::CompressedTensors { "weight_scale" } else { "scales" };
        let nan = edit_tensor(suffix, |tensor| tensor.bytes[..2].copy_from_slice(&[0xff, 0x7f]));
        check(layout, nan, &["NaN"]);
    }
}

#[test]
fn scales_in_other_floats_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write_packed(PackedLayout::CompressedTensors, &path);
    let before = slmc_blocks::decode_weight(&open(&path).unwrap().weights.read(down()).unwrap()).unwrap();
    // 0.25 in bf16, and 0.25 + 2^-20 in f32, which f16 does not hold.
    let bf16 = Dtype::of(slmc_ir::Format::Bf16).unwrap();
    edit_tensor("weight_scale", |tensor| {
        tensor.planned.dtype = bf16;
        tensor.bytes = [0x80, 0x3e].repeat(64);
    })(&path);
    let read = || slmc_blocks::decode_weight(&open(&path).unwrap().weights.read(down()).unwrap()).unwrap();
    assert_eq!(read(), before);
    let f32_type = Dtype::of(slmc_ir::Format::F32).unwrap();
    let scale = 0.25_f32 + 2.0_f32.powi(-20);
    edit_tensor("weight_scale", |tensor| {
        tensor.planned.dtype = f32_type;
        tensor.bytes = scale.to_le_bytes().repeat(64);
    })(&path);
    let expected: Vec<f32> = before.iter().map(|weight| weight / 0.25 * scale).collect();
    assert_eq!(read(), expected);
}
