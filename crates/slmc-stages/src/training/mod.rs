//! The train and distill stages: one loop, with or without a teacher.

mod data;

use std::sync::Arc;

use serde_json::json;
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{Checkpoint, Format, Host, Outline};
use slmc_model::{Decoder, Products};
use slmc_recipe::{Budget, DistillConfig, Finished, Rejection, Stage, StageContext, StageError, TrainConfig};
use slmc_train::{DistillSettings, Precision, Stopped, TrainInputs, TrainSettings, train};

use self::data::Sampled;
use crate::{
    Surroundings,
    calibration::{same_vocabulary, tokenizer_of},
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
    /// Text that the teacher writes for its student.
    sampled: Option<Sampled>,
}

impl Training {
    pub fn plain(config: TrainConfig, around: Arc<Surroundings>) -> Result<Self, String> {
        config.budget()?;
        precision_of(&config)?;
        Ok(Self { config, teaching: None, around })
    }

    pub fn distill(config: DistillConfig, around: Arc<Surroundings>) -> Result<Self, String> {
        config.train.budget()?;
        precision_of(&config.train)?;
        if !(0.0..=1.0).contains(&config.alpha) {
            return Err(format!("alpha = {}: the teacher's weight is between 0 and 1", config.alpha));
        }
        if !(config.temperature > 0.0 && config.temperature.is_finite()) {
            return Err(format!("temperature = {}: must be above 0", config.temperature));
        }
        if !(config.hidden_weight >= 0.0 && config.hidden_weight.is_finite()) {
            return Err(format!("hidden_weight = {}: must be 0 or more", config.hidden_weight));
        }
        if !(0.0..=1.0).contains(&config.sampled_share) {
            return Err(format!("sampled_share = {}: a share is between 0 and 1", config.sampled_share));
        }
        let DistillConfig { temperature, alpha, hidden_weight, .. } = config;
        let settings = DistillSettings { temperature, alpha, hidden_weight };
        let sampled = (config.sampled_tokens > 0 && config.sampled_share > 0.0)
            .then_some(Sampled { n_tokens: config.sampled_tokens, share: config.sampled_share });
        Ok(Self {
            teaching: Some(Teaching { teacher: config.teacher, settings, sampled }),
            config: config.train,
            around,
        })
    }
}

/// The loop's settings, from a stage's.
pub(crate) fn loop_settings(
    config: &TrainConfig,
    precision: Precision,
    distill: Option<DistillSettings>,
    seed: u64,
) -> TrainSettings {
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
        precision,
        distill,
        ..TrainSettings::default()
    }
}

pub(crate) fn precision_of(config: &TrainConfig) -> Result<Precision, String> {
    match config.precision.as_str() {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        other => Err(format!("precision = `{other}`: products are computed in f32 or bf16")),
    }
}

impl Training {
    /// What products are computed in here: f32 where bf16 is asked for and cannot be had.
    fn precision(&self, student: &Decoder, host: &dyn Host, fallbacks: &mut Vec<String>) -> Precision {
        // Proved when the stage was made.
        let asked = precision_of(&self.config).unwrap_or_default();
        let why = if Products::half().is_none() {
            "this CPU has no units for it (AMX)"
        } else if !student.computes_products() {
            "the device computes as it does"
        } else {
            return asked;
        };
        if asked == Precision::Bf16 {
            let message = format!("products are computed in f32 instead of bf16: {why}");
            host.warn(&message);
            fallbacks.push(message);
        }
        Precision::F32
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
        let sampled = self.teaching.as_ref().and_then(|teaching| teaching.sampled).zip(teacher.as_ref());
        let sampled = match sampled {
            Some((sampled, teacher)) => Some((sampled.text(teacher, context)?, sampled.share)),
            None => None,
        };
        let (train_batches, eval_batches) =
            self.batches(&input, sampled.as_ref().map(|(text, share)| (text, *share)), context.seed)?;
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
        let student = load(&input, &device)?;
        let teacher_decoder = teacher.as_ref().map(|teacher| load(teacher, &device)).transpose()?;
        let precision = self.precision(&student, context.host, &mut fallbacks);
        let distill = self.teaching.as_ref().map(|teaching| teaching.settings);
        let mut settings = loop_settings(&self.config, precision, distill, context.seed);
        if let (slmc_train::Budget::Minutes(minutes), Some((text, _))) = (&mut settings.budget, &sampled) {
            *minutes -= text.seconds / 60.0;
            if *minutes <= 0.0 {
                let message =
                    "writing the sampled text took all of the minutes: ask for fewer `sampled_tokens`";
                return Err(StageError::Input(message.to_owned()));
            }
        }
        let held_out = eval_batches.iter().flat_map(|batches| {
            let n_batches = batches.n_batches_per_epoch().min(self.config.eval_batches as u64);
            (0..n_batches).map(|index| batches.batch(index))
        });
        let inputs = TrainInputs {
            student,
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
        let n_sampled = sampled.map_or(0, |(text, _)| text.documents.len());
        self.finish(&input, outcome, n_sampled, fallbacks, context)
    }
}

/// The float format of a model's matrices; f16 where they are packed.
pub(crate) fn float_of(outline: &Outline) -> Format {
    let matrix = outline.formats.iter().find(|(key, _)| key.role.is_matrix());
    matrix.map(|&(_, format)| format).filter(|format| format.is_float()).unwrap_or(Format::F16)
}

impl Training {
    /// Stores the student in the float format that went in.
    fn finish(
        &self,
        input: &Checkpoint,
        outcome: slmc_train::Outcome,
        n_sampled: usize,
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
            "sampled_documents": n_sampled,
            "final_loss": outcome.final_loss,
            "final_eval": outcome.eval,
        });
        Ok(Finished { artefact, report, fallbacks })
    }
}
