//! `tokenizer.json` to GGUF's tables and back.

mod common;

use std::fs;

use common::{N_TOKENS, VOCAB_SIZE, bpe, checkpoint, edited, spec};
use serde_json::{Value as Json, json};
use slmc_formats::{
    GgufHeader,
    gguf::{Array, Value},
};
use slmc_interop::{WriteOptions, open, write_gguf};
use slmc_ir::{Family, ModelSpec, RopeScaling, SilentHost, SpecialTokens, TokenizerFiles};

/// SentencePiece BPE as the Llama 2 tokenizer has it: unknown, bos, eos, 256 bytes, merged tokens best first, letters.
fn spm(space_prefix: bool) -> TokenizerFiles {
    let mut vocab = serde_json::Map::new();
    let mut push = |token: &str| {
        let id = vocab.len();
        vocab.insert(token.to_owned(), json!(id));
    };
    ["<unk>", "<s>", "</s>"].into_iter().for_each(&mut push);
    (0..=255_u8).for_each(|byte| push(&format!("<0x{byte:02X}>")));
    ["▁a", "▁", "a"].into_iter().for_each(&mut push);
    let added = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space_prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let normalizers = if space_prefix { vec![prepend, replace] } else { vec![replace] };
    let bos = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let bos_of_second = json!({ "SpecialToken": { "id": "<s>", "type_id": 1 } });
    let (a, b) = (
        json!({ "Sequence": { "id": "A", "type_id": 0 } }),
        json!({ "Sequence": { "id": "B", "type_id": 1 } }),
    );
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": { "type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, bos_of_second, b],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["▁ a"] },
    });
    let special =
        SpecialTokens { bos: Some(1), eos: Some(2), unk: Some(0), pad: None, add_bos: true, add_eos: false };
    TokenizerFiles { json: json.to_string(), special, chat_template: None }
}

fn through_gguf(files: &TokenizerFiles) -> (GgufHeader, TokenizerFiles) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let original = checkpoint(spec(Family::Llama), Some(files.clone()));
    write_gguf(&original, &path, &WriteOptions::default(), &SilentHost).unwrap();
    let header = GgufHeader::parse(&fs::read(&path).unwrap()).unwrap();
    (header, open(&path).unwrap().tokenizer.unwrap())
}

fn json_of(files: &TokenizerFiles) -> Json {
    serde_json::from_str(&files.json).unwrap()
}

fn check_same(files: &TokenizerFiles) -> GgufHeader {
    let (header, back) = through_gguf(files);
    assert_eq!(json_of(&back), json_of(files));
    assert_eq!((&back.special, &back.chat_template), (&files.special, &files.chat_template));
    header
}

#[test]
fn sentencepiece_comes_back() {
    for space_prefix in [true, false] {
        let header = check_same(&spm(space_prefix));
        assert_eq!(header.get("tokenizer.ggml.model"), Some(&Value::String("llama".to_owned())));
        assert_eq!(header.get("tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(space_prefix)));
        let Some(Value::Array(Array::I32(types))) = header.get("tokenizer.ggml.token_type") else { panic!() };
        assert_eq!(types[..4], [2, 3, 3, 6]);
        assert_eq!(types[258..], [6, 1, 1, 1, 5, 5]);
        let Some(Value::Array(Array::F32(scores))) = header.get("tokenizer.ggml.scores") else { panic!() };
        assert_eq!(scores[258..262], [0.0, 0.0, -1.0, -2.0]);
    }
}

#[test]
fn metaspace_is_the_same_as_a_prepended_space() {
    let metaspace = |scheme: &str, split: bool| {
        edited(&spm(true), |json| {
            json["normalizer"] = Json::Null;
            json["pre_tokenizer"] =
                json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
        })
    };
    for (scheme, prefix) in [("first", true), ("always", true), ("never", false)] {
        let (_, back) = through_gguf(&metaspace(scheme, false));
        assert_eq!(json_of(&back), json_of(&spm(prefix)));
    }
    check_refused(&metaspace("first", true), &["the pre-tokenizer", "Metaspace"]);
}

#[test]
fn every_split_comes_back_with_its_name() {
    let byte_level = |trim: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim, "use_regex": false });
    let split = |regex: &str, trim: bool| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
            byte_level(trim),
        ] })
    };
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let qwen2 = llama3.replace("{1,3}", "");
    let cases = [
        ("llama-bpe", split(llama3, true), Json::Null, true),
        ("qwen2", split(&qwen2, false), json!({ "type": "NFC" }), false),
        ("deepseek-r1-qwen", split(&qwen2, true), Json::Null, false),
    ];
    for (name, pre_tokenizer, normalizer, ignore_merges) in cases {
        let files = edited(&bpe(), |json| {
            json["pre_tokenizer"] = pre_tokenizer;
            json["normalizer"] = normalizer;
            json["model"]["ignore_merges"] = json!(ignore_merges);
            if name == "qwen2" {
                json["decoder"] = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                    "use_regex": false });
            }
        });
        let header = check_same(&files);
        assert_eq!(header.get("tokenizer.ggml.pre"), Some(&Value::String(name.to_owned())));
        assert_eq!(header.get("tokenizer.ggml.model"), Some(&Value::String("gpt2".to_owned())));
    }
}

#[test]
fn tokens_around_a_text_come_back() {
    let mut files = bpe();
    files.special = SpecialTokens { add_bos: true, add_eos: true, ..files.special };
    let (header, back) = through_gguf(&files);
    assert_eq!(header.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(header.get("tokenizer.ggml.add_eos_token"), Some(&Value::Bool(true)));
    assert_eq!(back.special, files.special);
    let single = &json_of(&back)["post_processor"]["single"];
    assert_eq!(single[0]["SpecialToken"]["id"], "<|bos|>");
    assert_eq!(single[1]["Sequence"]["id"], "A");
    assert_eq!(single[2]["SpecialToken"]["id"], "<|eos|>");
}

#[test]
fn merges_may_be_pairs() {
    let pairs = edited(&bpe(), |json| {
        for merge in json["model"]["merges"].as_array_mut().unwrap() {
            let (left, right) = merge.as_str().unwrap().split_once(' ').unwrap();
            *merge = json!([left, right]);
        }
    });
    assert_eq!(json_of(&through_gguf(&pairs).1), json_of(&bpe()));
}

/// The tokenizer is not written, and the error says all of `expected`.
fn check_refused(files: &TokenizerFiles, expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let original = checkpoint(spec(Family::Llama), Some(files.clone()));
    let result = write_gguf(&original, &path, &WriteOptions::default(), &SilentHost);
    let message = result.map(|_| ()).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!path.exists());
}

fn check_edit(edit: impl FnOnce(&mut Json), expected: &[&str]) {
    check_refused(&edited(&bpe(), edit), expected);
}

#[test]
fn what_gguf_cannot_say_is_refused_by_name() {
    let whitespace = json!({ "type": "Whitespace" });
    check_edit(|json| json["pre_tokenizer"] = whitespace, &["Whitespace", "known: smollm"]);
    check_edit(|json| json["pre_tokenizer"] = Json::Null, &["pre_tokenizer null"]);
    check_edit(|json| json["normalizer"] = json!({ "type": "Lowercase" }), &["Lowercase"]);
    check_edit(|json| json["model"]["type"] = json!("Unigram"), &["Unigram"]);
    check_edit(|json| json["model"]["dropout"] = json!(0.1), &["dropout", "0.1"]);
    check_edit(|json| json["model"]["end_of_word_suffix"] = json!("</w>"), &["end_of_word_suffix", "</w>"]);
    check_edit(|json| json["model"]["ignore_merges"] = json!(true), &["ignore_merges"]);
    check_edit(|json| json["model"]["vocab"] = json!([["a", -1.0]]), &["BPE vocabulary"]);
}

#[test]
fn tables_that_contradict_each_other_are_refused() {
    check_edit(|json| json["model"]["merges"][0] = json!("x y"), &["merge 0", "x y"]);
    check_edit(|json| json["model"]["merges"][0] = json!("xy"), &["xy", "two tokens"]);
    check_edit(|json| json["model"]["merges"][0] = json!(["x", "y", "z"]), &["two tokens"]);
    check_edit(|json| json["model"]["merges"][0] = json!(["a b", "c"]), &["merge 0"]);
    check_edit(|json| json["model"]["vocab"]["far"] = json!(VOCAB_SIZE), &["264", "far", "264 rows"]);
    check_edit(|json| json["model"]["vocab"]["other"] = json!(0), &["id 0", "other"]);
    check_edit(|json| json["added_tokens"][0]["id"] = json!(N_TOKENS), &["both `<|bos|>`"]);
    let mut files = bpe();
    files.special.pad = Some(VOCAB_SIZE as u32);
    check_refused(&files, &["padding_token_id", "264"]);
    check_refused(&TokenizerFiles { json: "{".to_owned(), ..bpe() }, &["tokenizer.json"]);
}

#[test]
fn architectures_without_rotary_factors_refuse_llama_3_scaling() {
    let spec = ModelSpec {
        biases: slmc_ir::Biases { qkv: true, ..slmc_ir::Biases::default() },
        rope_scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_len: 8192,
        },
        ..spec(Family::Qwen2)
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let result = write_gguf(&checkpoint(spec, None), &path, &WriteOptions::default(), &SilentHost);
    let message = result.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("Llama 3") && message.contains("qwen2"), "{message}");
}
