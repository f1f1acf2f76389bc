//! Measuring an artefact: with the engine, as it is and as it will be run; on a device where one is named.

use std::path::Path;

use slmc_data::Tokenizer;
use slmc_engine::{Engine, EngineOptions, KvType, stop_tokens};
use slmc_eval::{Baseline, Divergence, EvalError, EvalText, Journal, Paired, Perplexity, Windowing, key_of};
use slmc_interop::OnnxFolder;
use slmc_ir::{Checkpoint, Host, LanguageModel, TokenId};
use slmc_model::{Decoder, Evaluator};
use slmc_onnxruntime::{Runtime, Sizes};
use slmc_recipe::{EvalConfig, Evaluation, StageError};

use crate::{
    Surroundings,
    calibration::{Dataset, same_vocabulary, text_of_document, tokenizer_of},
    keeping::{Keeping, part_of_text},
    open::open_device,
};

/// Perplexity of a checkpoint by llama-perplexity's protocol, for the table at the end of a run.
pub fn evaluate(
    checkpoint: &Checkpoint,
    config: &EvalConfig,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Evaluation, StageError> {
    let windowing = Windowing::llama(config.ctx, config.chunks);
    let on = OnText { data: &config.data, windowing, exactness: Exactness::FAST, keeping: None };
    let subject = Subject::Checkpoint(checkpoint.clone());
    let found = perplexity_of(&subject, &on, surroundings, host)?;
    Ok(Evaluation { ppl: found.ppl, standard_error: found.standard_error, tokens: found.tokens })
}

/// What follows for whoever stopped an evaluation.
pub const KEPT: &str = "what is done is kept: the same command goes on from there";

/// How exactly the engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// As it generates: activations in int8 where weights are levels, or bf16 where the CPU reads in that; keys and values are
    /// kept like this.
    Fast(KvType),
    /// Activations in int8, as llama.cpp has them.
    InBytes(KvType),
    /// The same, and the same bits on every CPU.
    Alike(KvType),
    /// The weights as they decode, everything else in f32.
    Exact,
}

impl Exactness {
    /// As it generates when nothing is wished for.
    pub const FAST: Self = Self::Fast(KvType::F16);

    /// For perplexity, which is llama.cpp's.
    #[must_use]
    pub const fn to_measure(self) -> Self {
        match self {
            Self::Fast(kv) => Self::InBytes(kv),
            other => other,
        }
    }

    /// For figures of several models beside each other: a verdict must not depend on the CPU that it is made on.
    #[must_use]
    pub const fn to_compare(self) -> Self {
        match self {
            Self::Fast(kv) => Self::Alike(kv),
            other => other,
        }
    }

    /// What the engine is told.
    pub const fn options(self, n_threads: usize) -> EngineOptions {
        match self {
            Self::Fast(kv) => EngineOptions { kv, ..EngineOptions::fast(n_threads) },
            Self::InBytes(kv) => EngineOptions { kv, ..EngineOptions::in_bytes(n_threads) },
            Self::Alike(kv) => EngineOptions { kv, ..EngineOptions::alike(n_threads) },
            Self::Exact => EngineOptions::exact(n_threads),
        }
    }

    /// Whether something is asked for that the engine alone can do.
    const fn is_wished(self) -> bool {
        !matches!(self, Self::Fast(KvType::F16) | Self::InBytes(KvType::F16) | Self::Alike(KvType::F16))
    }
}

/// What is measured.
#[derive(Clone)]
pub enum Subject {
    /// A checkpoint, by the engine or on a device.
    Checkpoint(Checkpoint),
    /// An exported folder, by the runtime that it was made for.
    Onnx(Box<OnnxFolder>, Runtime),
}

impl Subject {
    /// How its texts are read.
    ///
    /// # Errors
    /// When it has no tokenizer, or one that is not understood.
    pub fn tokenizer(&self) -> Result<Tokenizer, StageError> {
        match self {
            Self::Checkpoint(checkpoint) => tokenizer_of(checkpoint),
            Self::Onnx(folder, _) => {
                let none = "there is no tokenizer beside the model: text cannot be read with it";
                let files = folder.tokenizer.as_ref().ok_or_else(|| StageError::Input(none.to_owned()))?;
                Tokenizer::from_files(files).map_err(|e| StageError::Input(e.to_string()))
            }
        }
    }

    /// Tokens that end what it writes.
    pub fn ends(&self) -> Vec<TokenId> {
        match self {
            Self::Checkpoint(checkpoint) => stop_tokens(checkpoint),
            Self::Onnx(folder, _) => folder.ends.clone(),
        }
    }

    /// The model, ready to be asked.
    ///
    /// # Errors
    /// When it cannot be loaded, or not as is wished.
    pub fn model(
        &self,
        exactness: Exactness,
        surroundings: &Surroundings,
    ) -> Result<Box<dyn LanguageModel>, StageError> {
        let (folder, runtime) = match self {
            Self::Checkpoint(checkpoint) => return measured_model(checkpoint, exactness, surroundings),
            Self::Onnx(folder, runtime) => (folder, runtime),
        };
        if exactness.is_wished() || surroundings.device.is_some() {
            let message =
                "--exact, --cache and --device are about other programs: an ONNX model runs in onnxruntime";
            return Err(StageError::Input(message.to_owned()));
        }
        let OnnxFolder { n_layers, n_kv_heads, d_head, vocab_size, context_len, .. } = **folder;
        let sizes = Sizes { n_layers, n_kv_heads, d_head, vocab_size, context_len };
        let opened = runtime.open(&folder.model, sizes, rayon::current_num_threads());
        Ok(Box::new(opened.map_err(|e| StageError::Input(e.to_string()))?))
    }
}

/// What models are measured on, and how.
#[derive(Clone, Copy, Debug)]
pub struct OnText<'a> {
    /// The dataset whose text it is.
    pub data: &'a str,
    /// How the text is cut.
    pub windowing: Windowing,
    /// How exactly the engine computes.
    pub exactness: Exactness,
    /// Where what is done is kept; nowhere when absent.
    pub keeping: Option<&'a Keeping>,
}

impl OnText<'_> {
    fn journal(&self, what: &str, text: &EvalText, surroundings: &Surroundings, host: &dyn Host) -> Journal {
        let Some(keeping) = self.keeping else { return Journal::none() };
        let settings = format!("{:?} {:?} {:?}", self.windowing, self.exactness, surroundings.device);
        keeping.journal(&[what, &part_of_text(text), &settings], host)
    }
}

/// Perplexity of a model on the text of a dataset.
pub fn perplexity_of(
    subject: &Subject,
    on: &OnText<'_>,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Perplexity, StageError> {
    let failed = |error| eval_error(error, on.keeping);
    let text = EvalText::new(&subject.tokenizer()?, &text_of(on.data, surroundings)?).map_err(failed)?;
    let mut journal = on.journal("perplexity", &text, surroundings, host);
    let mut model = subject.model(on.exactness.to_measure(), surroundings)?;
    let found =
        slmc_eval::perplexity(&mut *model, &text, on.windowing, &mut journal, host).map_err(failed)?;
    journal.finish();
    Ok(found)
}

/// The model in the engine; on the device where one is named.
fn measured_model(
    checkpoint: &Checkpoint,
    exactness: Exactness,
    surroundings: &Surroundings,
) -> Result<Box<dyn LanguageModel>, StageError> {
    match &surroundings.device {
        Some(device) if exactness.is_wished() => Err(StageError::Input(format!(
            "--exact and --cache are about the engine, --device {device} measures without it: give one of the two"
        ))),
        Some(_) => Ok(Box::new(evaluator_of(checkpoint, surroundings)?)),
        None => Ok(Box::new(engine_of(checkpoint, exactness)?)),
    }
}

/// The model in the engine, on as many threads as everything else uses.
pub(crate) fn engine_of(checkpoint: &Checkpoint, exactness: Exactness) -> Result<Engine, StageError> {
    Engine::load(checkpoint, exactness.options(rayon::current_num_threads()))
        .map_err(|e| StageError::Failed(e.to_string()))
}

/// The model on the device, ready to be asked.
pub fn evaluator_of(checkpoint: &Checkpoint, surroundings: &Surroundings) -> Result<Evaluator, StageError> {
    let device = open_device(surroundings)?;
    let decoder =
        Decoder::load(&*checkpoint.weights, &device).map_err(|e| StageError::Failed(e.to_string()))?;
    Ok(Evaluator::new(&decoder))
}

/// The text of a dataset, documents one after the other.
fn text_of(data: &str, surroundings: &Surroundings) -> Result<String, StageError> {
    let dataset = Dataset::open(data, surroundings)?;
    let texts: Result<Vec<&str>, StageError> =
        dataset.to_measure_on().into_iter().map(text_of_document).collect();
    Ok(texts?.join("\n"))
}

/// Where a baseline's predictions are kept.
#[derive(Clone, Copy, Debug)]
pub struct KeptBaseline<'a> {
    /// A folder: `KEY.base` holds what one baseline predicted on one text.
    pub folder: &'a Path,
    /// The baseline's hash.
    pub fingerprint: &'a str,
}

/// KL divergence of a model from a baseline on the text of a dataset. Where the baseline's predictions are kept, it runs but
/// once for any number of models; the figures are then within 1e-4 of those without.
pub fn divergence_of(
    subject: &Subject,
    baseline: &Subject,
    on: &OnText<'_>,
    kept: Option<KeptBaseline<'_>>,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Divergence, StageError> {
    let tokenizer = shared_tokenizer(subject, baseline)?;
    let failed = |error| eval_error(error, on.keeping);
    let text = EvalText::new(&tokenizer, &text_of(on.data, surroundings)?).map_err(failed)?;
    let what = if kept.is_some() { "KL divergence from what is kept" } else { "KL divergence" };
    let mut journal = on.journal(what, &text, surroundings, host);
    if let Some(KeptBaseline { folder, fingerprint }) = kept {
        let settings = format!("{:?} {:?} {:?}", on.windowing, on.exactness, surroundings.device);
        let parts = [fingerprint, &part_of_text(&text), &settings, env!("CARGO_PKG_VERSION")];
        let key = key_of(&parts);
        let mut load = || baseline.model(on.exactness.to_compare(), surroundings).map_err(Failed::Stage);
        let recorded = Baseline::kept(folder, &key, &text, on.windowing, &mut load, host);
        let recorded = recorded.map_err(|error| match error {
            Failed::Stage(error) => error,
            Failed::Evaluation(error) => eval_error(error, on.keeping),
        })?;
        let mut model = subject.model(on.exactness.to_compare(), surroundings)?;
        let paired =
            slmc_eval::compare_with_baseline(&mut *model, &recorded, &text, on.windowing, &mut journal, host);
        let found = Divergence::of(&paired.map_err(failed)?, on.windowing);
        journal.finish();
        return Ok(found);
    }
    let mut model = subject.model(on.exactness.to_compare(), surroundings)?;
    let mut base = baseline.model(on.exactness.to_compare(), surroundings)?;
    let found = slmc_eval::kl_divergence(&mut *model, &mut *base, &text, on.windowing, &mut journal, host)
        .map_err(failed)?;
    journal.finish();
    Ok(found)
}

/// A model beside a baseline on the text of a dataset, token by token.
pub fn paired_on_text(
    subject: &Subject,
    baseline: &Subject,
    on: &OnText<'_>,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Paired, StageError> {
    let tokenizer = shared_tokenizer(subject, baseline)?;
    let failed = |error| eval_error(error, on.keeping);
    let text = EvalText::new(&tokenizer, &text_of(on.data, surroundings)?).map_err(failed)?;
    let mut journal = on.journal("comparison", &text, surroundings, host);
    let mut model = subject.model(on.exactness.to_compare(), surroundings)?;
    let mut base = baseline.model(on.exactness.to_compare(), surroundings)?;
    let found = slmc_eval::compare_pair(&mut *model, &mut *base, &text, on.windowing, &mut journal, host)
        .map_err(failed)?;
    journal.finish();
    Ok(found)
}

/// The tokenizer of two models that are compared token by token.
fn shared_tokenizer(subject: &Subject, baseline: &Subject) -> Result<Tokenizer, StageError> {
    let tokenizer = subject.tokenizer()?;
    if !same_vocabulary(&tokenizer, &baseline.tokenizer()?) {
        let message =
            "the two models have different tokenizers: their distributions are about different tokens";
        return Err(StageError::Input(message.to_owned()));
    }
    Ok(tokenizer)
}

/// Why a baseline's predictions could not be had.
enum Failed {
    Stage(StageError),
    Evaluation(EvalError),
}

impl From<EvalError> for Failed {
    fn from(error: EvalError) -> Self {
        Self::Evaluation(error)
    }
}

fn eval_error(error: EvalError, keeping: Option<&Keeping>) -> StageError {
    match error {
        EvalError::Stopped { kept, .. } if keeping.is_some() => {
            let follows = if kept { KEPT } else { "nothing of it is kept: start it again" };
            StageError::Interrupted(format!("{error}; {follows}"))
        }
        EvalError::Stopped { .. } => StageError::Interrupted(error.to_string()),
        EvalError::Forward(_) | EvalError::NotFinite { .. } | EvalError::Row { .. } => {
            StageError::Failed(error.to_string())
        }
        _ => StageError::Input(error.to_string()),
    }
}
