//! Exported decoders in onnxruntime, as a [`LanguageModel`]: what an export is compared through before it is called done.
//!
//! The library is not linked and not downloaded: the program names a `libonnxruntime` of the machine, and it is loaded
//! when it is asked for. The process keeps the first one.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::path::Path;

use half::f16;
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::{DynValue, Tensor},
};
use slmc_ir::{ForwardError, LanguageModel, ModelSpec, Role, SourceError, TensorKey, TokenId};

/// A runtime that could not be loaded, or a model that it does not take.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the message says
pub enum RuntimeError {
    #[error("no onnxruntime in `{path}`: {why}")]
    Library { path: String, why: String },
    #[error("onnxruntime: {0}")]
    Ort(String),
    #[error("the model gave {found} logits for {n_tokens} tokens of a vocabulary of {vocab_size}")]
    Logits { found: usize, n_tokens: usize, vocab_size: usize },
}

/// A `libonnxruntime` that is loaded.
#[derive(Clone)]
pub struct Runtime(Environment);

impl Runtime {
    /// Loads the library. A name without a folder is looked for as the system looks for libraries.
    ///
    /// # Errors
    /// When there is none, or it is older than this program knows.
    pub fn load(library: &Path) -> Result<Self, RuntimeError> {
        let failed = |why: String| RuntimeError::Library { path: library.display().to_string(), why };
        let environment = ort::init_from(library).map_err(|error| failed(error.to_string()))?;
        let environment = environment.with_name("slmc").with_telemetry(false).build();
        Ok(Self(environment.map_err(|error| failed(error.to_string()))?))
    }

    /// Opens a model that this program exported, or one with the same inputs and outputs.
    ///
    /// # Errors
    /// In onnxruntime's words, when it does not take the model.
    pub fn open(&self, model: &Path, sizes: Sizes, n_threads: usize) -> Result<OnnxModel, RuntimeError> {
        let opened = || -> Result<Session, ort::Error> {
            let builder = Session::builder(&self.0)?;
            let mut builder = builder.with_intra_threads(n_threads)?;
            builder.commit_from_file(model)
        };
        let session = opened().map_err(|error| RuntimeError::Ort(error.to_string()))?;
        Ok(OnnxModel { session, sizes, half: None })
    }
}

/// What a decoder's inputs and outputs are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as of a `ModelSpec`
pub struct Sizes {
    pub n_layers: usize,
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub vocab_size: usize,
    pub context_len: usize,
}

impl From<&ModelSpec> for Sizes {
    fn from(spec: &ModelSpec) -> Self {
        let ModelSpec { n_layers, n_kv_heads, d_head, vocab_size, context_len, .. } = *spec;
        Self { n_layers, n_kv_heads, d_head, vocab_size, context_len }
    }
}

/// A decoder in onnxruntime. Each evaluation begins with an empty cache.
#[derive(Debug)]
pub struct OnnxModel {
    session: Session,
    sizes: Sizes,
    /// Whether the cache is f16; found out by the first evaluation.
    half: Option<bool>,
}

impl OnnxModel {
    /// Logits of a whole sequence, `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// In onnxruntime's words, or when they are not so many.
    pub fn logits(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>, RuntimeError> {
        let logits = self.run(tokens).map_err(|error| RuntimeError::Ort(error.to_string()))?;
        let (found, n_tokens, vocab_size) = (logits.len(), tokens.len(), self.sizes.vocab_size);
        if n_tokens.checked_mul(vocab_size) != Some(found) {
            return Err(RuntimeError::Logits { found, n_tokens, vocab_size });
        }
        Ok(logits)
    }

    fn run(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>, ort::Error> {
        let is_half = |session: &Session| {
            let logits = session.outputs().iter().find(|output| output.name() == "logits");
            let kind = logits.and_then(|output| output.dtype().tensor_type());
            kind == Some(ort::value::TensorElementType::Float16)
        };
        let half = *self.half.get_or_insert_with(|| is_half(&self.session));
        let n = tokens.len();
        let integers = |numbers: Vec<i64>| Tensor::from_array(([1, n], numbers)).map(Tensor::into_dyn);
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = Vec::new();
        let ids = tokens.iter().map(|&id| i64::from(id)).collect();
        inputs.push(("input_ids".to_owned(), integers(ids)?.into()));
        inputs.push(("attention_mask".to_owned(), integers(vec![1; n])?.into()));
        inputs.push(("position_ids".to_owned(), integers((0..n as i64).collect())?.into()));
        for block in 0..self.sizes.n_layers {
            for what in ["key", "value"] {
                let empty = empty_cache(self.sizes, half)?;
                inputs.push((format!("past_key_values.{block}.{what}"), empty.into()));
            }
        }
        let outputs = self.session.run(inputs)?;
        let logits = &outputs["logits"];
        if half {
            let (_, numbers) = logits.try_extract_tensor::<f16>()?;
            return Ok(numbers.iter().map(|x| x.to_f32()).collect());
        }
        Ok(logits.try_extract_tensor::<f32>()?.1.to_vec())
    }
}

fn empty_cache(sizes: Sizes, half: bool) -> Result<DynValue, ort::Error> {
    let shape = [1, sizes.n_kv_heads, 0, sizes.d_head];
    if half {
        return Tensor::from_array((shape, Vec::<f16>::new())).map(Tensor::into_dyn);
    }
    Tensor::from_array((shape, Vec::<f32>::new())).map(Tensor::into_dyn)
}

impl LanguageModel for OnnxModel {
    fn vocab_size(&self) -> usize {
        self.sizes.vocab_size
    }

    fn context_len(&self) -> usize {
        self.sizes.context_len
    }

    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        let context_len = self.sizes.context_len;
        if tokens.len() > context_len {
            return Err(ForwardError::Context { n_tokens: tokens.len(), context_len });
        }
        let failed = |error: RuntimeError| {
            let key = TensorKey::model(Role::Head);
            ForwardError::from(SourceError::Other { key, message: error.to_string() })
        };
        let logits = self.logits(tokens).map_err(failed)?;
        for (position, row) in logits.chunks_exact(self.sizes.vocab_size).enumerate().skip(first) {
            if row.iter().any(|x| !x.is_finite()) {
                return Err(ForwardError::NotFinite { position });
            }
            visit(position, row);
        }
        Ok(())
    }
}
