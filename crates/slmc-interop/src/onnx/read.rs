//! A folder for onnxruntime-genai, as far as running it needs: the graph itself is the runtime's to read.

use std::{
    path::{Component, Path, PathBuf},
    slice,
};

use serde_json::{Map, Value};
use slmc_ir::{TokenId, TokenizerFiles};

use super::GENAI_CONFIG;
use crate::{
    error::{At as _, FieldError, OpenError, OpenFault},
    files::read_object,
    hf::{fields::Fields, read_tokenizer},
};

/// Blocks beyond which a configuration is not believed: names are made for each.
const MOST_LAYERS: usize = 4096;

/// What is in the folder.
#[derive(Clone, Debug)]
pub struct OnnxFolder {
    /// The graph's file.
    pub model: PathBuf,
    /// Blocks, each with a cache of keys and values.
    pub n_layers: usize,
    /// Heads of such a cache.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Length of a row of logits.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub context_len: usize,
    /// Tokens that end a text.
    pub ends: Vec<TokenId>,
    /// The tokenizer's files, where they are beside it.
    pub tokenizer: Option<TokenizerFiles>,
}

impl OnnxFolder {
    /// Whether a path is such a folder.
    pub fn is_one(path: &Path) -> bool {
        path.join(GENAI_CONFIG).is_file()
    }

    /// Reads the configuration and the tokenizer's files.
    ///
    /// # Errors
    /// When the configuration is missing or lacks a field, or the tokenizer's files cannot be read.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(GENAI_CONFIG);
        let config = read_object(&path)?.ok_or_else(|| OpenFault::NotAModel.at(folder))?;
        let tokenizer_config = read_object(&folder.join("tokenizer_config.json"))?;
        let mut found = Self::from_config(Fields::new(&config), folder).at(&path)?;
        found.tokenizer = read_tokenizer(folder, &Map::new(), tokenizer_config.as_ref(), found.vocab_size)?;
        Ok(found)
    }

    fn from_config(config: Fields<'_>, folder: &Path) -> Result<Self, FieldError> {
        let missing = |field: &str| FieldError::Missing { field: field.to_owned() };
        let model = config.object("model")?.ok_or_else(|| missing("model"))?;
        let decoder = model.object("decoder")?.ok_or_else(|| missing("model.decoder"))?;
        let file = decoder.text("filename")?.ok_or_else(|| missing("model.decoder.filename"))?;
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(decoder.unsupported("filename", "it must name a file in the folder"));
        }
        let n_layers = decoder.required_size("num_hidden_layers")?;
        if n_layers > MOST_LAYERS {
            return Err(decoder.unsupported("num_hidden_layers", "no model has so many"));
        }
        Ok(Self {
            model: folder.join(file),
            n_layers,
            n_kv_heads: decoder.required_size("num_key_value_heads")?,
            d_head: decoder.required_size("head_size")?,
            vocab_size: model.required_size("vocab_size")?,
            context_len: model.required_size("context_length")?,
            ends: ends(model)?,
            tokenizer: None,
        })
    }
}

/// One id or several, as the runtime takes both.
fn ends(model: Fields<'_>) -> Result<Vec<TokenId>, FieldError> {
    let given = model.get("eos_token_id");
    let ids = given.map_or(&[][..], |given| given.as_array().map_or(slice::from_ref(given), Vec::as_slice));
    let id = |id: &Value| id.as_u64().and_then(|id| TokenId::try_from(id).ok());
    let all: Option<Vec<TokenId>> = ids.iter().map(id).collect();
    all.ok_or_else(|| model.unsupported("eos_token_id", "it must be a token's id, or a list of them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(config: &str) -> Result<OnnxFolder, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(GENAI_CONFIG), config).unwrap();
        assert!(OnnxFolder::is_one(folder.path()));
        OnnxFolder::open(folder.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_configuration_says_what_running_needs() {
        let config = |file: &str, layers: u64| {
            format!(
                r#"{{"model": {{"context_length": 64, "vocab_size": 9, "decoder": {{"filename": "{file}",
                    "head_size": 4, "num_hidden_layers": {layers}, "num_key_value_heads": 2}}}}}}"#
            )
        };
        let found = opened(&config("model.onnx", 3)).unwrap();
        assert_eq!((found.n_layers, found.n_kv_heads, found.d_head), (3, 2, 4));
        assert_eq!((found.vocab_size, found.context_len), (9, 64));
        assert!(found.model.ends_with("model.onnx") && found.tokenizer.is_none() && found.ends.is_empty());
        let ending = |ends: &str| {
            config("model.onnx", 3)
                .replacen('{', &format!("{{\"model\": {{\"eos_token_id\": {ends}, "), 1)
                .replacen("\"model\": {\"context", "\"context", 1)
        };
        assert_eq!(opened(&ending("7")).unwrap().ends, [7]);
        assert_eq!(opened(&ending("[7, 8]")).unwrap().ends, [7, 8]);
        for (wrong, what) in [
            (config("../model.onnx", 3), "filename"),
            (config("/etc/passwd", 3), "filename"),
            (config("", 3), "filename"),
            (config("model.onnx", 1 << 60), "num_hidden_layers"),
            (ending("[7, -1]"), "eos_token_id"),
            (ending("\"</s>\""), "eos_token_id"),
            ("{}".to_owned(), "model"),
            ("[]".to_owned(), "JSON"),
        ] {
            let message = opened(&wrong).unwrap_err();
            assert!(message.contains(what), "{wrong}: {message}");
        }
    }
}
