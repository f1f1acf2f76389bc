//! Models come out of every container as they went in.

mod common;

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use common::{assert_same_weights, bpe, checkpoint, every_spec, spec};
use serde_json::{Value as Json, json};
use slmc_formats::{
    GgufHeader, GgufWriter,
    gguf::{Array, PlannedTensor, Value},
};
use slmc_interop::{
    Encoded, Rearranged, WriteOptions, Written, open, open_to_run, with_channels_of, write_gguf,
    write_hf_folder,
};
use slmc_ir::{
    BlockOrder, BlockScales, ChannelOrder, ChannelScales, Channels, Checkpoint, Family, Format, Lineage,
    MemorySource, ModelSpec, Role, ScaleSteps, SilentHost, Step, TensorKey, WeightSource as _,
};

fn to_gguf(checkpoint: &Checkpoint, path: &Path) -> Written {
    write_gguf(checkpoint, path, &WriteOptions::default(), &SilentHost).unwrap()
}

fn to_folder(checkpoint: &Checkpoint, path: &Path) -> Written {
    write_hf_folder(checkpoint, path, &WriteOptions::default(), &SilentHost).unwrap()
}

fn header(path: &Path) -> GgufHeader {
    GgufHeader::parse(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_family_through_gguf_and_folder_and_back() {
    for spec in every_spec() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let original = checkpoint(spec, Some(bpe()));
        to_gguf(&original, &at("1.gguf"));
        let from_gguf = open(&at("1.gguf")).unwrap();
        assert_same_weights(&original, &from_gguf);
        to_folder(&from_gguf, &at("hf"));
        let from_folder = open(&at("hf")).unwrap();
        assert_same_weights(&original, &from_folder);
        to_gguf(&from_folder, &at("2.gguf"));
        assert!(fs::read(at("1.gguf")).unwrap() == fs::read(at("2.gguf")).unwrap(), "{:?}", original.spec());
    }
}

#[test]
fn what_is_opened_to_run_lacks_extras_alone() {
    for spec in every_spec() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        to_gguf(&checkpoint(spec, Some(bpe())), &path);
        let (all, to_run) = (open(&path).unwrap(), open_to_run(&path).unwrap());
        assert_same_weights(&all, &to_run);
        let text = |checkpoint: &Checkpoint| checkpoint.tokenizer.as_ref().map(|files| files.json.clone());
        assert_eq!(text(&all), text(&to_run));
        assert_eq!(all.lineage, to_run.lineage);
        assert!(!all.extras.is_empty() && to_run.extras.is_empty());
    }
}

#[test]
fn every_family_through_folder_and_gguf_and_back() {
    for spec in every_spec() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        to_folder(&checkpoint(spec, Some(bpe())), &at("1"));
        let from_folder = open(&at("1")).unwrap();
        to_gguf(&from_folder, &at("model.gguf"));
        to_folder(&open(&at("model.gguf")).unwrap(), &at("2"));
        let again = open(&at("2")).unwrap();
        assert_same_weights(&from_folder, &again);
        let (a, b) = (from_folder.tokenizer.unwrap(), again.tokenizer.unwrap());
        assert_eq!((a.special, a.chat_template), (b.special, b.chat_template));
        let json = |text: &str| serde_json::from_str::<Json>(text).unwrap();
        assert_eq!(json(&a.json), json(&b.json));
    }
}

#[test]
fn tied_heads_are_omitted_and_padded_rows_have_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    to_gguf(&checkpoint(spec(Family::Llama), Some(bpe())), &path);
    let header = header(&path);
    assert!(header.tensor("output.weight").is_none());
    assert_eq!(header.tensor("token_embd.weight").unwrap().dims, [32, common::VOCAB_SIZE as u64]);
    let Some(Value::Array(Array::String(tokens))) = header.get("tokenizer.ggml.tokens") else { panic!() };
    let Some(Value::Array(Array::I32(types))) = header.get("tokenizer.ggml.token_type") else { panic!() };
    assert_eq!((tokens.len(), types.len()), (common::VOCAB_SIZE, common::VOCAB_SIZE));
    assert_eq!((tokens[0].as_str(), types[0]), ("<|bos|>", 3));
    assert_eq!((tokens[260].as_str(), types[260]), ("plain", 4));
    assert_eq!((tokens[261].as_str(), types[261]), ("[PAD261]", 5));
    assert_eq!(header.get("tokenizer.ggml.pre"), Some(&Value::String("smollm".to_owned())));
    assert_eq!(header.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(false)));
}

/// A GGUF like the one at `from`, with other metadata.
fn rewrite(from: &Path, to: &Path, edit: impl FnOnce(&mut Vec<(String, Value)>)) {
    let bytes = fs::read(from).unwrap();
    let mut header = GgufHeader::parse(&bytes).unwrap();
    edit(&mut header.metadata);
    let planned: Vec<PlannedTensor> = header
        .tensors
        .iter()
        .map(|t| PlannedTensor { name: t.name.clone(), dims: t.dims.clone(), format: t.format })
        .collect();
    let mut writer = GgufWriter::create(to, &header.metadata, &planned).unwrap();
    for tensor in &header.tensors {
        writer.tensor(&bytes[header.tensor_range(tensor)]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn foreign_metadata_survive_the_folder_in_order_and_type() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    to_gguf(&checkpoint(spec(Family::Llama), Some(bpe())), &at("plain.gguf"));
    rewrite(&at("plain.gguf"), &at("1.gguf"), |metadata| {
        // Other types, other order, keys that are not ours, keys of ours missing.
        metadata.retain(|(key, _)| key != "tokenizer.ggml.add_eos_token" && key != "general.size_label");
        let kv = metadata.iter_mut().find(|(key, _)| key == "llama.attention.head_count_kv").unwrap();
        kv.1 = Value::Array(Array::I32(vec![2, 2]));
        let file_type = metadata.iter_mut().find(|(key, _)| key == "general.file_type").unwrap();
        file_type.1 = Value::U32(15);
        metadata.insert(1, ("general.license".to_owned(), Value::String("apache-2.0".to_owned())));
        metadata.push(("x.f64".to_owned(), Value::F64(0.1)));
        metadata.push(("x.nan".to_owned(), Value::F32(f32::INFINITY)));
        metadata.push(("quantize.imatrix.entries_count".to_owned(), Value::I32(210)));
        metadata.swap(3, 6);
    });
    let original = open(&at("1.gguf")).unwrap();
    to_folder(&original, &at("hf"));
    let from_folder = open(&at("hf")).unwrap();
    to_gguf(&from_folder, &at("2.gguf"));
    assert_eq!(header(&at("1.gguf")).metadata, header(&at("2.gguf")).metadata);

    // Other formats: what was said about the old ones goes, the rest stays.
    let plan = BTreeMap::from_iter(
        TensorKey::all(from_folder.spec())
            .into_iter()
            .filter_map(|key| (key.role.is_matrix() && key.role.in_block()).then_some((key, Format::Q8_0))),
    );
    let encoded = Encoded::new(from_folder.weights.clone(), plan).unwrap();
    to_gguf(&from_folder.with_weights(Arc::new(encoded)), &at("3.gguf"));
    let packed = header(&at("3.gguf"));
    assert_eq!(packed.get("general.file_type"), Some(&Value::U32(7)));
    assert_eq!(packed.get("general.quantization_version"), Some(&Value::U32(2)));
    assert_eq!(packed.get("quantize.imatrix.entries_count"), None);
    assert_eq!(packed.get("general.license"), Some(&Value::String("apache-2.0".to_owned())));
    assert_eq!(packed.get("llama.attention.head_count_kv"), Some(&Value::Array(Array::I32(vec![2, 2]))));
}

#[test]
fn a_changed_model_says_its_new_dimensions() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    to_gguf(&checkpoint(spec(Family::Llama), Some(bpe())), &at("1.gguf"));
    let imported = open(&at("1.gguf")).unwrap();
    let smaller = ModelSpec { n_layers: 1, d_ff: 32, ..spec(Family::Llama) };
    let weights = common::weights(&smaller);
    let pruned = imported.with_weights(Arc::new(MemorySource::new(smaller, weights).unwrap()));
    to_gguf(&pruned, &at("2.gguf"));
    assert_eq!(header(&at("2.gguf")).get("llama.block_count"), Some(&Value::U32(1)));
    assert_same_weights(&pruned, &open(&at("2.gguf")).unwrap());
    to_folder(&pruned, &at("hf"));
    assert_same_weights(&pruned, &open(&at("hf")).unwrap());
}

#[test]
fn names_and_lineage_are_carried() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let step = |stage: &str| Step {
        stage: stage.to_owned(),
        slmc_version: "0.1.0".to_owned(),
        settings: json!({ "sparsity": 0.5 }),
        seed: 7,
        inputs: Vec::new(),
        fallbacks: vec!["none".to_owned()],
        channel_order: None,
        channel_scales: None,
    };
    let mut original = checkpoint(spec(Family::Mistral), Some(bpe()));
    original.lineage = Lineage { steps: vec![step("prune")] };
    let named = WriteOptions { name: Some("Tiny".to_owned()), ..WriteOptions::default() };
    write_gguf(&original, &at("1.gguf"), &named, &SilentHost).unwrap();
    let mut imported = open(&at("1.gguf")).unwrap();
    assert_eq!(imported.lineage, original.lineage);
    assert_eq!(imported.spec().family, Family::Mistral);
    to_folder(&imported, &at("hf"));
    assert_eq!(open(&at("hf")).unwrap().lineage, original.lineage);
    imported.lineage.steps.push(step("quantize"));
    to_gguf(&imported, &at("2.gguf"));
    assert_eq!(open(&at("2.gguf")).unwrap().lineage.steps.len(), 2);
    assert_eq!(header(&at("2.gguf")).get("general.name"), Some(&Value::String("Tiny".to_owned())));

    let plain = checkpoint(spec(Family::Llama), None);
    to_gguf(&plain, &at("3.gguf"));
    assert!(header(&at("3.gguf")).metadata.iter().all(|(key, _)| !key.starts_with("slmc.")));
}

#[test]
fn channels_are_told_of_by_a_gguf_and_come_into_order_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let original = checkpoint(spec(Family::Llama), Some(bpe()));
    let backwards = |n: usize| BlockOrder::new((0..n).rev().collect(), 8).unwrap();
    let spec = original.spec().clone();
    let order = ChannelOrder {
        stream: backwards(spec.d_model),
        hidden: (0..spec.n_layers).map(|_| backwards(spec.d_ff)).collect(),
    };
    let powers = |scales: &Vec<f32>| -> Vec<f32> {
        (0..scales.len()).map(|i| ((i % 5) as f32 - 2.0).exp2()).collect()
    };
    let block = BlockScales::none(&spec).map(|ones| ScaleSteps::nearest(&powers(ones)));
    let scales = ChannelScales { blocks: vec![block; spec.n_layers] };
    let mut channels = Channels::none(&spec);
    channels.scale(&scales);
    let scaled =
        original.with_weights(Arc::new(Rearranged::new(Arc::clone(&original.weights), channels.clone())));
    channels.reorder(&order);
    let weights = Rearranged::new(Arc::clone(&original.weights), channels);
    let step = Step {
        stage: "quantize".to_owned(),
        slmc_version: "0.1.0".to_owned(),
        settings: json!({}),
        seed: 7,
        inputs: Vec::new(),
        fallbacks: Vec::new(),
        channel_order: Some(order.clone()),
        channel_scales: Some(scales.clone()),
    };
    let lineage = Lineage { steps: vec![step] };
    let reordered = Checkpoint { lineage: lineage.clone(), ..original.with_weights(Arc::new(weights)) };
    to_gguf(&reordered, &at("reordered.gguf"));
    let opened = open(&at("reordered.gguf")).unwrap();
    assert_eq!(opened.lineage, lineage);
    assert_same_weights(&opened, &reordered);
    to_folder(&opened, &at("hf"));
    let folder = open(&at("hf")).unwrap();
    assert_same_weights(&folder, &scaled);
    assert_eq!(folder.lineage.steps[0].channel_order, None);
    assert_eq!(folder.lineage.steps[0].channel_scales, Some(scales));
    // The model before, beside either.
    assert_same_weights(&with_channels_of(&original, &opened), &opened);
    assert_same_weights(&with_channels_of(&original, &folder), &folder);
    assert_same_weights(&with_channels_of(&folder, &original), &original);
}

#[test]
fn formats_follow_the_options() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let original = checkpoint(spec(Family::Llama), Some(bpe()));
    let half = WriteOptions { float: Some(Format::F16), ..WriteOptions::default() };
    let written = write_gguf(&original, &at("f16.gguf"), &half, &SilentHost).unwrap();
    let format = |key| written.tensors.iter().find(|(other, _)| *other == key).unwrap().1;
    assert_eq!(format(TensorKey::block(0, Role::Down)), Format::F16);
    assert_eq!(format(TensorKey::block(0, Role::AttnNorm)), Format::F32);
    assert_eq!(written.file_bytes, fs::metadata(at("f16.gguf")).unwrap().len());
    assert_eq!(header(&at("f16.gguf")).get("general.file_type"), Some(&Value::U32(1)));

    let written = write_hf_folder(&original, &at("hf"), &half, &SilentHost).unwrap();
    assert!(written.tensors.iter().all(|(_, format)| *format == Format::F16), "norms are exact in f16 here");
    let folder_bytes: u64 =
        fs::read_dir(at("hf")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(written.file_bytes, folder_bytes);
    let packed = WriteOptions { float: Some(Format::Q4_0), ..WriteOptions::default() };
    let message = write_gguf(&original, &at("x.gguf"), &packed, &SilentHost).unwrap_err().to_string();
    assert!(message.contains("q4_0"), "{message}");
    assert!(!at("x.gguf").exists());
}

#[test]
fn packed_weights_pass_through_gguf_and_are_decoded_for_folders() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let original = checkpoint(spec(Family::Llama), Some(bpe()));
    let query = TensorKey::block(1, Role::Query);
    let encoded = Encoded::new(original.weights.clone(), BTreeMap::from([(query, Format::Q4_1)])).unwrap();
    assert_eq!(encoded.format(query).unwrap(), Format::Q4_1);
    let packed = original.with_weights(Arc::new(encoded));
    to_gguf(&packed, &at("1.gguf"));
    let imported = open(&at("1.gguf")).unwrap();
    assert_same_weights(&packed, &imported);
    let written = to_folder(&imported, &at("hf"));
    assert_eq!(written.notes.len(), 1);
    let decoded = open(&at("hf")).unwrap().weights.read(query).unwrap();
    let expected = slmc_blocks::encode_weight(&packed.weights.read(query).unwrap(), Format::F16).unwrap();
    assert_eq!(decoded.bytes(), expected.bytes());
}
