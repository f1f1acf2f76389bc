//! Fewer bits a weight: by rounding to the nearest level of each block (RTN, the baseline to beat), after scaling channels (AWQ), or by
//! GPTQ on the formats' own grids, with a calibration set; in one format, or in the best mixture of formats under a size.

mod auto;
mod awq;
mod best;
mod calibrate;
mod choice;
mod held_out;
mod integers;
mod order;
mod pack;
mod places;
mod scales;
mod scheme;
mod solved;
mod spill;
mod stage_of_scales;
mod store;
mod way;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde_json::{Value, json};
use slmc_interop::{Encoded, PackedLayout, WriteOptions, Written, in_first_order, write_gguf};
use slmc_ir::{Checkpoint, Format, Lineage, Outline, Role, TensorKey, TokenId, WeightSource};
use slmc_recipe::{Finished, QuantizeConfig, Rejection, Stage, StageContext, StageError};

pub(crate) use self::{
    auto::TRIED_SEQUENCES, calibrate::MOST_COUPLED_ROWS, integers::folder_scheme, stage_of_scales::Scale,
};
use self::{
    auto::{Chooser, Decision, is_held_out, n_held_out, with_formats},
    choice::mixed,
    held_out::HeldOut,
    scheme::Scheme,
    solved::Wanted,
    store::{Solved, Store},
    way::{Way, Work, spread},
};
use crate::{
    Surroundings,
    calibration::{Dataset, pack as pack_tokens, tokenizer_of},
    kept,
    open::outline_of,
    sample::{SampleSettings, sample_documents},
};

/// The quantize stage.
pub struct Quantize {
    config: QuantizeConfig,
    method: Method,
    goal: Goal,
    /// Of a Hugging Face folder with packed matrices.
    layout: Option<PackedLayout>,
    /// What embedding and head are asked to be; as they are when absent.
    embedding_format: Option<Format>,
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
    /// The best of these and of what they make together.
    Auto,
}

/// What the result has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    /// All projections in one format.
    Format(Format),
    /// All projections in whole levels with a scale for each group.
    Integers(Scheme),
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
            "gptq" => Method::Gptq,
            "auto" => Method::Auto,
            other => {
                return Err(format!("method `{other}` is not known: the methods are rtn, awq, gptq, auto"));
            }
        };
        let goal = match (&config.format, config.target_bytes, config.target_bpw) {
            (Some(format), None, None) => match Scheme::parse(format)? {
                Some(scheme) => Goal::Integers(scheme),
                None => Goal::Format(writable(format)?),
            },
            (None, Some(bytes), None) => Goal::FileBytes(bytes.saturating_sub(config.reserved_bytes)),
            (None, None, Some(bits)) if bits.is_finite() && bits > 0.0 => Goal::BitsPerWeight(bits),
            (None, None, None) => {
                return Err("say what to make: one of `format`, `target_bytes`, `target_bpw`".to_owned());
            }
            (None, None, Some(bits)) => return Err(format!("target_bpw = {bits}: bits must be above 0")),
            _ => return Err("only one of `format`, `target_bytes`, `target_bpw` can be given".to_owned()),
        };
        if let Some(minutes) = config.minutes {
            if method != Method::Auto {
                return Err("minutes: only method `auto` works to a time".to_owned());
            }
            if !(minutes.is_finite() && minutes > 0.0 && minutes < 1e6) {
                return Err(format!("minutes = {minutes}: a time must be above 0"));
            }
        }
        let layout = config.layout.as_deref().map(layout_of).transpose()?;
        if layout.is_some() && !matches!(goal, Goal::Integers(_)) {
            let message = "layout: Hugging Face folders hold schemes such as w4g128; other formats are written to a .gguf file";
            return Err(message.to_owned());
        }
        if matches!(method, Method::Rtn | Method::Awq)
            && matches!(goal, Goal::FileBytes(_) | Goal::BitsPerWeight(_))
        {
            let method = &config.method;
            return Err(format!("method `{method}` does not choose formats under a size: use gptq or auto"));
        }
        if let (true, Goal::Format(format)) = (method != Method::Rtn, goal)
            && format.is_float()
        {
            return Err(format!(
                "format `{format}`: nothing is to be calibrated where nothing is rounded: use rtn"
            ));
        }
        // Predictions of a sequence's later half are measured.
        if method == Method::Auto && config.seq_len < 8 {
            return Err(format!("seq_len = {}: method `auto` needs at least 8", config.seq_len));
        }
        if config.n_sequences == Some(0) || config.seq_len < 2 {
            return Err("calibration needs at least 1 sequence of 2 tokens".to_owned());
        }
        let embedding = match (&config.embedding_format, goal) {
            (Some(_), Goal::Integers(_)) => {
                return Err(
                    "embedding_format: beside a scheme embedding and head stay as they are".to_owned()
                );
            }
            (None, Goal::Integers(_)) => None,
            (asked, _) => Some(writable(asked.as_deref().unwrap_or("q8_0"))?),
        };
        Ok(Self { config: config.clone(), method, goal, layout, embedding_format: embedding, around })
    }

    /// The format of every tensor when one is asked for, and what could not be as asked.
    fn assign(&self, input: &Outline, asked_for: Format) -> (BTreeMap<TensorKey, Format>, Vec<String>) {
        let mut fallbacks = Vec::new();
        let mut plan = BTreeMap::new();
        for &(key, stored) in &input.formats {
            let shape = key.shape(&input.spec);
            let asked = match key.role {
                _ if shape.len() != 2 => stored,
                Role::Embedding | Role::Head => self.embedding_format.unwrap_or(stored),
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
    if format.is_stored() {
        return Ok(format);
    }
    let known: Vec<&str> = Format::stored().map(Format::name).collect();
    Err(format!("format `{name}`: no file holds it; the formats are {}", known.join(" ")))
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
        self.check_size(input, &self.wanted(input).0)?;
        // Under a size the formats are not known before they are measured: the smallest that are tried stand for them.
        let plan = match self.goal {
            Goal::Format(format) => self.assign(input, format).0,
            Goal::Integers(scheme) => Self::assign_scheme(input, scheme),
            _ => input.formats.iter().map(|&(key, stored)| (key, smallest(key, stored, input))).collect(),
        };
        Ok(Outline { formats: plan.into_iter().collect(), ..input.clone() })
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to quantize".to_owned()))?;
        // A scheme's folders are laid beside the model before.
        let input = if self.scheme().is_some() { in_first_order(&input) } else { input };
        let outline = outline_of(&input).map_err(StageError::Failed)?;
        let packed_before = outline.formats.iter().filter(|(_, format)| !format.is_float()).count();
        if packed_before > 0 {
            context.host.warn(&format!(
                "{packed_before} tensors are packed already: they are decoded and rounded again"
            ));
        }
        match (self.method, self.goal) {
            (Method::Rtn, Goal::Format(format)) => self.round(&input, &outline, format, context),
            (Method::Rtn, Goal::Integers(scheme)) => self.round_scheme(&input, &outline, scheme, context),
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
        let tensors = self.table(&written, &BTreeMap::new(), &BTreeMap::new());
        let report = json!({"method": "rtn", "file_bytes": written.file_bytes, "tensors": tensors});
        Ok(Finished { artefact: self.artefact(context), report, fallbacks })
    }

    /// Rounds by a calibration set.
    fn solve(
        &self,
        input: &Checkpoint,
        outline: &Outline,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let begun = context.host.elapsed();
        let (wanted, mut fallbacks) = self.wanted(outline);
        let floats = self.floats(outline, &wanted);
        let calibration = self.calibration_set(input, context)?;
        fallbacks.extend(calibration.shortage.clone());
        warn_all(&fallbacks, context);
        let is_measured = !calibration.held_out.is_empty();
        let held_out =
            is_measured.then(|| HeldOut::of(input, &calibration.held_out, context.host)).transpose()?;
        let mut trials = Vec::new();
        let mut decision = Decision { way: self.way(outline), n_sequences: calibration.sequences.len() };
        if self.method == Method::Auto {
            let chooser = Chooser {
                quantize: self,
                input,
                outline,
                wanted: &wanted,
                floats: &floats,
                calibration: &calibration,
                held_out: held_out.as_ref(),
                context,
                begun,
            };
            let (decided, record) = chooser.decide()?;
            warn_all(&record.left_out, context);
            fallbacks.extend(record.left_out);
            (decision, trials) = (decided, record.trials);
        }
        let Decision { way, n_sequences } = decision;
        let sequences = spread(&calibration.sequences, n_sequences);
        let store = Arc::new(Store::open(context.folder.join("solved"))?);
        let counts = &calibration.counts;
        let rounding = &self.rounding(&self.tried_formats(outline, &wanted));
        let (wanted, sequences, floats) = (&wanted, &sequences[..], &floats);
        let work = Work { input, wanted, rounding, floats, sequences, counts, store, context };
        let material = self.material(way, &work)?;
        let mut lineage = context.history(&input.lineage, self, &fallbacks);
        material.note_channels(&mut lineage);
        let (written, formats, kl) = self.write_best(outline, &material, &lineage, context)?;
        let made = with_formats(&material, formats.clone());
        let kld = held_out.map(|held_out| held_out.divergences(&made, context.host)).transpose()?;
        let trials = trials.iter().map(|trial| json!({"way": trial.way.name(), "kld": trial.kld()}));
        let is_calibrated = way.makes_up || way.scales;
        let report = json!({
            "method": self.config.method,
            "way": way.name(),
            "tried": trials.collect::<Vec<_>>(),
            "held_out_kld": kld.map(|klds| klds.iter().sum::<f64>() / klds.len() as f64),
            "file_bytes": written.file_bytes,
            "estimated_kl": is_calibrated.then_some(kl),
            "calibration_tokens": is_calibrated.then_some(sequences.len() * self.config.seq_len),
            "channels_reordered": material.order.is_some(),
            "channels_scaled": material.scales.is_some(),
            "tensors": self.table(&written, &material.solved, &formats),
        });
        // Under another name first: half of it would be taken for all.
        let (solved, done) = (context.folder.join("solved"), context.folder.join("solved.done"));
        let _ = std::fs::remove_dir_all(&done);
        let _ = std::fs::rename(solved, &done).and_then(|()| std::fs::remove_dir_all(&done));
        Ok(Finished { artefact: self.artefact(context), report, fallbacks })
    }

    /// What is stored in another float format: matrices that no packed one was found for, as they were where nothing is said of them.
    fn floats(&self, outline: &Outline, wanted: &Wanted) -> BTreeMap<TensorKey, Format> {
        let mut plan: BTreeMap<TensorKey, Format> = match self.goal {
            Goal::Format(format) => self.assign(outline, format).0,
            _ => outline.formats.iter().copied().collect(),
        };
        let is_matrix = |key: TensorKey| key.shape(&outline.spec).len() == 2;
        plan.retain(|key, format| format.is_float() && is_matrix(*key) && !wanted.contains_key(key));
        plan
    }

    /// What a method does to weights and channels; `auto` where nothing else is better.
    fn way(&self, outline: &Outline) -> Way {
        let is_awq = self.method == Method::Awq;
        Way { scales: is_awq, reorders: !is_awq && self.reorders(outline), makes_up: !is_awq }
    }

    /// Whether channels are brought beside their like first: what formats of blocks gain by. Groups of a scheme are wider, and
    /// its folders are read beside others of the same model, adapters for one.
    fn reorders(&self, input: &Outline) -> bool {
        // Packed rows would have to be decoded, those of matrices that stay as they are, too.
        let is_float = input.formats.iter().all(|(_, format)| format.is_float());
        let in_blocks = match self.goal {
            Goal::Format(format) => !format.is_float(),
            Goal::Integers(_) => false,
            Goal::FileBytes(_) | Goal::BitsPerWeight(_) => true,
        };
        self.config.reorder && matches!(self.method, Method::Gptq | Method::Auto) && is_float && in_blocks
    }

    /// What each tensor is solved in.
    fn wanted(&self, outline: &Outline) -> (Wanted, Vec<String>) {
        let one_each = |packed: BTreeMap<TensorKey, Format>| -> Wanted {
            packed.into_iter().map(|(key, format)| (key, vec![format])).collect()
        };
        match self.goal {
            Goal::Format(format) => {
                let (mut plan, fallbacks) = self.assign(outline, format);
                plan.retain(|key, format| key.shape(&outline.spec).len() == 2 && !format.is_float());
                (one_each(plan), fallbacks)
            }
            Goal::Integers(scheme) => {
                let (packed, fallbacks) = Self::packed_by(outline, scheme);
                (one_each(packed), fallbacks)
            }
            Goal::FileBytes(bytes) => {
                let bits = bytes as f64 * 8.0 / outline.spec.n_parameters() as f64;
                (mixed(outline, bits), Vec::new())
            }
            Goal::BitsPerWeight(bits) => (mixed(outline, bits), Vec::new()),
        }
    }

    /// From the text that is given, or from one that the model writes; for `auto` some of it is kept aside.
    fn calibration_set(
        &self,
        input: &Checkpoint,
        context: &StageContext<'_>,
    ) -> Result<Calibration, StageError> {
        let QuantizeConfig { n_sequences, seq_len, .. } = self.config;
        let is_auto = self.method == Method::Auto;
        let wanted = self.config.sequences();
        let (packed, written);
        let tokens = match &self.config.calibration {
            Some(data) => {
                let dataset = Dataset::open(data, &self.around)?;
                packed = pack_tokens(dataset.to_calibrate_on().into_iter(), input, &tokenizer_of(input)?)?;
                packed.tokens()
            }
            None => {
                context.host.warn("no calibration text is given: the model writes its own");
                let settings = SampleSettings {
                    n_tokens: (wanted + if is_auto { n_held_out(usize::MAX, None) } else { 0 }) * seq_len,
                    document_len: seq_len,
                    temperature: 1.0,
                    seed: context.seed,
                    at_most: None,
                };
                written = sample_documents(input, settings, context.host)?.tokens;
                &written
            }
        };
        let mut counts = vec![0.0; input.spec().vocab_size];
        for &token in tokens {
            if let Some(count) = counts.get_mut(token as usize) {
                *count += 1.0;
            }
        }
        let n_windows = tokens.len() / seq_len;
        let aside = if is_auto { n_held_out(n_windows, n_sequences) } else { 0 };
        // Indices: a text may be far longer than what is calibrated on.
        let (held_out, rest): (Vec<usize>, Vec<usize>) =
            (0..n_windows).partition(|&index| is_held_out(index, n_windows, aside));
        let window = |index: usize| tokens[index * seq_len..(index + 1) * seq_len].to_vec();
        let (there, data) =
            (rest.len(), self.config.calibration.as_deref().unwrap_or("the model's own text"));
        let is_asked_for = n_sequences.is_some_and(|_| self.config.calibration.is_some());
        if there == 0 || is_asked_for && there < wanted {
            let n_tokens = tokens.len();
            return Err(StageError::Input(format!(
                "{data}: {n_tokens} tokens are not {wanted} sequences of {seq_len}"
            )));
        }
        let is_short = self.config.calibration.is_some() && there < wanted;
        let shortage =
            is_short.then(|| format!("calibration on {there} sequences of {seq_len}: the text has no more"));
        let n = wanted.min(there);
        let sequences = (0..n).map(|i| window(rest[i * there / n])).collect();
        Ok(Calibration { sequences, held_out: held_out.into_iter().map(window).collect(), counts, shortage })
    }
}

/// The artefact's name: a file's, and that of a Hugging Face folder.
const ARTEFACT: &str = "model.gguf";
const FOLDER: &str = "model";

fn layout_of(name: &str) -> Result<PackedLayout, String> {
    PackedLayout::ALL.into_iter().find(|layout| layout.name() == name).ok_or_else(|| {
        let names: Vec<&str> = PackedLayout::ALL.into_iter().map(PackedLayout::name).collect();
        format!("layout `{name}` is not known: the layouts are {}", names.join(" "))
    })
}

/// Removes a result that an earlier sitting had written when it was stopped on the way to the next stage.
fn remove_left(folder: &Path) -> Result<(), StageError> {
    match folder.is_dir() {
        true => std::fs::remove_dir_all(folder).map_err(|e| kept::failed(folder, e)),
        false => Ok(()),
    }
}

fn warn_all(fallbacks: &[String], context: &StageContext<'_>) {
    slmc_recipe::summarized(fallbacks).iter().for_each(|fallback| context.host.warn(fallback));
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

/// What a model is calibrated on.
struct Calibration {
    sequences: Vec<Vec<TokenId>>,
    /// What is kept aside, to measure on.
    held_out: Vec<Vec<TokenId>>,
    /// How often each token comes in the whole text.
    counts: Vec<f64>,
    /// That there is less of it than is usual.
    shortage: Option<String>,
}

impl Quantize {
    fn scheme(&self) -> Option<Scheme> {
        match self.goal {
            Goal::Integers(scheme) => Some(scheme),
            _ => None,
        }
    }

    /// The report's line for each tensor; `formats` are those of the tensors that were solved or rounded to a scheme.
    fn table(
        &self,
        written: &Written,
        solved: &BTreeMap<TensorKey, Solved>,
        formats: &BTreeMap<TensorKey, Format>,
    ) -> Vec<Value> {
        let scheme_of = |key: &TensorKey| self.scheme().filter(|_| formats.contains_key(key));
        let line = |key: TensorKey, format: Format| {
            let (name, bits_per_weight) = match scheme_of(&key) {
                Some(scheme) => (scheme.name(), scheme.bits_per_weight()),
                None => (format.name().to_owned(), format.bits_per_weight()),
            };
            let tensor = key.to_string();
            let mut line = json!({"tensor": tensor, "format": name, "bits_per_weight": bits_per_weight});
            let found = solved.get(&key).and_then(|solved| {
                let candidate = solved.candidates.iter().find(|c| Some(&c.format) == formats.get(&key))?;
                Some((solved, candidate))
            });
            if let Some((solved, candidate)) = found {
                line["relative_error"] = json!(candidate.relative_error);
                if let Some(kl) = candidate.kl {
                    line["estimated_kl"] = json!(kl);
                    line["inputs_kl"] = json!(candidate.inputs_kl);
                    line["damping"] = json!(solved.damping);
                    line["dead_channels"] = json!(solved.n_dead);
                    line["couples_rows"] = json!(solved.couples_rows);
                }
            }
            line
        };
        // A folder lists packed matrices among no formats.
        let others = written.tensors.iter().filter(|(key, _)| scheme_of(key).is_none());
        let packed = formats.iter().filter(|(key, _)| scheme_of(key).is_some());
        let others = others.map(|&(key, format)| line(key, format));
        others.chain(packed.map(|(&key, &format)| line(key, format))).collect()
    }
}
