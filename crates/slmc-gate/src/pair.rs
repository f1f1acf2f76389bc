//! The model and its baseline, opened, known by their hashes, and loaded into the engine only when they must run.

use std::{cell::OnceCell, collections::BTreeMap, sync::Arc, thread};

use slmc_data::{Documents, Split, Tokenizer, sha256_bytes};
use slmc_engine::{Engine, EngineOptions, stop_tokens};
use slmc_eval::{
    Baseline, EvalText, Journal, Paired, Windowing, compare_with_baseline, key_of,
    tasks::{Asked, TaskResult, run_task},
};
use slmc_interop::with_channels_of;
use slmc_ir::{Checkpoint, LanguageModel, TokenId};

use crate::{
    Cache, DataSection, GateError, Opened, Request, SessionModel, config::TaskBound, task_source::locate_task,
};

/// Longest sequence of a task's item that room is made for, in tokens.
const TASK_CONTEXT: usize = 2048;

/// The two models and what is known of them.
pub(crate) struct Pair<'a> {
    pub request: &'a Request<'a>,
    pub model: Opened,
    pub baseline: Opened,
    pub model_sha256: String,
    pub baseline_sha256: String,
    pub tokenizer: Tokenizer,
    pub tokenizer_sha256: String,
    pub cache: Cache,
    exact: bool,
    model_engine: OnceCell<Engine>,
}

/// The text, its tokens, and what its predictions follow from.
pub(crate) struct GateText {
    pub text: EvalText,
    pub windowing: Windowing,
    pub sha256: String,
}

impl<'a> Pair<'a> {
    pub fn open(request: &'a Request<'a>, cache: Cache, exact: bool) -> Result<Self, GateError> {
        let open = |path: &str| (request.open)(path).map_err(GateError::Input);
        let (model, baseline) = (open(request.model)?, open(request.baseline)?);
        let (model_sha256, baseline_sha256) = thread::scope(|scope| {
            let other = scope.spawn(|| hash(&baseline));
            (hash(&model), other.join().unwrap_or_else(|_| hash(&baseline)))
        });
        let files = model.checkpoint.tokenizer.as_ref();
        let files = files
            .ok_or_else(|| GateError::input("the model has no tokenizer: text cannot be read with it"))?;
        let tokenizer = Tokenizer::from_files(files).map_err(|e| GateError::input(e.to_string()))?;
        let tokenizer_sha256 = vocabulary_hash(&tokenizer);
        if let Some(files) = &baseline.checkpoint.tokenizer {
            let other = Tokenizer::from_files(files).map_err(|e| GateError::input(e.to_string()))?;
            if vocabulary_hash(&other) != tokenizer_sha256 {
                return Err(GateError::input(
                    "model and baseline have different tokenizers: their predictions are about different tokens",
                ));
            }
        }
        Ok(Self {
            request,
            model_sha256: model_sha256?,
            baseline_sha256: baseline_sha256?,
            model,
            baseline,
            tokenizer,
            tokenizer_sha256,
            cache,
            exact,
            model_engine: OnceCell::new(),
        })
    }

    /// The baseline with its channels as the model's have become since: tensor lies beside tensor.
    pub fn baseline_beside_model(&self) -> Checkpoint {
        with_channels_of(&self.baseline.checkpoint, &self.model.checkpoint)
    }

    pub fn options(&self) -> EngineOptions {
        let n_threads = self.request.n_threads;
        if self.exact { EngineOptions::exact(n_threads) } else { EngineOptions::alike(n_threads) }
    }

    /// The model in the engine; loaded once.
    pub fn model_engine(&self) -> Result<&Engine, GateError> {
        if let Some(engine) = self.model_engine.get() {
            return Ok(engine);
        }
        let engine = Engine::load(&self.model.checkpoint, self.options())?;
        Ok(self.model_engine.get_or_init(|| engine))
    }

    /// The baseline in the engine, on the model's threads.
    pub fn baseline_engine(&self) -> Result<Engine, GateError> {
        let team = self.model_engine()?.team();
        Ok(Engine::load_with(&self.baseline.checkpoint, self.options(), Arc::clone(team))?)
    }

    /// A checkpoint that takes turns with the model.
    pub fn engine_of(&self, checkpoint: &Checkpoint) -> Result<Engine, GateError> {
        let team = self.model_engine()?.team();
        Ok(Engine::load_with(checkpoint, self.options(), Arc::clone(team))?)
    }

    /// The gate's text in the model's tokens.
    pub fn text(&self, data: &DataSection) -> Result<GateText, GateError> {
        let content = text_of(&data.path, self.request)?;
        let text = EvalText::new(&self.tokenizer, &content)?;
        let windowing = Windowing::llama(data.ctx, data.chunks);
        Ok(GateText { text, windowing, sha256: sha256_bytes(content.as_bytes()) })
    }

    fn key(&self, parts: &[&str]) -> String {
        let exact = if self.exact { "exact" } else { "fast" };
        let common =
            [&*self.baseline_sha256, &self.tokenizer_sha256, release_line(self.request.version), exact];
        key_of(&[&common[..], parts].concat())
    }

    /// The recorded predictions of the baseline.
    pub fn recorded(&self, text: &GateText) -> Result<Baseline, GateError> {
        let (ctx, chunks) = (text.windowing.ctx.to_string(), format!("{:?}", text.windowing.chunks));
        let key = self.key(&["text", &text.sha256, &ctx, &chunks]);
        let mut load =
            || -> Result<Box<dyn LanguageModel>, GateError> { Ok(Box::new(self.baseline_engine()?)) };
        let folder = self.cache.folder();
        Baseline::kept(folder, &key, &text.text, text.windowing, &mut load, self.request.host)
    }

    /// Both models on the text.
    pub fn on_text(&self, text: &GateText, recorded: &Baseline) -> Result<Paired, GateError> {
        let engine = self.model_engine()?;
        let mut model = SessionModel::new(engine, text.windowing.ctx)?;
        Ok(compare_with_baseline(
            &mut model,
            recorded,
            &text.text,
            text.windowing,
            &mut Journal::none(),
            self.request.host,
        )?)
    }

    /// Both models on a task: the model's results, the baseline's, and the task's hash.
    pub fn on_task(
        &self,
        name: &str,
        bound: &TaskBound,
    ) -> Result<(TaskResult, TaskResult, String), GateError> {
        let mut located = locate_task(bound.file.as_deref().unwrap_or(name), self.request.data_root)?;
        if let Some(metric) = bound.metric {
            located.task.metric = metric;
        }
        let hash = located.hash(bound.limit)?;
        let key = self.key(&["task", &hash]);
        let host = self.request.host;
        let items = located.read(bound.limit)?;
        let run = |engine: &Engine, checkpoint: &Checkpoint| -> Result<TaskResult, GateError> {
            let mut model = SessionModel::new(engine, TASK_CONTEXT.min(engine.spec().context_len))?;
            let ends = stop_tokens(checkpoint);
            let mut asked = Asked { model: &mut model, tokenizer: &self.tokenizer, ends: &ends };
            Ok(run_task(&located.task, &items, &mut asked, &mut Journal::none(), host)?)
        };
        let base = match self.cache.task(&key, host) {
            Some(result) => result,
            None => {
                let result = run(&self.baseline_engine()?, &self.baseline.checkpoint)?;
                self.cache.keep_task(&key, &result)?;
                result
            }
        };
        Ok((run(self.model_engine()?, &self.model.checkpoint)?, base, hash))
    }

    /// What a comparison rests on: see the lock file.
    pub fn pinned(&self, data: Option<(&DataSection, &GateText)>) -> BTreeMap<String, String> {
        let mut pinned = BTreeMap::from([
            ("baseline".to_owned(), self.baseline_sha256.clone()),
            ("tokenizer".to_owned(), self.tokenizer_sha256.clone()),
            ("slmc_version".to_owned(), self.request.version.to_owned()),
        ]);
        if let Some((section, text)) = data {
            pinned.insert("data".to_owned(), text.sha256.clone());
            pinned.insert("ctx".to_owned(), section.ctx.to_string());
            pinned.insert("chunks".to_owned(), section.chunks.map_or("all".to_owned(), |n| n.to_string()));
            pinned.insert("exact".to_owned(), section.exact.to_string());
        }
        pinned
    }
}

fn hash(opened: &Opened) -> Result<String, GateError> {
    slmc_interop::fingerprint(&opened.artefact).map_err(|e| GateError::Input(e.to_string()))
}

/// A patch release changes no figure: major and minor version alone decide whether predictions are good.
fn release_line(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(minor, _)| minor)
}

/// What a tokenizer's ids mean. Two files may say the same in different words (a GGUF's vocabulary, a `tokenizer.json`).
fn vocabulary_hash(tokenizer: &Tokenizer) -> String {
    let mut text = String::new();
    for id in 0..tokenizer.vocab_size() {
        text.push_str(&tokenizer.token_content(id as TokenId).unwrap_or_default());
        text.push('\n');
    }
    let special = tokenizer.special();
    text.push_str(&format!("{:?} {}", special.bos.filter(|_| special.add_bos), special.add_bos));
    sha256_bytes(text.as_bytes())
}

/// The text of a dataset: what it holds out for tests, all of it where it holds out nothing; documents one after the other.
fn text_of(path: &str, request: &Request<'_>) -> Result<String, GateError> {
    let input = |e: slmc_data::DataError| GateError::Input(e.to_string());
    let documents = Documents::open(std::path::Path::new(path), request.data_root).map_err(input)?;
    let documents: Vec<_> = documents.iter().collect::<Result<_, _>>().map_err(input)?;
    let has_tests = documents.iter().any(|document| document.split == Some(Split::Test));
    let wanted = documents.iter().filter(|d| !has_tests || d.split == Some(Split::Test));
    let text = |document: &slmc_data::Document| match &document.content {
        slmc_data::Content::Text(text) => Ok(text.clone()),
        _ => Err(GateError::Input(format!("{}: plain text is needed here, not a chat", document.id))),
    };
    Ok(wanted.map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}
