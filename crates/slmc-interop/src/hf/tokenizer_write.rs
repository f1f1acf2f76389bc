//! The tokenizer's files of a Hugging Face folder, beside `tokenizer.json`.

use serde_json::{Map, Value, json};
use slmc_ir::TokenizerFiles;

use crate::{
    error::TokenizerError,
    tokenizer::json::{AddedToken, TokenizerJson},
};

type Object = Map<String, Value>;

/// `tokenizer_config.json` and `special_tokens_map.json`. `kept` is the configuration that the model came with.
pub(crate) fn tokenizer_configs(
    files: &TokenizerFiles,
    context_len: usize,
    kept: Option<&Object>,
) -> Result<(Object, Object), TokenizerError> {
    let json = TokenizerJson::parse(&files.json)?;
    let special = &files.special;
    let mut config = kept.cloned().unwrap_or_else(|| fresh(&json.added_tokens, context_len));
    let mut map = Object::new();
    let named = [
        ("bos_token", special.bos),
        ("eos_token", special.eos),
        ("unk_token", special.unk),
        ("pad_token", special.pad),
    ];
    for (field, id) in named {
        let Some(id) = id else {
            // The file that the model came with may say null; a token that is none must not stay.
            config.retain(|name, value| name != field || value.is_null());
            continue;
        };
        let text = text_of(&json, id).ok_or(TokenizerError::SpecialId {
            what: field,
            id: id.into(),
            vocab_size: json.model.vocab.0.len(),
        })?;
        let kept_text = config.get(field).map(|value| value["content"].as_str().or(value.as_str()));
        if kept_text != Some(Some(text)) {
            config.insert(field.to_owned(), json!(text));
        }
        map.insert(field.to_owned(), json!(text));
    }
    for (field, added) in [("add_bos_token", special.add_bos), ("add_eos_token", special.add_eos)] {
        // Said where it was said before, or where it is not what a reader would infer.
        if config.contains_key(field) || added {
            config.insert(field.to_owned(), json!(added));
        }
    }
    match &files.chat_template {
        Some(template) if !has_default(config.get("chat_template"), template) => {
            config.insert("chat_template".to_owned(), json!(template));
        }
        Some(_) => {}
        None => {
            config.remove("chat_template");
        }
    }
    Ok((config, map))
}

fn fresh(added: &[AddedToken], context_len: usize) -> Object {
    let decoder = |token: &AddedToken| {
        let entry = json!({
            "content": token.content,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": token.special,
        });
        (token.id.to_string(), entry)
    };
    let decoder: Object = added.iter().map(decoder).collect();
    let mut config = Object::new();
    config.insert("added_tokens_decoder".to_owned(), Value::Object(decoder));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("model_max_length".to_owned(), json!(context_len));
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config
}

fn text_of(json: &TokenizerJson, id: u32) -> Option<&str> {
    let added = json.added_tokens.iter().find(|token| token.id == id).map(|token| token.content.as_str());
    added.or_else(|| json.model.vocab.0.iter().find(|(_, other)| *other == id).map(|(text, _)| text.as_str()))
}

/// Whether the configuration's template, or the one named `default` in its list, is this one.
fn has_default(kept: Option<&Value>, template: &str) -> bool {
    match kept {
        Some(Value::Array(named)) => {
            named.iter().any(|entry| entry["name"] == "default" && entry["template"] == template)
        }
        Some(value) => value == template,
        None => false,
    }
}
