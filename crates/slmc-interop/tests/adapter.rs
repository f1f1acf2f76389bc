//! Adapters in PEFT's folders and as GGUF, and merged into their models.

mod common;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use common::{checkpoint, spec, weights};
use slmc_formats::{GgufHeader, SafetensorsHeader};
use slmc_interop::{
    AdapterAbout, Merged, Rearranged, open_adapter, roles_of_targets, write_adapter_folder,
    write_adapter_gguf,
};
use slmc_ir::{
    Adapter, Channels, Factors, Family, Format, MemorySource, ModelSpec, Reordering, Role, TensorKey,
    WeightSource,
};

fn adapter(spec: &ModelSpec, roles: &[Role], rank: usize) -> Adapter {
    let mut factors = BTreeMap::new();
    for (seed, key) in
        TensorKey::all(spec).into_iter().enumerate().filter(|(_, key)| roles.contains(&key.role))
    {
        let shape = key.shape(spec);
        let numbers = |n: usize, by: f32| (0..n).map(|i| ((i + seed) as f32 * by).sin()).collect::<Vec<_>>();
        factors.insert(key, Factors { a: numbers(rank * shape[1], 0.37), b: numbers(shape[0] * rank, 0.91) });
    }
    Adapter { rank, alpha: 6.0, factors }
}

#[test]
fn a_folder_comes_back_as_it_was() {
    let spec = spec(Family::Llama);
    let folder = tempfile::tempdir().unwrap();
    for (name, roles) in [("all", &Adapter::ROLES[..]), ("some", &[Role::Query, Role::Down])] {
        let (path, adapter) = (folder.path().join(name), adapter(&spec, roles, 3));
        let about = AdapterAbout { base_format: Some(Format::Q4_0), ..AdapterAbout::default() };
        write_adapter_folder(&adapter, &about, &path).unwrap();
        assert_eq!(open_adapter(&path, Some(&spec)).unwrap(), (adapter.clone(), about.clone()));
        assert_eq!(open_adapter(&path, None).unwrap(), (adapter, about));
    }
    // PEFT's own names and shapes.
    let file = std::fs::read(folder.path().join("some/adapter_model.safetensors")).unwrap();
    let header = SafetensorsHeader::parse(&file).unwrap();
    assert_eq!(header.tensors.len(), 2 * 2 * 2);
    let shape = |name: &str| header.tensor(name).unwrap().shape.clone();
    assert_eq!(shape("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"), [3, 32]);
    assert_eq!(shape("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"), [3, 64]);
    assert_eq!(shape("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"), [32, 3]);
    let config = std::fs::read_to_string(folder.path().join("some/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "down_proj"]));
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(3), Some(6.0)));
}

/// Writes an adapter, changes its configuration, and opens it.
fn opened_with(change: &str, value: serde_json::Value) -> Result<Adapter, String> {
    let spec = spec(Family::Llama);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    write_adapter_folder(&adapter(&spec, &Adapter::ROLES, 4), &AdapterAbout::default(), &path).unwrap();
    let config_path = path.join("adapter_config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&config_path).unwrap()).unwrap();
    config[change] = value;
    std::fs::write(&config_path, config.to_string()).unwrap();
    open_adapter(&path, Some(&spec)).map(|found| found.0).map_err(|e| e.to_string())
}

#[test]
fn what_is_not_plain_lora_is_refused_by_name() {
    for (field, value) in [
        ("peft_type", serde_json::json!("IA3")),
        ("use_dora", serde_json::json!(true)),
        ("bias", serde_json::json!("all")),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("rank_pattern", serde_json::json!({"q_proj": 8})),
        ("r", serde_json::json!(0)),
        ("r", serde_json::json!("4")),
        ("lora_alpha", serde_json::json!(null)),
    ] {
        let error = opened_with(field, value).unwrap_err();
        assert!(error.contains(field), "{error}");
    }
    let error = opened_with("r", serde_json::json!(5)).unwrap_err();
    assert!(error.contains("lora_A") && error.contains("shape"), "{error}");
    let rooted = opened_with("use_rslora", serde_json::json!(true)).unwrap();
    assert_eq!(rooted.scale(), 6.0 / 2.0);
}

#[test]
fn damaged_folders_are_refused() {
    let spec = spec(Family::Llama);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    write_adapter_folder(&adapter(&spec, &Adapter::ROLES, 2), &AdapterAbout::default(), &path).unwrap();
    let file = path.join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for n in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..n]).unwrap();
        assert!(open_adapter(&path, Some(&spec)).is_err(), "{n} bytes");
    }
    let mut not_finite = bytes.clone();
    let n = not_finite.len();
    not_finite[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, not_finite).unwrap();
    assert!(open_adapter(&path, Some(&spec)).unwrap_err().to_string().contains("not finite"));
    std::fs::write(&file, &bytes).unwrap();
    let other = ModelSpec { n_layers: 1, ..spec.clone() };
    assert!(open_adapter(&path, Some(&other)).is_err(), "another model's");
    let error = open_adapter(Path::new("/nowhere"), None).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}

#[test]
fn a_gguf_adapter_has_llama_cpps_names_and_order() {
    let spec = spec(Family::Llama);
    let folder = tempfile::tempdir().unwrap();
    let (path, adapter) = (folder.path().join("a.gguf"), adapter(&spec, &[Role::Query, Role::Value], 3));
    write_adapter_gguf(&adapter, &spec, &path).unwrap();
    let file = std::fs::read(&path).unwrap();
    let header = GgufHeader::parse(&file).unwrap();
    let text =
        |key: &str| header.metadata.iter().find(|(k, _)| k == key).unwrap().1.as_str().unwrap().to_owned();
    assert_eq!(
        [text("general.type"), text("general.architecture"), text("adapter.type")],
        ["adapter", "llama", "lora"]
    );
    let numbers = |name: &str| {
        let tensor =
            header.tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"));
        let start = (header.data_start + tensor.offset) as usize;
        let bytes = &file[start..start + tensor.n_bytes as usize];
        (
            tensor.dims.clone(),
            bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>(),
        )
    };
    let (dims, a) = numbers("blk.1.attn_q.weight.lora_a");
    let query = &adapter.factors[&TensorKey::block(1, Role::Query)];
    assert_eq!((&dims[..], &a), (&[32, 3][..], &query.a));
    let (dims, b) = numbers("blk.1.attn_q.weight.lora_b");
    assert_eq!(dims, [3, 32]);
    // Rows of a head of 8 in pairs: 0, 4, 1, 5, …
    for (at, from) in [(0, 0), (1, 4), (2, 1), (3, 5), (8, 8), (9, 12)] {
        assert_eq!(b[at * 3..at * 3 + 3], query.b[from * 3..from * 3 + 3], "row {at}");
    }
    let value = &adapter.factors[&TensorKey::block(0, Role::Value)];
    assert_eq!(numbers("blk.0.attn_v.weight.lora_b").1, value.b);
}

#[test]
fn merging_adds_the_product() {
    let spec = spec(Family::Llama);
    let adapter = adapter(&spec, &[Role::Up], 3);
    let inner = Arc::new(MemorySource::new(spec.clone(), weights(&spec)).unwrap());
    let merged = Merged::new(Arc::clone(&inner) as Arc<dyn WeightSource>, adapter.clone()).unwrap();
    let (key, untouched) = (TensorKey::block(1, Role::Up), TensorKey::block(1, Role::Gate));
    assert_eq!(merged.read(untouched).unwrap().bytes(), inner.read(untouched).unwrap().bytes());
    let read = |source: &dyn WeightSource| slmc_blocks::decode_weight(&source.read(key).unwrap()).unwrap();
    let (before, after) = (read(&*inner), read(&merged));
    let factors = &adapter.factors[&key];
    for i in 0..64 {
        for j in 0..32 {
            let sum: f64 =
                (0..3).map(|r| f64::from(factors.b[i * 3 + r]) * f64::from(factors.a[r * 32 + j])).sum();
            let expected = f64::from(before[i * 32 + j]) + 2.0 * sum;
            assert!((f64::from(after[i * 32 + j]) - expected).abs() < 1e-5, "{i} {j}");
        }
    }
}

#[test]
fn targets_have_several_spellings() {
    assert_eq!(roles_of_targets("all-linear").unwrap(), Adapter::ROLES);
    assert_eq!(roles_of_targets("v,q").unwrap(), [Role::Query, Role::Value]);
    assert_eq!(roles_of_targets("down_proj, up").unwrap(), [Role::Up, Role::Down]);
    assert!(roles_of_targets("q,lm_head").unwrap_err().contains("lm_head"));
    assert!(roles_of_targets("").is_err());
}

#[test]
fn an_adapter_follows_the_channels_of_its_model() {
    let spec = spec(Family::Llama);
    let model = checkpoint(spec.clone(), None);
    let adapter = adapter(&spec, &Adapter::ROLES, 3);
    let shuffled = |n: usize| -> Vec<usize> { (0..n).rev().collect() };
    let sizes = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i % 5) as f32 - 2.0).exp2()).collect() };
    let mut channels = Channels::none(&spec);
    channels.order =
        Reordering { stream: shuffled(spec.d_model), hidden: vec![shuffled(spec.d_ff); spec.n_layers] };
    channels.scales.iter_mut().for_each(|block| *block = block.map(|scales| sizes(scales.len())));
    let merged = Merged::new(Arc::clone(&model.weights), adapter.clone()).unwrap();
    let merged_then_moved = Rearranged::new(Arc::new(merged), channels.clone());
    let moved = Rearranged::new(Arc::clone(&model.weights), channels.clone());
    let moved_then_merged = Merged::new(Arc::new(moved), adapter.with_channels(&channels, &spec)).unwrap();
    for &key in model.weights.keys() {
        let [one, other] = [&merged_then_moved as &dyn WeightSource, &moved_then_merged]
            .map(|source| slmc_blocks::decode_weight(&source.read(key).unwrap()).unwrap());
        assert!(one == other, "{key}");
        assert_ne!(one, slmc_blocks::decode_weight(&model.weights.read(key).unwrap()).unwrap(), "{key}");
    }
}
