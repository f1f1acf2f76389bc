//! The train and distill stages: one loop, with or without a teacher.

mod data;
mod finish;
mod fit;
mod prepare;
mod teacher;

use std::sync::Arc;

use serde_json::json;
use slmc_interop::with_channels_of;
use slmc_ir::{Checkpoint, Host, Outline};
use slmc_model::{Decoder, Products};
use slmc_recipe::{Budget, DistillConfig, Finished, Rejection, Stage, StageContext, StageError, TrainConfig};
use slmc_train::{DistillSettings, Precision, ScaleInputs, TrainInputs, TrainSettings, train, train_scales};

use self::teacher::TeacherPrecision;
pub(crate) use self::{
    finish::{check_stopped, float_of},
    prepare::fitted_tokens,
};
use crate::{
    Surroundings,
    calibration::{same_vocabulary, tokenizer_of},
    open::{open_device, open_model},
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
    /// Tokens of text that the teacher writes for its student to learn from, and their share.
    sampled_tokens: usize,
    sampled_share: f64,
    /// Tokens that the student is fitted to its teacher on.
    fit_tokens: usize,
    /// Share of the teacher's own text among them, where it writes any.
    fit_sampled_share: f64,
    precision: TeacherPrecision,
    learn: Learning,
}

/// What learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Learning {
    /// All of the student.
    Weights,
    /// The scales of a packed student, and its gains.
    Scales,
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
        let shares =
            [("sampled_share", config.sampled_share), ("fit_sampled_share", config.fit_sampled_share)];
        if let Some((name, share)) = shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(format!("{name} = {share}: a share is between 0 and 1"));
        }
        let learn = match config.learn.as_str() {
            "weights" => Learning::Weights,
            "scales" => Learning::Scales,
            other => return Err(format!("learn = `{other}`: what learns is `weights` or `scales`")),
        };
        let precision = TeacherPrecision::parse(&config.teacher_precision)?;
        if learn == Learning::Scales && config.fit_tokens > 0 {
            return Err(
                "fit_tokens: what is fitted are weights; with learn = `scales` leave it at 0".to_owned()
            );
        }
        let DistillConfig { temperature, alpha, hidden_weight, .. } = config;
        let settings = DistillSettings { temperature, alpha, hidden_weight };
        Ok(Self {
            teaching: Some(Teaching {
                teacher: config.teacher,
                settings,
                sampled_tokens: config.sampled_tokens,
                sampled_share: config.sampled_share,
                fit_tokens: config.fit_tokens,
                fit_sampled_share: config.fit_sampled_share,
                precision,
                learn,
            }),
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

    fn learns_scales(&self) -> bool {
        self.teaching.as_ref().is_some_and(|teaching| teaching.learn == Learning::Scales)
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
        if self.learns_scales() {
            if input.formats.iter().all(|(_, format)| format.is_float()) {
                let message = "learn = `scales`: nothing of the model is packed: quantize it first";
                return Err(Rejection(message.to_owned()));
            }
            return Ok(input.clone());
        }
        Ok(Outline::of(input.spec.clone(), float_of(input), true))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to train".to_owned()))?;
        // Channel beside channel: their hidden states may be compared, and their weights.
        let teacher = self.teacher(context)?.map(|teacher| with_channels_of(&teacher, &input));
        if let Some(teacher) = &teacher {
            check_same_tokenizer(teacher, &input)?;
            self.check_same_width(teacher, &input)?;
        }
        let written = self.written(&input, teacher.as_ref(), context)?;
        let (train_batches, eval_batches) = self.batches(&input, written.to_learn_from(), context.seed)?;
        let mut fallbacks = Vec::new();
        if eval_batches.is_none() && self.config.eval_batches > 0 {
            let message = "the data holds out too little for evaluations during training: there are none";
            context.host.warn(message);
            fallbacks.push(message.to_owned());
        }
        let device = open_device(&self.around)?;
        let fitted = self.fitted(&input, teacher.as_ref(), train_batches.of_data(), &written, context)?;
        let student = fitted.as_ref().map_or(&input, |fitted| &fitted.student);
        let student =
            Decoder::load(&*student.weights, &device).map_err(|e| StageError::Failed(e.to_string()))?;
        for message in self.cut_short(&written, fitted.as_ref(), input.spec()) {
            context.host.warn(&message);
            fallbacks.push(message);
        }
        let precision = self.precision(&student, context.host, &mut fallbacks);
        let distill = self.teaching.as_ref().map(|teaching| teaching.settings);
        let mut settings = loop_settings(&self.config, precision, distill, context.seed);
        if let slmc_train::Budget::Minutes(minutes) = &mut settings.budget {
            *minutes -= written.seconds() / 60.0;
            *minutes -= fitted.as_ref().map_or(0.0, |fitted| fitted.notes.seconds) / 60.0;
            if *minutes <= 0.0 {
                let message = "writing text and fitting took all of the minutes: ask for fewer `sampled_tokens` and \
                               `fit_tokens`";
                return Err(StageError::Input(message.to_owned()));
            }
        }
        let taught_by = self.teaching.as_ref().zip(teacher.as_ref());
        let taught_by =
            taught_by.map(|(teaching, teacher)| teaching.precision.teacher(teacher, &settings, &device));
        let taught_by = taught_by.transpose()?;
        let held_out = eval_batches.iter().flat_map(|batches| {
            let n_batches = batches.n_batches_per_epoch().min(self.config.eval_batches as u64);
            (0..n_batches).map(|index| batches.batch(index))
        });
        let inputs = TrainInputs {
            student,
            teacher: taught_by.as_deref(),
            train: &train_batches,
            eval: &held_out.collect::<Vec<_>>(),
            run_dir: context.folder,
            // The runner gives each set of settings and inputs a folder of its own.
            inputs_hash: String::new(),
        };
        let prepared = json!({
            "sampled_documents": written.n_documents(),
            "fit": fitted.map(|fitted| fitted.notes),
        });
        let failed = |e: slmc_train::TrainError| StageError::Failed(e.to_string());
        if self.learns_scales() {
            let inputs = ScaleInputs { packed: &*input.weights, whole: inputs };
            let outcome = train_scales(inputs, &settings, context.host).map_err(failed)?;
            check_stopped(&outcome, context, &mut fallbacks)?;
            return self.finish_scales(&input, outcome, &prepared, fallbacks, context);
        }
        let outcome = train(inputs, &settings, &device, context.host).map_err(failed)?;
        check_stopped(&outcome, context, &mut fallbacks)?;
        self.finish(&input, outcome, &prepared, fallbacks, context)
    }
}
