//! Tiny models, made in memory, for tests of all containers.
#![allow(dead_code)] // each test file uses its own part of this one

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde_json::{Value, json};
use slmc_interop::{PackedLayout, PackedMatrices, WriteOptions, write_packed_folder};
use slmc_ir::{
    Activation, Biases, Checkpoint, Extras, Family, Lineage, MemorySource, ModelSpec, Quantized,
    QuantizedParts, Role, RopeScaling, SilentHost, SpecialTokens, TensorKey, TokenizerFiles, Weight,
};

/// Tokens of the tiny tokenizers: fewer than rows of the embedding, so that rows are padded.
pub const N_TOKENS: usize = 261;
/// Rows of the embedding.
pub const VOCAB_SIZE: usize = 264;

/// The small files of a Hugging Face folder, the weights' last: what fuzzing damages, in the order of its seeds' first byte.
pub const FOLDER_FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "slmc.json",
    "model.safetensors",
];

/// A spec small enough to write in a millisecond, with unequal dimensions everywhere.
pub fn spec(family: Family) -> ModelSpec {
    ModelSpec {
        family,
        vocab_size: VOCAB_SIZE,
        context_len: 128,
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 8,
        d_ff: 64,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        activation: Activation::Silu,
        biases: Biases::default(),
        qk_norm: family == Family::Qwen3,
        tied_head: true,
    }
}

/// One spec of each kind that the files can say.
pub fn every_spec() -> Vec<ModelSpec> {
    let (attention, all) = (
        Biases { qkv: true, attn_output: true, mlp: false },
        Biases { qkv: true, attn_output: true, mlp: true },
    );
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context_len: 8192,
    };
    vec![
        spec(Family::Llama),
        ModelSpec { biases: all, tied_head: false, ..spec(Family::Llama) },
        ModelSpec { rope_theta: 500_000.0, rope_scaling: llama3, ..spec(Family::Llama) },
        ModelSpec { rope_scaling: RopeScaling::Linear { factor: 2.5 }, d_head: 16, ..spec(Family::Llama) },
        ModelSpec { tied_head: false, d_head: 16, norm_eps: 1e-6, ..spec(Family::Mistral) },
        ModelSpec {
            biases: Biases { qkv: true, ..Biases::default() },
            rope_theta: 1e6,
            ..spec(Family::Qwen2)
        },
        ModelSpec { d_head: 16, ..spec(Family::Qwen3) },
        ModelSpec { biases: attention, tied_head: false, ..spec(Family::Qwen3) },
    ]
}

/// Weights that differ everywhere, exactly f16; the same on every run.
pub fn weights(spec: &ModelSpec) -> BTreeMap<TensorKey, Weight> {
    let mut state = 1_u64;
    let mut number = || {
        // Numerical Recipes' generator; its upper bits are good enough to tell weights apart.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 54) as f32 - 512.0) / 256.0
    };
    let weight = |key: TensorKey| {
        let shape = key.shape(spec);
        let numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| number()).collect();
        (key, Weight::from_f32(shape, &numbers).unwrap())
    };
    TensorKey::all(spec).into_iter().map(weight).collect()
}

/// A checkpoint with tiny weights and the given tokenizer.
pub fn checkpoint(spec: ModelSpec, tokenizer: Option<TokenizerFiles>) -> Checkpoint {
    let weights = weights(&spec);
    Checkpoint {
        weights: Arc::new(MemorySource::new(spec, weights).unwrap()),
        tokenizer,
        generation: None,
        extras: Extras::new(),
        lineage: Lineage::default(),
    }
}

/// Byte-level BPE like SmolLM2's: 256 byte tokens (as letters of their own here), two merges, two special tokens.
pub fn bpe() -> TokenizerFiles {
    let mut vocab: serde_json::Map<String, Value> = serde_json::Map::new();
    vocab.insert("<|bos|>".to_owned(), json!(0));
    vocab.insert("<|eos|>".to_owned(), json!(1));
    for id in 2..258_u32 {
        vocab.insert(char::from_u32(0x4e00 + id).unwrap().to_string(), json!(id));
    }
    let letter = |id: u32| char::from_u32(0x4e00 + id).unwrap().to_string();
    let (pair, triple) = (letter(2) + &letter(3), letter(2) + &letter(3) + &letter(4));
    vocab.insert(pair.clone(), json!(258));
    vocab.insert(triple, json!(259));
    vocab.insert("plain".to_owned(), json!(260));
    let added = |id: u32, content: &str, special: bool| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special })
    };
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(0, "<|bos|>", true), added(1, "<|eos|>", true), added(260, "plain", false)],
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab,
            "merges": [format!("{} {}", letter(2), letter(3)), format!("{pair} {}", letter(4))],
        },
    });
    TokenizerFiles {
        json: json.to_string(),
        special: SpecialTokens { bos: Some(0), eos: Some(1), ..SpecialTokens::default() },
        chat_template: Some("{{ messages[0]['content'] }}".to_owned()),
    }
}

/// Writes a folder with one packed matrix, the second block's down projection, of 32 rows and 64 columns: a sound one, with
/// zero points, and with its columns in an order of their own where the layout has room for that.
pub fn write_packed(layout: PackedLayout, folder: &Path) {
    let matrix = Quantized::new(QuantizedParts {
        rows: 32,
        columns: 64,
        bits: 4,
        group_size: 32,
        levels: (0..32 * 64).map(|i| (i * 5 % 16) as u8).collect(),
        scales: vec![0.25; 64],
        zero_points: (0..64).map(|i| 7 + (i % 3) as u8).collect(),
        column_order: (layout == PackedLayout::GptqV2).then(|| (0..64).rev().collect()),
    });
    let matrices = BTreeMap::from([(TensorKey::block(1, Role::Down), matrix.unwrap())]);
    let packed = PackedMatrices { layout, matrices: &matrices };
    let model = checkpoint(spec(Family::Llama), None);
    write_packed_folder(&model, packed, folder, &WriteOptions::default(), &SilentHost).unwrap();
}

/// The tokenizer with its JSON edited.
pub fn edited(files: &TokenizerFiles, edit: impl FnOnce(&mut Value)) -> TokenizerFiles {
    let mut json = serde_json::from_str(&files.json).unwrap();
    edit(&mut json);
    TokenizerFiles { json: json.to_string(), ..files.clone() }
}

/// Asserts that two checkpoints have the same spec and the same weights, bit for bit.
pub fn assert_same_weights(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.spec(), b.spec());
    assert_eq!(a.weights.keys(), b.weights.keys());
    for &key in a.weights.keys() {
        let (a, b) = (a.weights.read(key).unwrap(), b.weights.read(key).unwrap());
        assert_eq!((a.shape(), a.format()), (b.shape(), b.format()), "{key}");
        assert_eq!(a.bytes(), b.bytes(), "{key}");
    }
}
