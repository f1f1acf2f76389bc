//! Hugging Face folders with something wrong: the error names it.

mod common;

use std::{fs, path::Path};

use common::{bpe, checkpoint, spec};
use serde_json::{Value, json};
use slmc_formats::safetensors::{PlannedSafeTensor, SafetensorsHeader, SafetensorsWriter};
use slmc_interop::{WriteOptions, open, write_gguf, write_hf_folder};
use slmc_ir::{Family, ModelSpec, SilentHost};

/// A sound folder, damaged by `damage`, does not open, and the error says all of `expected`.
fn check(spec: ModelSpec, damage: impl FnOnce(&Path), expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    write_hf_folder(&checkpoint(spec, Some(bpe())), &path, &WriteOptions::default(), &SilentHost).unwrap();
    open(&path).map(|_| ()).unwrap();
    damage(&path);
    let message = open(&path).map(|_| ()).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

fn edit_json(folder: &Path, file: &str, edit: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut json = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

fn check_config(family: Family, field: &str, value: Value, expected: &[&str]) {
    let set = |config: &mut Value| config[field] = value;
    check(spec(family), |folder| edit_json(folder, "config.json", set), expected);
}

#[test]
fn config_fields_of_the_wrong_kind() {
    let llama = Family::Llama;
    check_config(
        llama,
        "hidden_size",
        json!("32"),
        &["config.json", "hidden_size", "\"32\"", "whole number"],
    );
    check_config(llama, "hidden_size", json!(-32), &["hidden_size", "-32"]);
    check_config(llama, "hidden_size", json!(32.5), &["hidden_size", "32.5"]);
    check_config(llama, "hidden_size", json!(1e300), &["hidden_size"]);
    check_config(llama, "hidden_size", Value::Null, &["hidden_size", "missing"]);
    check_config(llama, "hidden_size", json!(0), &["d_model", "between 1 and"]);
    check_config(llama, "vocab_size", json!(u64::MAX), &["vocab_size", "2^24"]);
    check_config(llama, "num_hidden_layers", json!(1_000_000_000), &["n_layers", "4096"]);
    check_config(llama, "num_key_value_heads", json!(3), &["n_kv_heads", "divide"]);
    check_config(llama, "num_attention_heads", json!(0), &["n_heads"]);
    check_config(llama, "head_dim", json!(7), &["d_head", "even"]);
    check_config(llama, "rms_norm_eps", json!(-1.0), &["norm_eps"]);
    check_config(llama, "rope_theta", json!("big"), &["rope_theta"]);
    check_config(llama, "tie_word_embeddings", json!("yes"), &["tie_word_embeddings", "true or false"]);
}

#[test]
fn config_fields_that_change_what_is_computed() {
    let llama = Family::Llama;
    check_config(llama, "model_type", json!("gemma3"), &["unsupported architecture `gemma3`", "qwen3"]);
    check_config(llama, "model_type", Value::Null, &["model_type", "missing"]);
    check_config(llama, "architectures", json!(["LlamaForSequenceClassification"]), &["architectures"]);
    check_config(llama, "hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]);
    check_config(
        llama,
        "rope_scaling",
        json!({ "type": "yarn", "factor": 4.0 }),
        &["rope_scaling.type", "yarn"],
    );
    check_config(
        llama,
        "rope_scaling",
        json!({ "rope_type": "linear" }),
        &["rope_scaling.factor", "missing"],
    );
    let odd = json!({ "rope_type": "linear", "factor": 2.0, "beta_fast": 32 });
    check_config(llama, "rope_scaling", odd, &["rope_scaling.beta_fast"]);
    check_config(llama, "rope_scaling", json!("linear"), &["rope_scaling", "object"]);
    check_config(
        llama,
        "rope_parameters",
        json!({ "rope_type": "longrope" }),
        &["rope_parameters.rope_type"],
    );
    check_config(llama, "partial_rotary_factor", json!(0.5), &["partial_rotary_factor"]);
    check_config(llama, "attn_logit_softcapping", json!(50.0), &["attn_logit_softcapping", "not known"]);
    check_config(
        llama,
        "quantization_config",
        json!({ "quant_method": "exl2", "bits": 4 }),
        &["quantization_config", "float model"],
    );
    check_config(Family::Mistral, "sliding_window", json!(64), &["sliding_window", "64"]);
    check_config(Family::Qwen3, "layer_types", json!(["sliding_attention"]), &["layer_types"]);
}

#[test]
fn config_fields_without_effect_are_no_matter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let original = checkpoint(spec(Family::Qwen3), Some(bpe()));
    write_hf_folder(&original, &path, &WriteOptions::default(), &SilentHost).unwrap();
    edit_json(&path, "config.json", |config| {
        config["torch_dtype"] = json!("bfloat16");
        config["_name_or_path"] = json!("somewhere");
        config["new_field"] = Value::Null;
        config["sliding_window"] = json!(16);
        config["use_sliding_window"] = json!(false);
        config["layer_types"] = json!(["full_attention", "full_attention"]);
        config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 10_000.0 });
        config.as_object_mut().unwrap().remove("rope_theta");
    });
    common::assert_same_weights(&original, &open(&path).unwrap());
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let put = |file: &'static str, text: &'static str| {
        move |folder: &Path| fs::write(folder.join(file), text).unwrap()
    };
    let llama = || spec(Family::Llama);
    check(llama(), put("config.json", "{"), &["config.json", "JSON"]);
    check(llama(), put("config.json", "[]"), &["config.json", "map"]);
    check(llama(), put("tokenizer_config.json", "not JSON"), &["tokenizer_config.json", "JSON"]);
    check(llama(), put("tokenizer.json", "{}"), &["tokenizer.json", "model"]);
    check(llama(), put("slmc.json", r#"{"version":2}"#), &["slmc.json", "version", "2"]);
    check(llama(), put("model.safetensors", "12345678"), &["model.safetensors"]);
    check(
        llama(),
        |folder| fs::remove_file(folder.join("model.safetensors")).unwrap(),
        &["model.safetensors"],
    );
    let pickle = |folder: &Path| {
        fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    };
    check(llama(), pickle, &["pytorch_model.bin", "safetensors"]);
    let old = |folder: &Path| {
        fs::rename(folder.join("tokenizer.json"), folder.join("tokenizer.model")).unwrap();
    };
    check(llama(), old, &["tokenizer.model", "tokenizer.json"]);
    let not_utf8 = |folder: &Path| fs::write(folder.join("config.json"), [0xff, 0xfe]).unwrap();
    check(llama(), not_utf8, &["config.json", "UTF-8"]);
}

/// Rewrites the weights with other names or shapes; `None` drops the tensor.
fn edit_tensors(folder: &Path, edit: impl Fn(&str, Vec<usize>) -> Option<(String, Vec<usize>)>) {
    let path = folder.join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let header = SafetensorsHeader::parse(&file).unwrap();
    let kept: Vec<_> = header
        .tensors
        .iter()
        .filter_map(|tensor| {
            let (name, shape) = edit(&tensor.name, tensor.shape.clone())?;
            Some((PlannedSafeTensor { name, format: tensor.format, shape }, tensor.range.clone()))
        })
        .collect();
    let planned: Vec<_> = kept.iter().map(|(planned, _)| planned.clone()).collect();
    let mut writer = SafetensorsWriter::create(&path, &header.metadata, &planned).unwrap();
    for (_, range) in kept {
        writer.tensor(&file[range]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn tensors_that_do_not_belong() {
    let down = "model.layers.1.mlp.down_proj.weight";
    let rename = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            edit_tensors(folder, |name, shape| {
                Some((if name == from { to } else { name }.to_owned(), shape))
            });
        }
    };
    let llama = || spec(Family::Llama);
    let drop =
        |folder: &Path| edit_tensors(folder, |name, shape| (name != down).then(|| (name.to_owned(), shape)));
    check(llama(), drop, &[down, "missing"]);
    let transpose = |folder: &Path| {
        edit_tensors(folder, |name, mut shape| {
            if name == down {
                shape.reverse();
            }
            Some((name.to_owned(), shape))
        });
    };
    check(llama(), transpose, &[down, "[64, 32]", "[32, 64]"]);
    check(llama(), rename(down, "model.layers.1.mlp.experts.weight"), &["model.layers.1.mlp.experts.weight"]);
    check(llama(), rename(down, "model.layers.2.mlp.down_proj.weight"), &[down, "missing"]);
    let deeper = |config: &mut Value| config["num_hidden_layers"] = json!(1);
    let shallow = |folder: &Path| edit_json(folder, "config.json", deeper);
    check(llama(), shallow, &["model.layers.1.", "not part"]);
}

#[test]
fn names_may_lack_their_prefix_and_old_buffers_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let original = checkpoint(spec(Family::Llama), None);
    write_hf_folder(&original, &path, &WriteOptions::default(), &SilentHost).unwrap();
    edit_tensors(&path, |name, shape| Some((name.strip_prefix("model.").unwrap().to_owned(), shape)));
    common::assert_same_weights(&original, &open(&path).unwrap());
}

#[test]
fn numbers_that_are_not_finite_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let mut weights = common::weights(&spec(Family::Llama));
    let key = slmc_ir::TensorKey::block(1, slmc_ir::Role::Down);
    let mut numbers = vec![0.5_f32; 32 * 64];
    numbers[77] = 1e6;
    let weight = |numbers: &[f32]| slmc_ir::Weight::from_f32(vec![32, 64], numbers).unwrap();
    let mut model = |numbers: &[f32]| {
        weights.insert(key, weight(numbers));
        let source = slmc_ir::MemorySource::new(spec(Family::Llama), weights.clone()).unwrap();
        checkpoint(spec(Family::Llama), None).with_weights(std::sync::Arc::new(source))
    };
    let half = WriteOptions { float: Some(slmc_ir::Format::F16), ..WriteOptions::default() };
    let large = model(&numbers);
    let message = write_hf_folder(&large, &path, &half, &SilentHost).unwrap_err().to_string();
    assert!(
        message.contains("model.layers.1.mlp.down_proj.weight") && message.contains("1000000"),
        "{message}"
    );
    let message = write_gguf(&large, &path, &half, &SilentHost).unwrap_err().to_string();
    assert!(message.contains("blk.1.ffn_down.weight") && message.contains("77"), "{message}");
    numbers[77] = f32::NAN;
    let message = write_gguf(&model(&numbers), &path, &WriteOptions::default(), &SilentHost).unwrap_err();
    assert!(message.to_string().contains("NaN"), "{message}");
    assert!(!path.exists());
}
