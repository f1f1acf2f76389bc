//! Fewer bits a weight: by rounding to the nearest level of each block (RTN, the baseline to beat), or by GPTQ on the
//! formats' own grids, with a calibration set; in one format, or in the best mixture of formats under a size.

mod awq;
mod calibrate;
mod choice;
mod pack;
mod solved;
mod spill;
mod store;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use slmc_data::Split;
use slmc_interop::{Encoded, WriteOptions, Written, write_gguf};
use slmc_ir::{Checkpoint, Format, Lineage, Outline, Role, TensorKey, TokenId, WeightSource};
use slmc_model::Products;
use slmc_recipe::{Finished, QuantizeConfig, Rejection, Stage, StageContext, StageError};

use self::{
    calibrate::Passes,
    choice::{choose, mixed},
    solved::{Wanted, solve_all},
    spill::Spill,
    store::{Chosen, Solved, Store},
};
use crate::{
    Surroundings,
    calibration::{Dataset, pack as pack_tokens, sequences, tokenizer_of},
    open::outline_of,
    sample::{SampleSettings, sample_documents},
};

/// The quantize stage.
pub struct Quantize {
    config: QuantizeConfig,
    method: Method,
    goal: Goal,
    embedding_format: Format,
    around: Arc<Surroundings>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Each weight to the nearest level.
    Rtn,
    /// To the nearest, after channels that carry much were made larger.
    Awq,
    /// Errors made up for by the weights not rounded yet.
    Gptq,
}

/// What the result has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    /// All projections in one format.
    Format(Format),
    /// At most so many bytes, whatever the formats.
    FileBytes(u64),
    /// At most so many stored bits a weight.
    BitsPerWeight(f64),
}

impl Quantize {
    pub fn new(config: &QuantizeConfig, around: Arc<Surroundings>) -> Result<Self, String> {
        let method = match config.method.as_str() {
            "rtn" => Method::Rtn,
            "awq" => Method::Awq,
            "gptq" | "auto" => Method::Gptq,
            other => {
                return Err(format!("method `{other}` is not known: the methods are rtn, awq, gptq, auto"));
            }
        };
        let goal = match (&config.format, config.target_bytes, config.target_bpw) {
            (Some(format), None, None) => Goal::Format(writable(format)?),
            (None, Some(bytes), None) => Goal::FileBytes(bytes.saturating_sub(config.reserved_bytes)),
            (None, None, Some(bits)) if bits.is_finite() && bits > 0.0 => Goal::BitsPerWeight(bits),
            (None, None, None) => {
                return Err("say what to make: one of `format`, `target_bytes`, `target_bpw`".to_owned());
            }
            (None, None, Some(bits)) => return Err(format!("target_bpw = {bits}: bits must be above 0")),
            _ => return Err("only one of `format`, `target_bytes`, `target_bpw` can be given".to_owned()),
        };
        if matches!(method, Method::Rtn | Method::Awq) && !matches!(goal, Goal::Format(_)) {
            let method = &config.method;
            return Err(format!("method `{method}` does not choose formats under a size: use gptq or auto"));
        }
        if config.n_sequences == 0 || config.seq_len < 2 {
            return Err("calibration needs at least 1 sequence of 2 tokens".to_owned());
        }
        let embedding = config.embedding_format.as_deref().unwrap_or("q8_0");
        Ok(Self { config: config.clone(), method, goal, embedding_format: writable(embedding)?, around })
    }

    /// The format of every tensor when one is asked for, and what could not be as asked.
    fn assign(&self, input: &Outline, asked_for: Format) -> (BTreeMap<TensorKey, Format>, Vec<String>) {
        let mut fallbacks = Vec::new();
        let mut plan = BTreeMap::new();
        for &(key, stored) in &input.formats {
            let shape = key.shape(&input.spec);
            let asked = match key.role {
                _ if shape.len() != 2 => stored,
                Role::Embedding | Role::Head => self.embedding_format,
                _ => asked_for,
            };
            let n_columns = shape.last().copied().unwrap_or(1);
            let given = fitting(asked, n_columns);
            if given != asked {
                let block = asked.block_weights();
                fallbacks.push(format!(
                    "{key}: {given} instead of {asked}: rows of {n_columns} are not whole blocks of {block}"
                ));
            }
            plan.insert(key, given);
        }
        (plan, fallbacks)
    }
}

fn writable(name: &str) -> Result<Format, String> {
    let format: Format = name.parse().map_err(|e: slmc_ir::UnknownFormat| e.to_string())?;
    if slmc_blocks::can_encode(format) {
        return Ok(format);
    }
    let known: Vec<&str> =
        Format::ALL.into_iter().filter(|&f| slmc_blocks::can_encode(f)).map(Format::name).collect();
    Err(format!("format `{name}` can be read but not made yet: the formats are {}", known.join(" ")))
}

/// The format itself where rows are whole blocks of it; of those of 256, the nearest one of 32 with no fewer bits; else
/// f16.
fn fitting(format: Format, n_columns: usize) -> Format {
    let fits = |format: Format| n_columns.is_multiple_of(format.block_weights());
    let smaller = match format {
        Format::Q2K | Format::Q3K | Format::Q4K | Format::Iq4Xs => Format::Iq4Nl,
        Format::Q5K => Format::Q5_1,
        Format::Q6K => Format::Q8_0,
        other => other,
    };
    [format, smaller].into_iter().find(|&format| fits(format)).unwrap_or(Format::F16)
}

impl Stage for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to quantize".to_owned()))?;
        if self.method != Method::Rtn && !input.has_tokenizer {
            let message = "the model has no tokenizer: it cannot be calibrated; method rtn needs none";
            return Err(Rejection(message.to_owned()));
        }
        if self.config.seq_len > input.spec.context_len && self.method != Method::Rtn {
            let message = format!("seq_len = {} is more than the model's context", self.config.seq_len);
            return Err(Rejection(message));
        }
        // Under a size the formats are not known before they are measured: the smallest that are tried stand for them.
        let plan = match self.goal {
            Goal::Format(format) => self.assign(input, format).0,
            _ => input.formats.iter().map(|&(key, stored)| (key, smallest(key, stored, input))).collect(),
        };
        Ok(Outline { formats: plan.into_iter().collect(), ..input.clone() })
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to quantize".to_owned()))?;
        let outline = outline_of(&input).map_err(StageError::Failed)?;
        let packed_before = outline.formats.iter().filter(|(_, format)| !format.is_float()).count();
        if packed_before > 0 {
            context.host.warn(&format!(
                "{packed_before} tensors are packed already: they are decoded and rounded again"
            ));
        }
        match (self.method, self.goal) {
            (Method::Rtn, Goal::Format(format)) => self.round(&input, &outline, format, context),
            _ => self.solve(&input, &outline, context),
        }
    }
}

fn smallest(key: TensorKey, stored: Format, outline: &Outline) -> Format {
    let shape = key.shape(&outline.spec);
    if shape.len() == 2 { fitting(Format::Iq4Nl, shape[1]) } else { stored }
}

impl Quantize {
    /// Rounds to nearest.
    fn round(
        &self,
        input: &Checkpoint,
        outline: &Outline,
        format: Format,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let (plan, fallbacks) = self.assign(outline, format);
        warn_all(&fallbacks, context);
        let encoded =
            Encoded::new(Arc::clone(&input.weights), plan).map_err(|e| StageError::Failed(e.to_string()))?;
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let written = write(input, Arc::new(encoded), lineage, context)?;
        let report =
            json!({"method": "rtn", "file_bytes": written.file_bytes, "tensors": table(&written, None)});
        Ok(Finished { artefact: context.folder.join(ARTEFACT), report, fallbacks })
    }

    /// Solves on a calibration set.
    fn solve(
        &self,
        input: &Checkpoint,
        outline: &Outline,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let (mut wanted, fallbacks) = self.wanted(outline);
        self.check_size(outline, &wanted)?;
        let (sequences, counts) = self.calibration_set(input, context)?;
        warn_all(&fallbacks, context);
        let mut inner = Arc::clone(&input.weights);
        if let (Method::Awq, Goal::Format(format)) = (self.method, self.goal) {
            // What feeds embedding and head, or is fed by them, has nothing to be scaled back in.
            wanted.retain(|key, _| key.block.is_some());
            let mut plan = self.assign(outline, format).0;
            plan.retain(|key, _| key.block.is_none());
            inner = Arc::new(Encoded::new(inner, plan).map_err(|e| StageError::Failed(e.to_string()))?);
        }
        let store = Arc::new(Store::open(context.folder.join("solved"))?);
        let passes = Passes {
            checkpoint: input,
            sequences: &sequences,
            spill: Spill::create(context.folder.join("activations"))?,
            products: Products::Single,
            seed: context.seed,
            host: context.host,
        };
        let solved = solve_all(&passes, self.method, &wanted, &counts, self.config.damping, &store)?;
        drop(passes);
        let by_name: BTreeMap<String, Solved> =
            solved.into_iter().map(|solved| (solved.tensor.clone(), solved)).collect();
        let solved: BTreeMap<TensorKey, Solved> = wanted
            .keys()
            .filter_map(|key| by_name.get(&key.to_string()).map(|solved| (*key, solved.clone())))
            .collect();
        let material = Material { inner, solved, store };
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let (written, formats, kl) = self.write_best(input, outline, &material, &lineage, context)?;
        let report = json!({
            "method": self.config.method,
            "file_bytes": written.file_bytes,
            "estimated_kl": kl,
            "calibration_tokens": sequences.len() * self.config.seq_len,
            "tensors": table(&written, Some(Choices { solved: &material.solved, formats: &formats })),
        });
        let _ = std::fs::remove_dir_all(context.folder.join("solved"));
        Ok(Finished { artefact: context.folder.join(ARTEFACT), report, fallbacks })
    }

    /// That the smallest formats fit, before anything is computed.
    fn check_size(&self, outline: &Outline, wanted: &Wanted) -> Result<(), StageError> {
        let limit = match self.goal {
            Goal::Format(_) => return Ok(()),
            Goal::FileBytes(bytes) => bytes,
            Goal::BitsPerWeight(bits) => (bits * outline.spec.n_parameters() as f64 / 8.0) as u64,
        };
        let least = |&(key, stored): &(TensorKey, Format)| -> u64 {
            let n_weights = key.shape(&outline.spec).iter().product();
            let formats = wanted.get(&key).map_or(&[][..], Vec::as_slice);
            let bytes = |format: Format| format.bytes_for(n_weights).unwrap_or(usize::MAX) as u64;
            formats.iter().map(|&format| bytes(format)).min().unwrap_or_else(|| bytes(stored))
        };
        let least: u64 = outline.formats.iter().map(least).sum();
        if least <= limit {
            return Ok(());
        }
        Err(StageError::Input(format!(
            "the size that was asked for is too small: {:.1} MB, and the smallest formats that are tried take {:.1} MB",
            limit as f64 / 1e6,
            least as f64 / 1e6
        )))
    }

    /// What each tensor is solved in.
    fn wanted(&self, outline: &Outline) -> (Wanted, Vec<String>) {
        match self.goal {
            Goal::Format(format) => {
                let (plan, fallbacks) = self.assign(outline, format);
                let matrices = plan.into_iter().filter(|(key, _)| key.shape(&outline.spec).len() == 2);
                let packed = matrices.filter(|(_, format)| !format.is_float());
                (packed.map(|(key, format)| (key, vec![format])).collect(), fallbacks)
            }
            Goal::FileBytes(bytes) => {
                let bits = bytes as f64 * 8.0 / outline.spec.n_parameters() as f64;
                (mixed(outline, bits), Vec::new())
            }
            Goal::BitsPerWeight(bits) => (mixed(outline, bits), Vec::new()),
        }
    }

    /// Writes the best choice that keeps to the goal; what the file holds besides tensors is known once it is written.
    fn write_best(
        &self,
        input: &Checkpoint,
        outline: &Outline,
        Material { inner, solved, store }: &Material,
        lineage: &Lineage,
        context: &StageContext<'_>,
    ) -> Result<(Written, BTreeMap<TensorKey, Format>, f64), StageError> {
        let rest: u64 = outline.n_bytes() - outline_bytes(outline, solved);
        let n_weights = outline.spec.n_parameters() as f64;
        let (mut budget, limit) = match self.goal {
            Goal::Format(_) => (u64::MAX >> 16, u64::MAX),
            Goal::FileBytes(bytes) => (bytes.saturating_sub(rest), bytes),
            Goal::BitsPerWeight(bits) => (((bits * n_weights / 8.0) as u64).saturating_sub(rest), u64::MAX),
        };
        loop {
            let (formats, kl) = choose(solved, budget).ok_or_else(|| {
                let least: u64 = solved.values().filter_map(|s| s.candidates.iter().map(|c| c.n_bytes).min()).sum();
                StageError::Input(format!(
                    "the size that was asked for is too small: the smallest formats that are tried take {:.1} MB beside {:.1} MB \
                     of tokenizer and norms",
                    least as f64 / 1e6,
                    rest as f64 / 1e6
                ))
            })?;
            let mut kept = formats.clone();
            // Norms and biases that were scaled.
            let scaled = TensorKey::all(&outline.spec).into_iter().filter(|&key| store.has(key, Format::F32));
            kept.extend(scaled.map(|key| (key, Format::F32)));
            let chosen = Chosen { inner: Arc::clone(inner), store: Arc::clone(store), formats: kept };
            let written = write(input, Arc::new(chosen), lineage.clone(), context)?;
            if written.file_bytes <= limit {
                return Ok((written, formats, kl));
            }
            let excess = written.file_bytes - limit;
            if budget < excess {
                let message =
                    "the size that was asked for is too small for what the file holds beside its matrices";
                return Err(StageError::Input(message.to_owned()));
            }
            budget -= excess;
        }
    }

    /// Token sequences, and how often each token comes in the whole text.
    fn calibration_set(
        &self,
        input: &Checkpoint,
        context: &StageContext<'_>,
    ) -> Result<(Vec<Vec<TokenId>>, Vec<f64>), StageError> {
        let QuantizeConfig { n_sequences, seq_len, .. } = self.config;
        let mut counts = vec![0.0; input.spec().vocab_size];
        let mut count = |tokens: &[TokenId]| {
            for &token in tokens {
                if let Some(count) = counts.get_mut(token as usize) {
                    *count += 1.0;
                }
            }
        };
        if let Some(data) = &self.config.calibration {
            let dataset = Dataset::open(data, &self.around)?;
            let packed = pack_tokens(dataset.of(Split::Train), input, &tokenizer_of(input)?)?;
            count(packed.tokens());
            return Ok((sequences(data, n_sequences, seq_len, input, &self.around)?, counts));
        }
        context.host.warn("no calibration text is given: the model writes its own");
        let settings = SampleSettings {
            n_tokens: n_sequences * seq_len,
            document_len: seq_len,
            temperature: 1.0,
            seed: context.seed,
        };
        let documents = sample_documents(input, settings, context.host)?;
        let tokenizer = tokenizer_of(input)?;
        let mut tokens = Vec::new();
        for document in &documents {
            let ids = tokenizer.encode_document(document).map_err(|e| StageError::Failed(e.to_string()))?;
            tokens.extend(ids);
            tokens.extend(tokenizer.special().eos);
        }
        count(&tokens);
        let found: Vec<Vec<TokenId>> = tokens.chunks_exact(seq_len).map(<[TokenId]>::to_vec).collect();
        match found.is_empty() {
            true => Err(StageError::Failed("the model wrote too little text to calibrate on".to_owned())),
            false => Ok((found, counts)),
        }
    }
}

/// The artefact's name.
const ARTEFACT: &str = "model.gguf";

fn warn_all(fallbacks: &[String], context: &StageContext<'_>) {
    fallbacks.iter().for_each(|fallback| context.host.warn(fallback));
}

/// Bytes that the tensors to be solved take as they are.
fn outline_bytes(outline: &Outline, solved: &BTreeMap<TensorKey, Solved>) -> u64 {
    let those = outline.formats.iter().filter(|(key, _)| solved.contains_key(key));
    those
        .filter_map(|(key, format)| format.bytes_for(key.shape(&outline.spec).iter().product()))
        .map(|n| n as u64)
        .sum()
}

fn write(
    input: &Checkpoint,
    weights: Arc<dyn WeightSource>,
    lineage: Lineage,
    context: &StageContext<'_>,
) -> Result<Written, StageError> {
    let checkpoint = Checkpoint { lineage, ..input.with_weights(weights) };
    let artefact = context.folder.join(ARTEFACT);
    write_gguf(&checkpoint, &artefact, &WriteOptions::default(), context.host)
        .map_err(|e| StageError::Failed(e.to_string()))
}

/// What files are put together from.
struct Material {
    /// What is not solved.
    inner: Arc<dyn WeightSource>,
    solved: BTreeMap<TensorKey, Solved>,
    store: Arc<Store>,
}

/// What was solved, and the format that was taken of each.
#[derive(Clone, Copy)]
struct Choices<'a> {
    solved: &'a BTreeMap<TensorKey, Solved>,
    formats: &'a BTreeMap<TensorKey, Format>,
}

/// The report's line for each tensor.
fn table(written: &Written, choices: Option<Choices<'_>>) -> Vec<Value> {
    let line = |(key, format): &(TensorKey, Format)| {
        let mut line = json!({
            "tensor": key.to_string(),
            "format": format.name(),
            "bits_per_weight": format.bits_per_weight(),
        });
        let found = choices.and_then(|choices| {
            let solved = choices.solved.get(key)?;
            let candidate = solved.candidates.iter().find(|c| Some(&c.format) == choices.formats.get(key))?;
            Some((solved, candidate))
        });
        if let Some((solved, candidate)) = found {
            line["relative_error"] = json!(candidate.relative_error);
            line["estimated_kl"] = json!(candidate.kl);
            line["damping"] = json!(solved.damping);
            line["dead_channels"] = json!(solved.n_dead);
        }
        line
    };
    written.tensors.iter().map(line).collect()
}
