//! The lora stage: an adapter beside the frozen model, by the one training loop; merged at its end.

mod data;
mod merge;
mod paired;

use std::sync::Arc;

use serde_json::json;
use slmc_data::Batch;
use slmc_interop::{AdapterAbout, WriteOptions, roles_of_targets, write_adapter_folder, write_hf_folder};
use slmc_ir::{Adapter, Channels, Checkpoint, Format, Outline, Part, Role, TensorKey, Weight};
use slmc_model::{Frozen, Products, fresh_adapter};
use slmc_recipe::{Finished, LoraConfig, Rejection, Stage, StageContext, StageError};
use slmc_train::{AdapterInputs, Outcome, Precision, TrainSettings, train_adapter};

pub use data::{Preview, held_out_batches, preview};
pub use merge::{MergeReport, merge_adapter};

use self::{data::LoraData, paired::Paired};
use crate::{
    Surroundings,
    open::outline_of,
    training::{check_stopped, float_of, loop_settings, precision_of},
};

/// Positions of a batch that are learned from.
fn n_targets(batch: &Batch) -> u64 {
    match &batch.loss_mask {
        Some(mask) => mask.iter().filter(|&&counts| counts).count() as u64,
        None => batch.targets.len() as u64,
    }
}

/// The lora stage.
pub struct Lora {
    config: LoraConfig,
    roles: Vec<Role>,
    base_format: Option<Format>,
    around: Arc<Surroundings>,
}

impl Lora {
    pub fn new(config: LoraConfig, around: Arc<Surroundings>) -> Result<Self, String> {
        config.train.budget()?;
        precision_of(&config.train)?;
        let roles = roles_of_targets(&config.target)?;
        let base_format = config.base_format.as_deref().map(base_format).transpose()?;
        if !(1..=4096).contains(&config.rank) {
            return Err(format!("rank = {}: a rank is 1 to 4096", config.rank));
        }
        if !config.alpha.is_finite() || config.alpha == 0.0 {
            return Err(format!("alpha = {}: it is a finite number other than 0", config.alpha));
        }
        if around.device.as_deref().is_some_and(|device| device != "flex") {
            return Err("adapters learn on the CPU alone: leave --device out".to_owned());
        }
        Ok(Self { config, roles, base_format, around })
    }

    fn settings(
        &self,
        input: &Checkpoint,
        fallbacks: &mut Vec<String>,
        context: &StageContext<'_>,
    ) -> TrainSettings {
        // Proved when the stage was made.
        let asked = precision_of(&self.config.train).unwrap_or_default();
        let precision = if Products::half().is_some() { asked } else { Precision::F32 };
        if asked != precision {
            let message = "products are computed in f32 instead of bf16: this CPU has no units for it (AMX)";
            context.host.warn(message);
            fallbacks.push(message.to_owned());
        }
        let mut settings = loop_settings(&self.config.train, precision, None, context.seed);
        // Whoever asks for 4 bits, or brings them, is short of memory: half of what blocks keep is computed again.
        settings.recompute |= self.base_format.is_some() || is_packed(input);
        settings
    }
}

/// Whether a matrix of a block is stored in blocks of levels.
fn is_packed(checkpoint: &Checkpoint) -> bool {
    let weights = &checkpoint.weights;
    let matrices = weights.keys().iter().filter(|key| key.block.is_some() && key.role.is_matrix());
    matrices.filter_map(|&key| weights.format(key).ok()).any(|format| !format.is_float())
}

/// The packed format of a frozen base.
fn base_format(name: &str) -> Result<Format, String> {
    name.parse().ok().filter(|format: &Format| !format.is_float()).ok_or_else(|| {
        format!("base_format = \"{name}\": a frozen base is rounded to q4_0, iq4_nl or nf4 (or another packed format)")
    })
}

impl Stage for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to adapt".to_owned()))?;
        if !input.has_tokenizer {
            return Err(Rejection("the model has no tokenizer: text cannot be read with it".to_owned()));
        }
        if self.config.train.seq_len > input.spec.context_len {
            let (seq_len, context_len) = (self.config.train.seq_len, input.spec.context_len);
            return Err(Rejection(format!(
                "seq_len = {seq_len} is more than the model's context of {context_len}"
            )));
        }
        if let Some(format) = self.base_format {
            let is_projection =
                |key: &TensorKey| Adapter::ROLES.contains(&key.role) && key.part == Part::Weight;
            for key in TensorKey::all(&input.spec).into_iter().filter(is_projection) {
                Weight::bytes_for(&key.shape(&input.spec), format)
                    .map_err(|e| Rejection(format!("base_format = \"{format}\": {key}: {e}")))?;
            }
        }
        Ok(Outline::of(input.spec.clone(), float_of(input), true))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to adapt".to_owned()))?;
        let failed = |e: String| StageError::Failed(e);
        let mut fallbacks = Vec::new();
        let settings = self.settings(&input, &mut fallbacks, context);
        let data = LoraData::open(&self.config.train, &input, &self.around, context.seed)?;
        for message in data_notes(&data) {
            context.host.warn(&message);
            fallbacks.push(message);
        }
        let products = if settings.precision == Precision::Bf16 { Products::half() } else { None };
        let base = Frozen::load(&*input.weights, self.base_format).map_err(|e| failed(e.to_string()))?;
        let base = base.with_products(products.unwrap_or_default());
        let LoraConfig { rank, alpha, .. } = self.config;
        let inputs = AdapterInputs {
            base: &base,
            adapter: fresh_adapter(base.spec(), &self.roles, rank, alpha, context.seed),
            train: &data.train,
            eval: &data.held_out,
            run_dir: context.folder,
            // The runner gives each set of settings and inputs a folder of its own.
            inputs_hash: String::new(),
        };
        let outcome = train_adapter(inputs, &settings, context.host).map_err(|e| failed(e.to_string()))?;
        check_stopped(&outcome, context, &mut fallbacks)?;
        let before = merge::losses(&base, None, &data.held_out);
        let after = merge::losses(&base, Some(&outcome.student), &data.held_out);
        drop(base);
        self.finish(&input, &outcome, &data, Paired::of(&before, &after), fallbacks, context)
    }
}

/// What was done to the data other than learned from.
fn data_notes(data: &LoraData) -> Vec<String> {
    let counts = data.counts;
    let mut notes = Vec::new();
    if counts.truncated > 0 {
        notes.push(format!(
            "{} of {} documents are longer than seq_len and were cut, {} tokens in all",
            counts.truncated, counts.documents, counts.tokens_cut
        ));
    }
    if counts.left_out > 0 {
        notes.push(format!("{} documents were left out: nothing of them is learnt from", counts.left_out));
    }
    if data.held_out.is_empty() {
        notes.push("the data holds out too little for evaluations: there are none".to_owned());
    }
    notes
}

impl Lora {
    /// Leaves the adapter, and the model with the adapter merged into it.
    fn finish(
        &self,
        input: &Checkpoint,
        outcome: &Outcome<Adapter>,
        data: &LoraData,
        held_out: Option<Paired>,
        fallbacks: Vec<String>,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let failed = |e: String| StageError::Failed(e);
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let base = context.inputs.iter().find(|input| input.role == "model").map(|input| input.path.clone());
        let about = AdapterAbout { base, base_format: self.base_format, lineage: lineage.clone() };
        let (folder, artefact) = (context.folder.join("adapter"), context.folder.join("model"));
        for left in [&folder, &artefact].into_iter().filter(|left| left.is_dir()) {
            // Of a run that was broken off right here.
            std::fs::remove_dir_all(left).map_err(|e| failed(e.to_string()))?;
        }
        // As a folder of the model takes it.
        let spec = input.spec();
        let channels = Channels::of(&input.lineage, spec);
        let channels = channels.in_first_order().relative_to(&channels);
        let adapter = outcome.student.with_channels(&channels, spec);
        write_adapter_folder(&adapter, &about, &folder).map_err(|e| failed(e.to_string()))?;
        // Beside a base as it is stored there is one way to merge, and the adapter has been measured already.
        let held_out_rows = if self.base_format.is_some() { &data.held_out[..] } else { &[] };
        let (merged, merge) = merge_adapter(input, &outcome.student, &about, held_out_rows)?;
        let float = float_of(&outline_of(input).map_err(StageError::Failed)?);
        let options = WriteOptions { float: Some(float), ..WriteOptions::default() };
        write_hf_folder(&Checkpoint { lineage, ..merged }, &artefact, &options, context.host)
            .map_err(|e| failed(e.to_string()))?;
        // All is there: what training would resume from is of no more use.
        std::fs::remove_dir_all(context.folder.join("checkpoints")).map_err(|e| failed(e.to_string()))?;
        let report = json!({
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "training_seconds": outcome.seconds,
            "adapter_parameters": outcome.student.n_parameters(),
            "rank": outcome.student.rank,
            "alpha": outcome.student.alpha,
            "data": data.counts,
            "final_loss": outcome.final_loss,
            "held_out": held_out,
            "merge": merge,
        });
        Ok(Finished { artefact, report, fallbacks })
    }
}
