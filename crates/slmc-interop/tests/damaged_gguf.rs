//! GGUF files with something wrong beyond what the codec sees: the error names it.

mod common;

use std::{fs, path::Path};

use common::{bpe, checkpoint, spec};
use slmc_formats::{
    GgufHeader, GgufWriter,
    gguf::{Array, PlannedTensor, Value},
};
use slmc_interop::{WriteOptions, open, open_to_run, write_gguf};
use slmc_ir::{Family, Format, RopeScaling, SilentHost};

type Metadata = Vec<(String, Value)>;
type Tensors = Vec<(PlannedTensor, Vec<u8>)>;

/// Writes a sound GGUF of the family, edited.
fn write(family: Family, path: &Path, edit: impl FnOnce(&mut Metadata, &mut Tensors)) {
    write_gguf(&checkpoint(spec(family), Some(bpe())), path, &WriteOptions::default(), &SilentHost).unwrap();
    let bytes = fs::read(path).unwrap();
    let header = GgufHeader::parse(&bytes).unwrap();
    let mut metadata = header.metadata.clone();
    let tensor = |t: &slmc_formats::gguf::TensorInfo| {
        let planned = PlannedTensor { name: t.name.clone(), dims: t.dims.clone(), format: t.format };
        (planned, bytes[header.tensor_range(t)].to_vec())
    };
    let mut tensors: Tensors = header.tensors.iter().map(tensor).collect();
    edit(&mut metadata, &mut tensors);
    let planned: Vec<PlannedTensor> = tensors.iter().map(|(planned, _)| planned.clone()).collect();
    let mut writer = GgufWriter::create(path, &metadata, &planned).unwrap();
    for (_, bytes) in &tensors {
        writer.tensor(bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The edited file does not open, and the error says all of `expected`.
fn check(family: Family, edit: impl FnOnce(&mut Metadata, &mut Tensors), expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(family, &path, edit);
    let message = open(&path).map(|_| ()).unwrap_err().to_string();
    assert_eq!(open_to_run(&path).map(|_| ()).unwrap_err().to_string(), message);
    for part in expected {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

fn check_key(key: &str, value: Option<Value>, expected: &[&str]) {
    let set = |metadata: &mut Metadata, _: &mut Tensors| {
        metadata.retain(|(other, _)| other != key);
        metadata.extend(value.map(|value| (key.to_owned(), value)));
    };
    check(Family::Llama, set, expected);
}

fn text(text: &str) -> Option<Value> {
    Some(Value::String(text.to_owned()))
}

fn texts(texts: &[&str]) -> Option<Value> {
    Some(Value::Array(Array::String(texts.iter().map(|&t| t.to_owned()).collect())))
}

#[test]
fn metadata_missing_or_of_the_wrong_kind() {
    check_key("general.architecture", None, &["general.architecture", "missing"]);
    check_key("general.architecture", text("gemma3"), &["architecture `gemma3`", "llama, qwen2, qwen3"]);
    check_key("llama.block_count", None, &["llama.block_count", "missing"]);
    check_key("llama.block_count", text("2"), &["llama.block_count", "whole number"]);
    check_key("llama.block_count", Some(Value::U64(u64::MAX)), &["n_layers"]);
    check_key("llama.embedding_length", Some(Value::I32(-1)), &["llama.embedding_length"]);
    check_key("llama.attention.head_count", Some(Value::U32(0)), &["llama.attention.head_count"]);
    check_key("llama.attention.layer_norm_rms_epsilon", None, &["layer_norm_rms_epsilon", "missing"]);
    check_key("llama.rope.freq_base", Some(Value::F32(f32::NAN)), &["rope_theta"]);
    let uneven = Some(Value::Array(Array::I32(vec![2, 4])));
    check_key("llama.attention.head_count_kv", uneven, &["head_count_kv", "differ"]);
}

#[test]
fn metadata_that_change_what_is_computed() {
    check_key("llama.expert_count", Some(Value::U32(8)), &["llama.expert_count", "experts"]);
    check_key("llama.attention.sliding_window", Some(Value::U32(64)), &["sliding_window", "64"]);
    check_key("llama.rope.scaling.type", text("yarn"), &["llama.rope.scaling.type", "yarn"]);
    check_key("llama.rope.dimension_count", Some(Value::U32(4)), &["rope.dimension_count", "full rotation"]);
    check_key("llama.attention.value_length", Some(Value::U32(4)), &["attention.value_length"]);
    check_key("llama.logit_scale", Some(Value::F32(8.0)), &["llama.logit_scale", "not known"]);
    check_key("llama.attention.causal", Some(Value::Bool(false)), &["attention.causal"]);
}

#[test]
fn tokenizer_tables_that_do_not_fit() {
    check_key("tokenizer.ggml.tokens", None, &["tokenizer.ggml.tokens", "missing"]);
    check_key("tokenizer.ggml.tokens", Some(Value::U32(1)), &["tokenizer.ggml.tokens", "list of texts"]);
    check_key("tokenizer.ggml.tokens", texts(&["a", "b"]), &["2 tokens", "264 rows"]);
    check_key(
        "tokenizer.ggml.token_type",
        Some(Value::Array(Array::I32(vec![1]))),
        &["1 token types", "264"],
    );
    check_key("tokenizer.ggml.token_type", Some(Value::Array(Array::I32(vec![9; 264]))), &["type 9"]);
    check_key("tokenizer.ggml.token_type", Some(Value::Array(Array::F32(vec![1.0]))), &["token_type", "i32"]);
    check_key("tokenizer.ggml.merges", None, &["tokenizer.ggml.merges", "missing"]);
    check_key("tokenizer.ggml.merges", texts(&["x y"]), &["merge 0", "x y", "not in the vocabulary"]);
    check_key("tokenizer.ggml.merges", texts(&["xy"]), &["merge 0", "two tokens"]);
    check_key("tokenizer.ggml.pre", None, &["tokenizer.ggml.pre", "missing"]);
    check_key("tokenizer.ggml.pre", text("gpt-4o"), &["pre-tokenizer `gpt-4o`", "smollm"]);
    check_key("tokenizer.ggml.model", text("bert"), &["`bert`", "gpt2"]);
    check_key("tokenizer.ggml.bos_token_id", Some(Value::U32(264)), &["bos_token_id", "264"]);
    check_key("tokenizer.ggml.bos_token_id", text("0"), &["bos_token_id"]);
    check_key("tokenizer.ggml.add_bos_token", Some(Value::U8(1)), &["add_bos_token", "true or false"]);
    check_key("tokenizer.chat_template", Some(Value::U8(1)), &["tokenizer.chat_template", "text"]);
    check_key("slmc.lineage", text("{}"), &["slmc.lineage"]);
    let twice = |metadata: &mut Metadata, _: &mut Tensors| {
        let tokens = metadata.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens").unwrap();
        let Value::Array(Array::String(tokens)) = &mut tokens.1 else { panic!() };
        tokens[9] = tokens[7].clone();
    };
    check(Family::Llama, twice, &["tokens 7 and 9"]);
}

#[test]
fn tensors_that_do_not_belong() {
    let rename = |from: &'static str, to: &'static str| {
        move |_: &mut Metadata, tensors: &mut Tensors| {
            tensors.iter_mut().find(|(planned, _)| planned.name == from).unwrap().0.name = to.to_owned();
        }
    };
    let gate = "blk.0.ffn_gate.weight";
    check(Family::Llama, rename(gate, "blk.0.ffn_gate_inp.weight"), &["blk.0.ffn_gate_inp.weight"]);
    check(Family::Llama, rename(gate, "blk.7.ffn_gate.weight"), &[gate, "missing"]);
    let transposed = |_: &mut Metadata, tensors: &mut Tensors| {
        tensors.iter_mut().find(|(planned, _)| planned.name == gate).unwrap().0.dims.reverse();
    };
    check(Family::Llama, transposed, &[gate, "[32, 64]", "[64, 32]"]);
    let normed = |_: &mut Metadata, tensors: &mut Tensors| {
        let norm =
            PlannedTensor { name: "blk.0.attn_q_norm.weight".to_owned(), dims: vec![8], format: Format::F32 };
        tensors.push((norm, vec![0; 32]));
    };
    check(Family::Llama, normed, &["blk.0.attn_q_norm.weight", "not part"]);
    check(Family::Qwen3, rename("blk.0.attn_q_norm.weight", "rope_freqs.weight"), &["rope_freqs.weight"]);
}

#[test]
fn rotary_factors_of_unknown_settings_are_refused_and_their_bits_are_kept() {
    let push = |factors: [f32; 4]| {
        move |_: &mut Metadata, tensors: &mut Tensors| {
            let planned =
                PlannedTensor { name: "rope_freqs.weight".to_owned(), dims: vec![4], format: Format::F32 };
            tensors.push((planned, factors.iter().flat_map(|x| x.to_le_bytes()).collect()));
        }
    };
    check(Family::Llama, push([1.0, 2.0, 3.0, 5.0]), &["rope_freqs.weight", "known setting"]);
    check(Family::Llama, push([f32::NAN; 4]), &["rope_freqs.weight"]);

    // Almost the derived factors, as another tool may have rounded them: written again as they were.
    let spec = slmc_ir::ModelSpec {
        rope_scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_len: 8192,
        },
        ..spec(Family::Llama)
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_gguf(&checkpoint(spec, None), &at("1.gguf"), &WriteOptions::default(), &SilentHost).unwrap();
    let mut bytes = fs::read(at("1.gguf")).unwrap();
    let header = GgufHeader::parse(&bytes).unwrap();
    let range = header.tensor_range(header.tensor("rope_freqs.weight").unwrap());
    assert_eq!(bytes[range.start..range.start + 4], 1.0_f32.to_le_bytes());
    let first = f32::from_bits(1.0_f32.to_bits() + 1);
    bytes[range.start..range.start + 4].copy_from_slice(&first.to_le_bytes());
    fs::write(at("2.gguf"), &bytes).unwrap();
    let opened = open(&at("2.gguf")).unwrap();
    assert!(matches!(opened.spec().rope_scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
    write_gguf(&opened, &at("3.gguf"), &WriteOptions::default(), &SilentHost).unwrap();
    assert!(fs::read(at("2.gguf")).unwrap() == fs::read(at("3.gguf")).unwrap());
}

#[test]
fn scales_that_are_not_finite_are_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(Family::Llama, &path, |_, tensors| {
        let up = tensors.iter_mut().find(|(planned, _)| planned.name == "blk.1.ffn_up.weight").unwrap();
        up.0.format = Format::Q8_0;
        up.1 = vec![0; 64 * 34];
        // An f16 NaN as the scale of the third block.
        up.1[2 * 34..2 * 34 + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    });
    let opened = open(&path).unwrap();
    let copy = folder.path().join("copy.gguf");
    let message = write_gguf(&opened, &copy, &WriteOptions::default(), &SilentHost).unwrap_err().to_string();
    assert!(message.contains("blk.1.ffn_up.weight") && message.contains("weight 64"), "{message}");
    assert!(!copy.exists());
}

#[test]
fn paths_where_no_model_is() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| open(path).map(|_| ()).unwrap_err().to_string();
    assert!(message(folder.path()).contains("config.json"));
    assert!(message(&folder.path().join("absent")).contains("absent"));
    let file = folder.path().join("notes.gguf");
    fs::write(&file, "GG").unwrap();
    assert!(message(&file).contains("no GGUF"));
    // One GGUF in a folder is the model; two are a question.
    write(Family::Llama, &folder.path().join("a.bin"), |_, _| {});
    open(folder.path()).map(|_| ()).unwrap();
    write(Family::Llama, &folder.path().join("b.bin"), |_, _| {});
    assert!(message(folder.path()).contains("2 GGUF files"));
}
