//! The train and distill stages: one loop, with or without a teacher.

use std::sync::Arc;

use serde_json::json;
use slmc_data::{Batches, PackedTokens, Split};
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{Checkpoint, Format, Outline};
use slmc_model::Decoder;
use slmc_recipe::{Budget, DistillConfig, Finished, Rejection, Stage, StageContext, StageError, TrainConfig};
use slmc_train::{DistillSettings, Stopped, TrainInputs, TrainSettings, train};

use crate::{
    Surroundings,
    calibration::{Dataset, pack, same_vocabulary, tokenizer_of},
    open::{open_device, open_model, outline_of},
};

/// The train stage, and with a teacher the distill stage.
pub struct Training {
    config: TrainConfig,
    teaching: Option<Teaching>,
    around: Arc<Surroundings>,
}

struct Teaching {
    /// The recipe's own model when absent.
    teacher: Option<String>,
    settings: DistillSettings,
}

impl Training {
    pub fn plain(config: TrainConfig, around: Arc<Surroundings>) -> Result<Self, String> {
        config.budget()?;
        Ok(Self { config, teaching: None, around })
    }

    pub fn distill(config: DistillConfig, around: Arc<Surroundings>) -> Result<Self, String> {
        config.train.budget()?;
        if !(0.0..=1.0).contains(&config.alpha) {
            return Err(format!("alpha = {}: the teacher's weight is between 0 and 1", config.alpha));
        }
        if !(config.temperature > 0.0 && config.temperature.is_finite()) {
            return Err(format!("temperature = {}: must be above 0", config.temperature));
        }
        if !(config.hidden_weight >= 0.0 && config.hidden_weight.is_finite()) {
            return Err(format!("hidden_weight = {}: must be 0 or more", config.hidden_weight));
        }
        let DistillConfig { temperature, alpha, hidden_weight, .. } = config;
        let settings = DistillSettings { temperature, alpha, hidden_weight };
        Ok(Self {
            teaching: Some(Teaching { teacher: config.teacher, settings }),
            config: config.train,
            around,
        })
    }
}

impl Training {
    fn settings(&self, seed: u64) -> TrainSettings {
        let config = &self.config;
        let budget = match config.budget() {
            Ok(Budget::Minutes(minutes)) => slmc_train::Budget::Minutes(minutes),
            Ok(Budget::Tokens(tokens)) => slmc_train::Budget::Tokens(tokens),
            Ok(Budget::Steps(steps)) => slmc_train::Budget::Steps(steps),
            // Proved when the stage was made.
            Err(_) => slmc_train::Budget::Steps(0),
        };
        TrainSettings {
            budget,
            batch_size: config.batch_size,
            seq_len: config.seq_len,
            accumulate: config.accumulate,
            learning_rate: config.learning_rate,
            final_learning_rate: Some(config.learning_rate * config.final_learning_rate_share),
            warmup_steps: config.warmup_steps,
            weight_decay: config.weight_decay,
            clip_norm: config.clip_norm,
            eval_every: config.eval_every,
            checkpoint_every: config.checkpoint_every,
            seed,
            recompute: config.recompute,
            freeze_embedding: config.freeze_embedding,
            distill: self.teaching.as_ref().map(|teaching| teaching.settings),
            ..TrainSettings::default()
        }
    }

    /// Training batches, and the fixed ones that are held out.
    fn batches(&self, input: &Checkpoint, seed: u64) -> Result<(Batches, Option<Batches>), StageError> {
        let TrainConfig { data, eval_data, seq_len, batch_size, .. } = &self.config;
        let tokenizer = tokenizer_of(input)?;
        let dataset = Dataset::open(data, &self.around)?;
        let batches = |tokens: PackedTokens, seed| {
            Batches::new(Arc::new(tokens), *seq_len, *batch_size, seed)
                .map_err(|e| StageError::Input(e.to_string()))
        };
        let train = batches(pack(dataset.of(Split::Train), input, &tokenizer)?, seed)?;
        let held_out = match eval_data {
            Some(other) => pack(Dataset::open(other, &self.around)?.all(), input, &tokenizer)?,
            None => pack(dataset.of(Split::Valid), input, &tokenizer)?,
        };
        if held_out.tokens().len() <= *seq_len * *batch_size {
            return Ok((train, None));
        }
        // The held-out batches are the same whatever the run's seed: runs can be compared.
        Ok((train, Some(batches(held_out, 0)?)))
    }

    fn teacher(&self, context: &StageContext<'_>) -> Result<Option<Checkpoint>, StageError> {
        let Some(teaching) = &self.teaching else { return Ok(None) };
        let named = teaching.teacher.as_deref().map(open_model).transpose().map_err(StageError::Input)?;
        let teacher = named.or_else(|| context.model.cloned());
        let none = "distillation needs a teacher: the recipe's `model`, or `teacher` in the stage";
        teacher.map(Some).ok_or_else(|| StageError::Input(none.to_owned()))
    }
}

impl Training {
    /// Hidden states can be compared only where they are as wide.
    fn check_same_width(&self, teacher: &Checkpoint, student: &Checkpoint) -> Result<(), StageError> {
        let compares = self.teaching.as_ref().is_some_and(|teaching| teaching.settings.hidden_weight > 0.0);
        let (theirs, ours) = (teacher.spec().d_model, student.spec().d_model);
        if compares && theirs != ours {
            let message = format!(
                "hidden_weight: the student's d_model is {ours} and the teacher's {theirs}: leave it at 0"
            );
            return Err(StageError::Input(message));
        }
        Ok(())
    }
}

/// Soft targets mean something only between equal vocabularies.
fn check_same_tokenizer(teacher: &Checkpoint, student: &Checkpoint) -> Result<(), StageError> {
    if !same_vocabulary(&tokenizer_of(teacher)?, &tokenizer_of(student)?) {
        let message = "teacher and student have different tokenizers: their soft targets are about different tokens. \
                       Choose a student with the teacher's tokenizer, or carve one out of the teacher";
        return Err(StageError::Input(message.to_owned()));
    }
    Ok(())
}

impl Stage for Training {
    fn name(&self) -> &'static str {
        if self.teaching.is_some() { "distill" } else { "train" }
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to train".to_owned()))?;
        if !input.has_tokenizer {
            return Err(Rejection("the model has no tokenizer: text cannot be read with it".to_owned()));
        }
        if self.config.seq_len > input.spec.context_len {
            let (seq_len, context_len) = (self.config.seq_len, input.spec.context_len);
            return Err(Rejection(format!(
                "seq_len = {seq_len} is more than the model's context of {context_len}"
            )));
        }
        Ok(Outline::of(input.spec.clone(), float_of(input), true))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to train".to_owned()))?;
        let teacher = self.teacher(context)?;
        if let Some(teacher) = &teacher {
            check_same_tokenizer(teacher, &input)?;
            self.check_same_width(teacher, &input)?;
        }
        let (train_batches, eval_batches) = self.batches(&input, context.seed)?;
        let mut fallbacks = Vec::new();
        if eval_batches.is_none() {
            let message = "the data holds out too little for evaluations during training: there are none";
            context.host.warn(message);
            fallbacks.push(message.to_owned());
        }
        let device = open_device(&self.around)?;
        let load = |checkpoint: &Checkpoint, device: &_| {
            Decoder::load(&*checkpoint.weights, device).map_err(|e| StageError::Failed(e.to_string()))
        };
        let teacher_decoder = teacher.as_ref().map(|teacher| load(teacher, &device)).transpose()?;
        let settings = self.settings(context.seed);
        let held_out = eval_batches.iter().flat_map(|batches| {
            let n_batches = batches.n_batches_per_epoch().min(self.config.eval_batches as u64);
            (0..n_batches).map(|index| batches.batch(index))
        });
        let inputs = TrainInputs {
            student: load(&input, &device)?,
            teacher: teacher_decoder.as_ref(),
            train: &train_batches,
            eval: &held_out.collect::<Vec<_>>(),
            run_dir: context.folder,
            // The runner gives each set of settings and inputs a folder of its own.
            inputs_hash: String::new(),
        };
        let outcome =
            train(inputs, &settings, &device, context.host).map_err(|e| StageError::Failed(e.to_string()))?;
        match outcome.stopped {
            Stopped::Completed => {}
            Stopped::Interrupted => {
                return Err(StageError::Interrupted(format!(
                    "after step {}; everything is saved",
                    outcome.steps
                )));
            }
            Stopped::OutOfTime => {
                let message = format!(
                    "out of time after step {}: the machine slowed down; the last steps are missing",
                    outcome.steps
                );
                context.host.warn(&message);
                fallbacks.push(message);
            }
        }
        self.finish(&input, outcome, fallbacks, context)
    }
}

/// The float format of a model's matrices; f16 where they are packed.
fn float_of(outline: &Outline) -> Format {
    let matrix = outline.formats.iter().find(|(key, _)| key.role.is_matrix());
    matrix.map(|&(_, format)| format).filter(|format| format.is_float()).unwrap_or(Format::F16)
}

impl Training {
    /// Stores the student in the float format that went in.
    fn finish(
        &self,
        input: &Checkpoint,
        outcome: slmc_train::Outcome,
        fallbacks: Vec<String>,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let float = float_of(&outline_of(input).map_err(StageError::Failed)?);
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let checkpoint =
            Checkpoint { weights: Arc::new(outcome.student.to_source()), lineage, ..input.clone() };
        let artefact = context.folder.join("model");
        let options = WriteOptions { float: Some(float), ..WriteOptions::default() };
        write_hf_folder(&checkpoint, &artefact, &options, context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        // The artefact is complete: what training would resume from is of no more use.
        let checkpoints = context.folder.join("checkpoints");
        std::fs::remove_dir_all(checkpoints).map_err(|e| StageError::Failed(e.to_string()))?;
        let report = json!({
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "final_loss": outcome.final_loss,
            "final_eval": outcome.eval,
        });
        Ok(Finished { artefact, report, fallbacks })
    }
}
