//! The tokenizer's files of a Hugging Face folder.

use std::path::Path;

use serde_json::{Map, Value};
use slmc_ir::{SpecialTokens, TokenizerFiles};

use crate::{
    error::{At as _, OpenError, OpenFault, TokenizerError, shorten},
    files::{read_object, read_text, read_tokenizer_text},
    tokenizer::json::TokenizerJson,
};

/// Tokenizer files without a `tokenizer.json` beside them.
const OLD_FILES: [&str; 4] = ["tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"];

type Object = Map<String, Value>;

/// The folder's tokenizer; `None` when it has none.
pub(crate) fn read_tokenizer(
    folder: &Path,
    config: &Object,
    tokenizer_config: Option<&Object>,
    vocab_size: usize,
) -> Result<Option<TokenizerFiles>, OpenError> {
    let path = folder.join("tokenizer.json");
    let Some(json) = read_tokenizer_text(&path)? else {
        return match OLD_FILES.into_iter().find(|name| folder.join(name).is_file()) {
            Some(name) => Err(OpenFault::OldTokenizer(name).at(folder)),
            None => Ok(None),
        };
    };
    let parsed = TokenizerJson::parse(&json).at(&path)?;
    let special_map = read_object(&folder.join("special_tokens_map.json"))?;
    let sources = Sources { parsed: &parsed, tokenizer_config, special_map: special_map.as_ref(), config };
    let special = sources.special_tokens(vocab_size).at(folder)?;
    let chat_template = read_chat_template(folder, tokenizer_config)?;
    Ok(Some(TokenizerFiles { json, special, chat_template }))
}

/// The files that name special tokens, the most specific first.
struct Sources<'a> {
    parsed: &'a TokenizerJson,
    tokenizer_config: Option<&'a Object>,
    special_map: Option<&'a Object>,
    config: &'a Object,
}

impl Sources<'_> {
    fn special_tokens(&self, vocab_size: usize) -> Result<SpecialTokens, TokenizerError> {
        let (before, after) = self.parsed.template()?;
        let mut special = SpecialTokens {
            bos: self.id("bos_token", vocab_size)?,
            eos: self.id("eos_token", vocab_size)?,
            unk: self.id("unk_token", vocab_size)?,
            pad: self.id("pad_token", vocab_size)?,
            add_bos: false,
            add_eos: false,
        };
        (special.bos, special.add_bos) = self.around(&before, special.bos, "add_bos_token")?;
        (special.eos, special.add_eos) = self.around(&after, special.eos, "add_eos_token")?;
        Ok(special)
    }

    /// The token at one end of a text and whether it is added: the post-processor decides; where it adds nothing,
    /// the flag of `tokenizer_config.json` (the Llama tokenizers make their post-processor from it).
    fn around(
        &self,
        added: &[String],
        known: Option<u32>,
        flag: &'static str,
    ) -> Result<(Option<u32>, bool), TokenizerError> {
        match added {
            [] => {
                let asked =
                    self.tokenizer_config.and_then(|config| config.get(flag)).and_then(Value::as_bool);
                Ok((known, asked.unwrap_or(false) && known.is_some()))
            }
            [token] => {
                let missing = || TokenizerError::Special { what: "post_processor", token: shorten(token) };
                let id = self.parsed.id_of(token).ok_or_else(missing)?;
                if known.is_some_and(|known| known != id) {
                    let what = "a post-processor that adds";
                    return Err(TokenizerError::Inexpressible { what, found: shorten(token) });
                }
                Ok((Some(id), true))
            }
            several => {
                let what = "a post-processor that adds";
                Err(TokenizerError::Inexpressible { what, found: shorten(&several.join(" ")) })
            }
        }
    }

    /// The id of `bos_token` and the like.
    fn id(&self, field: &'static str, vocab_size: usize) -> Result<Option<u32>, TokenizerError> {
        let named = [self.tokenizer_config, self.special_map].into_iter().flatten();
        let token = named.filter_map(|object| token_text(object.get(field)?)).next();
        if let Some(token) = token {
            let missing = || TokenizerError::Special { what: field, token: shorten(token) };
            return self.parsed.id_of(token).map(Some).ok_or_else(missing);
        }
        let id = match self.config.get(&format!("{field}_id")) {
            // Some models end at any of several tokens; the first is the one that is written.
            Some(Value::Array(ids)) => ids.first().and_then(Value::as_u64),
            Some(id) => id.as_u64(),
            None => None,
        };
        match id {
            Some(id) if id >= vocab_size as u64 => {
                Err(TokenizerError::SpecialId { what: field, id, vocab_size })
            }
            other => Ok(other.map(|id| id as u32)),
        }
    }
}

/// `"</s>"`, or `{ "content": "</s>", … }`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

fn read_chat_template(folder: &Path, tokenizer_config: Option<&Object>) -> Result<Option<String>, OpenError> {
    if let Some(template) = read_text(&folder.join("chat_template.jinja"))? {
        return Ok(Some(template));
    }
    let stated = tokenizer_config.and_then(|config| config.get("chat_template")).filter(|v| !v.is_null());
    let path = folder.join("chat_template.json");
    let file = if stated.is_none() { read_object(&path)? } else { None };
    let Some(template) = stated.or_else(|| file.as_ref()?.get("chat_template")) else {
        return Ok(None);
    };
    let default =
        || template.as_array()?.iter().find(|named| named["name"] == "default")?["template"].as_str();
    match template.as_str().or_else(default) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(OpenFault::from(TokenizerError::ChatTemplate).at(folder)),
    }
}
