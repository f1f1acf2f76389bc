//! What can be wrong with a model from outside, or with a request to write one.

use std::path::{Path, PathBuf};

use slmc_formats::{FileError, GgufError, OnnxError, SafetensorsError, safetensors::ShardIndexError};
use slmc_ir::{Format, SourceError, SpecError, TensorKey, WeightError};

use crate::packed::PackError;

/// A model that could not be opened: where, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("`{path}`: {fault}", path = path.display())]
pub struct OpenError {
    /// The file or folder at fault.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: OpenFault,
}

/// What is wrong with a model's files.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum OpenFault {
    #[error(
        "there is no model here: a model is a folder with `config.json` and safetensors, a folder with one GGUF, \
         or a GGUF file"
    )]
    NotAModel,
    #[error(
        "there is no adapter here: an adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`"
    )]
    NoAdapter,
    #[error("{0}")]
    Adapter(#[from] slmc_ir::AdapterError),
    #[error("the file is no GGUF; to open a Hugging Face model, name its folder")]
    NotGguf,
    #[error("the folder holds {0} GGUF files and no `config.json`; name the one that you mean")]
    ManyGgufs(usize),
    #[error("{source}")]
    File {
        #[from]
        source: FileError,
    },
    #[error("cannot read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the file has {found} bytes; the limit for this kind of file is {limit}")]
    FileTooLong { found: u64, limit: u64 },
    #[error("not UTF-8 text; fetch the file again")]
    NotUtf8,
    #[error("not the JSON that it should be: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Gguf(#[from] GgufError),
    #[error("{0}")]
    Safetensors(#[from] SafetensorsError),
    #[error("{0}")]
    ShardIndex(#[from] ShardIndexError),
    #[error("{0}")]
    Field(#[from] FieldError),
    #[error("{0}")]
    Tensor(#[from] TensorError),
    #[error("{0}")]
    Tokenizer(#[from] TokenizerError),
    #[error(
        "weights in PyTorch's pickle format (`{0}`) are not read, because opening them runs their code; convert \
         them to safetensors first"
    )]
    Pickle(String),
    #[error("there is no `model.safetensors` and no `model.safetensors.index.json`; fetch the weights too")]
    NoWeights,
    #[error("a tokenizer in `{0}` alone is not read; save it as `tokenizer.json` with transformers first")]
    OldTokenizer(&'static str),
}

impl OpenFault {
    /// The error, at a path.
    pub(crate) fn at(self, path: &Path) -> OpenError {
        OpenError { path: path.to_owned(), fault: self }
    }
}

/// Adds the path to an error on its way out.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T, OpenError>;
}

impl<T, E: Into<OpenFault>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, OpenError> {
        self.map_err(|error| error.into().at(path))
    }
}

/// A field of `config.json`, or a key of GGUF metadata, that slmc cannot take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum FieldError {
    #[error("`{field}` is missing; a model of this architecture needs it")]
    Missing { field: String },
    #[error("`{field}` is {found}; it must be {wanted}")]
    Type { field: String, found: String, wanted: &'static str },
    #[error("unsupported architecture `{found}`; supported: {supported}")]
    Architecture { found: String, supported: String },
    #[error("`{field}` is {found}, which is not supported: {why}")]
    Unsupported { field: String, found: String, why: &'static str },
    #[error(
        "`{field}` is not known (its value is {found}), and it may change what the model computes; refused"
    )]
    Unknown { field: String, found: String },
    #[error("{0}")]
    Spec(#[from] SpecError),
}

/// A tensor that does not belong to the model that the configuration describes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum TensorError {
    #[error("tensor `{0}` is missing; fetch the weights again, or correct the configuration")]
    Missing(String),
    #[error("tensor `{name}` has shape {found:?} where the configuration calls for {expected:?}")]
    Shape { name: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("tensor `{0}` is not part of a model of this architecture and configuration; refused")]
    Unknown(String),
    #[error("tensor `{0}` is in two of the shards")]
    Twice(String),
    #[error("tensor `{name}` is not in `{shard}` where the shard index says it is")]
    NotInShard { name: String, shard: String },
    #[error("tensor `{name}`: {source}")]
    Weight { name: String, source: WeightError },
    #[error("tensor `{name}` holds {found}; it must hold {expected}")]
    Type { name: String, found: &'static str, expected: &'static str },
    #[error("packed matrix `{name}`: {source}")]
    Packed { name: String, source: PackError },
    #[error("packed matrix `{0}`: its `weight_shape` is not the configuration's")]
    PackedShape(String),
    #[error("`rope_freqs.weight` {0}")]
    RopeFreqs(&'static str),
}

/// A tokenizer that cannot be converted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum TokenizerError {
    #[error("`tokenizer.json`: {0}")]
    Json(serde_json::Error),
    #[error("metadata `{0}` is missing; convert the model again with a current llama.cpp")]
    MissingKey(&'static str),
    #[error("metadata `{key}` must be {wanted}")]
    KeyType { key: &'static str, wanted: &'static str },
    #[error(
        "tokenizer model `{0}` is not supported; supported: gpt2 (byte-level BPE), llama (SentencePiece BPE)"
    )]
    Model(String),
    #[error(
        "pre-tokenizer `{name}` is not known, so how text is split is not either; known: {known}. Refused, \
         because another would silently give other tokens"
    )]
    PreName { name: String, known: String },
    #[error(
        "the tokenizer splits text in a way that has no name in GGUF (pre_tokenizer {pre_tokenizer}, normalizer \
         {normalizer}); known: {known}. Refused, because another would silently give other tokens"
    )]
    PreUnknown { pre_tokenizer: String, normalizer: String, known: String },
    #[error("`tokenizer.json` has {what} {found}, which is not supported")]
    Inexpressible { what: &'static str, found: String },
    #[error(
        "there are {found} {what} for {expected} rows of the embedding; this is another model's tokenizer"
    )]
    Count { what: &'static str, found: usize, expected: usize },
    #[error("token {id} (`{token}`) is beyond the {vocab_size} rows of the embedding")]
    BeyondVocab { id: u64, token: String, vocab_size: usize },
    #[error("tokens {first} and {second} are both `{token}`")]
    Duplicate { token: String, first: usize, second: usize },
    #[error("`{token}` and `{other}` both have id {id}")]
    SameId { id: u32, token: String, other: String },
    #[error("merge {index} (`{merge}`) names a token that is not in the vocabulary")]
    Merge { index: usize, merge: String },
    #[error("merge {index} (`{merge}`) is not two tokens with a space between")]
    MergeForm { index: usize, merge: String },
    #[error("token {id} has type {found}; types are 1 to 6")]
    TokenType { id: usize, found: i32 },
    #[error("special token {what} is `{token}`, which is not in the vocabulary")]
    Special { what: &'static str, token: String },
    #[error("`{what}` is {id}, beyond the {vocab_size} rows of the embedding")]
    SpecialId { what: &'static str, id: u64, vocab_size: usize },
    #[error("`chat_template` must be a text, or a list of named texts with one named `default`")]
    ChatTemplate,
    #[error("the score of token {id} is not a number")]
    Score { id: usize },
}

/// A model that could not be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum WriteError {
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error("{0}")]
    Gguf(#[from] GgufError),
    #[error("{0}")]
    Safetensors(#[from] SafetensorsError),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{0}")]
    Adapter(#[from] slmc_ir::AdapterError),
    #[error("cannot write `{path}`: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the tokenizer cannot be written: {0}")]
    Tokenizer(#[from] TokenizerError),
    #[error("tensor `{name}`: {source}")]
    Weight { name: String, source: WeightError },
    #[error("tensor `{name}` holds {value} at weight {index}: the model is damaged or training diverged")]
    NotFinite { name: String, value: f32, index: usize },
    #[error(
        "tensor `{name}` holds {value} at weight {index}, which does not fit {format}; write bf16 or f32 instead"
    )]
    Overflow { name: String, value: f32, index: usize, format: Format },
    #[error("{0} is no float format; to write packed weights, quantize first")]
    NotFloat(Format),
    #[error("a model with {what} cannot be written as {container} of the family {family}")]
    Inexpressible { what: &'static str, container: &'static str, family: &'static str },
    #[error("the metadata carried along (`{what}`) is damaged: {why}")]
    Kept { what: String, why: &'static str },
    #[error("{0}")]
    OnnxFile(#[from] OnnxError),
    #[error("ONNX: {0}")]
    Onnx(String),
    #[error("packed matrix {key}: {source}")]
    Packed { key: TensorKey, source: PackError },
    #[error("{key} is packed with {found}, others with {expected}: one scheme must hold for the whole file")]
    MixedSchemes { key: TensorKey, found: String, expected: String },
    #[error("{key} cannot be packed: only the projections inside blocks can, embedding and head stay floats")]
    NotPackable { key: TensorKey },
    #[error("{key} has {found:?} rows and columns packed where the model has {expected:?}")]
    PackedShape { key: TensorKey, found: [usize; 2], expected: Vec<usize> },
    #[error(
        "block {block}: {roles} are computed as one by runtimes, so all of them are packed, with the same column \
         order, or none"
    )]
    Fused { block: usize, roles: String },
    #[error("the floats of a packed file are f16 or f32, as its scales are exact in f16 only; not {0}")]
    PackedFloat(Format),
    #[error("stopped on request; nothing was written")]
    Stopped,
}

/// A short form of a JSON value for messages.
pub(crate) fn shown(value: &serde_json::Value) -> String {
    shorten(&value.to_string())
}

/// At most this many characters of a text from outside are shown.
const MAX_SHOWN_CHARS: usize = 200;

/// The beginning of a text from outside, control characters escaped: a message must neither drive the terminal
/// nor fill it.
pub(crate) fn shorten(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == MAX_SHOWN_CHARS {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    out
}
