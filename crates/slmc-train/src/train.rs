//! The loop: batches in, a trained student out, a log and checkpoints on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use slmc_data::Batch;
use slmc_ir::{Adapter, Host, TensorKey, Weight, WeightSource};
use slmc_model::{Decoder, Frozen};

use crate::adapter_learner::AdapterLearner;
use crate::batches::{self, BatchSource};
use crate::clock::Clock;
use crate::learn::{Learn, StepFigures};
use crate::learner::Learner;
use crate::metrics::Metrics;
use crate::run_folder::RunFolder;
use crate::scale_learner::ScaleLearner;
use crate::{
    Budget, EvalFigures, LossFigures, MetricsLine, Plan, RunState, TIMED_STEPS, Teacher, TrainError,
    TrainSettings,
};

/// Seconds between checkpoints when the settings leave it to the clock.
const CHECKPOINT_SECONDS: f64 = 300.0;

/// A budget in minutes is cut off hard when this many times as much has passed.
const OVERTIME: f64 = 1.1;

/// What a run works on.
pub struct TrainInputs<'a> {
    /// The model to train. A resumed run takes its weights from the checkpoint instead.
    pub student: Decoder,
    /// Whom it learns from, exactly when the settings say `distill`.
    pub teacher: Option<&'a dyn Teacher>,
    /// Training batches of `batch_size` sequences of `seq_len` tokens.
    pub train: &'a dyn BatchSource,
    /// Held-out batches, measured as often as the settings say; none, nothing is measured.
    pub eval: &'a [Batch],
    /// Where log and checkpoints go.
    pub run_dir: &'a Path,
    /// Hash of everything outside the settings that the result depends on: data, student, teacher.
    pub inputs_hash: String,
}

/// Why a run returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// All steps are done.
    Completed,
    /// The host asked to stop; the state is saved, and the same call goes on from there.
    Interrupted,
    /// A budget in minutes was exceeded by a tenth before its steps were done; the state is saved.
    OutOfTime,
}

/// What a run that trains an adapter works on.
pub struct AdapterInputs<'a> {
    /// The decoder that stays as it is.
    pub base: &'a Frozen,
    /// The adapter to train. A resumed run takes its numbers from the checkpoint instead.
    pub adapter: Adapter,
    /// Training batches of `batch_size` rows of `seq_len` tokens; rows may hold several documents.
    pub train: &'a dyn BatchSource,
    /// Held-out batches, measured as often as the settings say; none, nothing is measured.
    pub eval: &'a [Batch],
    /// Where log and checkpoints go.
    pub run_dir: &'a Path,
    /// Hash of everything outside the settings that the result depends on: data, base, the adapter's shape.
    pub inputs_hash: String,
}

/// What a run that trains a packed model's scales works on.
pub struct ScaleInputs<'a> {
    /// The model as it is packed.
    pub packed: &'a dyn WeightSource,
    /// Everything else; `student` has the packed model's numbers.
    pub whole: TrainInputs<'a>,
}

/// What a run leaves, besides its folder.
pub struct Outcome<S = Decoder> {
    /// What was trained: a student, without autodiff; or an adapter.
    pub student: S,
    /// Steps done, over all sessions.
    pub steps: u64,
    /// Training tokens seen, over all sessions.
    pub tokens: u64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
    /// The budget as it was resolved.
    pub plan: Plan,
    /// Loss of the last step, before its update.
    pub final_loss: f64,
    /// All figures of the last step's loss.
    pub losses: LossFigures,
    /// The last evaluation, if there are held-out batches: after the last step, unless the run was interrupted.
    pub eval: Option<EvalFigures>,
    /// Why it returned.
    pub stopped: Stopped,
    /// The log, one JSON document a line: see [`MetricsLine`].
    pub metrics: PathBuf,
}

/// Trains the student: next-token cross-entropy, or distillation when the settings say so. AdamW with linear
/// warm-up, cosine decay and clipping of the gradient's norm.
///
/// `run_dir` may hold an earlier session of the same run: it goes on from its newest checkpoint, and ends in the
/// same bytes as an unbroken one (of a budget in minutes, as one that the clock gives the same steps: see [`Plan`]). With other
/// settings or inputs it is refused; [`discard`](crate::discard) clears the folder. `device` is the student's.
pub fn train(
    inputs: TrainInputs<'_>,
    settings: &TrainSettings,
    device: &Device,
    host: &dyn Host,
) -> Result<Outcome, TrainError> {
    settings.validate()?;
    let vocab_size = check_models(&inputs, settings)?;
    batches::check_held_out(inputs.eval, vocab_size)?;
    let folder = RunFolder::open(inputs.run_dir)?;
    let TrainInputs { student, teacher, train, eval, run_dir, inputs_hash } = inputs;
    let (learner, state, saved_step) = match folder.latest(host)? {
        Some(saved) => {
            saved.state.check_same_run(run_dir, settings, &inputs_hash)?;
            let spec = student.spec().clone();
            drop(student); // before the checkpoint's weights take its place in memory
            let learner = Learner::restore(&saved.path, saved.state.step, &spec, teacher, settings, device)?;
            let step = saved.state.step;
            let mut state = saved.state;
            state.settings = settings.clone();
            (learner, state, Some(step))
        }
        None => (Learner::new(student, teacher, settings), RunState::new(settings, &inputs_hash), None),
    };
    let run = Run::begin(settings, host, train, eval, vocab_size, folder, state, saved_step)?;
    run.finish(learner)
}

/// Trains an adapter beside a frozen decoder, by the same loop as [`train`]: the same plan, log and checkpoints, and a
/// run that was interrupted ends in the same bytes as an unbroken one. Of the settings `freeze_embedding` and `distill`
/// mean nothing here.
pub fn train_adapter(
    inputs: AdapterInputs<'_>,
    settings: &TrainSettings,
    host: &dyn Host,
) -> Result<Outcome<Adapter>, TrainError> {
    settings.validate()?;
    let AdapterInputs { base, adapter, train, eval, run_dir, inputs_hash } = inputs;
    let spec = base.spec();
    adapter.check(spec).map_err(|e| TrainError::Adapter(e.to_string()))?;
    if settings.distill.is_some() {
        return Err(TrainError::Teacher("an adapter learns next tokens alone: it has no teacher"));
    }
    if settings.seq_len > spec.context_len {
        let why = "must not be longer than the model's context";
        return Err(TrainError::Setting { field: "seq_len", value: settings.seq_len.to_string(), why });
    }
    batches::check_held_out(eval, spec.vocab_size)?;
    let folder = RunFolder::open(run_dir)?;
    let (learner, state, saved_step) = match folder.latest(host)? {
        Some(saved) => {
            saved.state.check_same_run(run_dir, settings, &inputs_hash)?;
            let step = saved.state.step;
            let learner = AdapterLearner::restore(&saved.path, step, base, adapter)?;
            let mut state = saved.state;
            state.settings = settings.clone();
            (learner, state, Some(step))
        }
        None => (AdapterLearner::new(base, adapter), RunState::new(settings, &inputs_hash), None),
    };
    let run = Run::begin(settings, host, train, eval, spec.vocab_size, folder, state, saved_step)?;
    run.finish(learner)
}

/// Trains the scales and gains of a packed model, whose levels stay, by the same loop as [`train`]: the same plan, log and
/// checkpoints, and a run that was interrupted ends in the same bytes as an unbroken one. Of the settings
/// `weight_decay` and `freeze_embedding` mean nothing here.
pub fn train_scales(
    inputs: ScaleInputs<'_>,
    settings: &TrainSettings,
    host: &dyn Host,
) -> Result<Outcome<BTreeMap<TensorKey, Weight>>, TrainError> {
    settings.validate()?;
    let ScaleInputs { packed, whole } = inputs;
    let vocab_size = check_models(&whole, settings)?;
    batches::check_held_out(whole.eval, vocab_size)?;
    let folder = RunFolder::open(whole.run_dir)?;
    let TrainInputs { student, teacher, train, eval, run_dir, inputs_hash } = whole;
    let learner = ScaleLearner::new(packed, student, teacher, settings)?;
    let (learner, state, saved_step) = match folder.latest(host)? {
        Some(saved) => {
            saved.state.check_same_run(run_dir, settings, &inputs_hash)?;
            let step = saved.state.step;
            let learner = learner.restore(&saved.path, step)?;
            let mut state = saved.state;
            state.settings = settings.clone();
            (learner, state, Some(step))
        }
        None => (learner, RunState::new(settings, &inputs_hash), None),
    };
    let run = Run::begin(settings, host, train, eval, vocab_size, folder, state, saved_step)?;
    run.finish(learner)
}

/// Proves that student and teacher can do what the settings ask; returns the tokens that both know.
fn check_models(inputs: &TrainInputs<'_>, settings: &TrainSettings) -> Result<usize, TrainError> {
    let student = inputs.student.spec();
    let (teacher_vocab, teacher_context) = match (inputs.teacher, settings.distill) {
        (Some(teacher), Some(_)) => (teacher.spec().vocab_size, teacher.spec().context_len),
        (None, None) => (usize::MAX, usize::MAX),
        (None, Some(_)) => {
            return Err(TrainError::Teacher("the settings ask for distillation: it needs a teacher"));
        }
        (Some(_), None) => {
            return Err(TrainError::Teacher("there is a teacher, but no `distill` in the settings"));
        }
    };
    if settings.seq_len > student.context_len.min(teacher_context) {
        let why = "must not be longer than the context of student and teacher";
        return Err(TrainError::Setting { field: "seq_len", value: settings.seq_len.to_string(), why });
    }
    Ok(student.vocab_size.min(teacher_vocab))
}

/// A run under way: everything but the tensors.
struct Run<'a> {
    settings: &'a TrainSettings,
    host: &'a dyn Host,
    train: &'a dyn BatchSource,
    eval: &'a [Batch],
    vocab_size: usize,
    folder: RunFolder,
    metrics: Metrics,
    state: RunState,
    clock: Clock<'a>,
    /// Step of the newest checkpoint, and when it was written.
    last_saved: (Option<u64>, f64),
}

impl<'a> Run<'a> {
    /// A session begins, from nothing or from the checkpoint after `saved_step` steps.
    #[allow(clippy::too_many_arguments)] // what a run is made of, once
    fn begin(
        settings: &'a TrainSettings,
        host: &'a dyn Host,
        train: &'a dyn BatchSource,
        eval: &'a [Batch],
        vocab_size: usize,
        folder: RunFolder,
        state: RunState,
        saved_step: Option<u64>,
    ) -> Result<Self, TrainError> {
        let metrics = Metrics::open(&folder.metrics(), saved_step)?;
        let clock = Clock::new(host, state.seconds);
        let last_saved = (saved_step, clock.seconds());
        Ok(Run { settings, host, train, eval, vocab_size, folder, metrics, state, clock, last_saved })
    }
}

impl Run<'_> {
    fn finish<L: Learn>(mut self, mut learner: L) -> Result<Outcome<L::Student>, TrainError> {
        if self.last_saved.0.is_none() && !self.eval.is_empty() {
            let eval = self.evaluate(&learner)?;
            self.write_line(None, None, Some(eval))?;
        }
        self.announce();
        let stopped = loop {
            if self.state.is_complete() {
                break Stopped::Completed;
            }
            if self.host.stop_requested() {
                break Stopped::Interrupted;
            }
            if self.is_out_of_time() {
                break Stopped::OutOfTime;
            }
            learner = self.one_step(learner)?;
        };
        self.host.end();
        if stopped == Stopped::OutOfTime {
            self.warn_out_of_time();
        }
        self.save(&learner)?;
        Ok(self.outcome(&learner, stopped))
    }

    /// One optimizer step and what is due after it: resolving the plan, evaluation, log line, checkpoint.
    fn one_step<L: Learn>(&mut self, learner: L) -> Result<L, TrainError> {
        let settings = self.settings;
        self.clock.begin_step();
        let batches = batches::of_step(self.train, self.state.step, settings, self.vocab_size)?;
        let rate = self.state.plan.learning_rate(settings, self.state.step);
        let (learner, figures) = learner.step(&batches, self.state.step + 1, rate, settings)?;
        let step_seconds = self.clock.end_step();
        self.state.step += 1;
        self.state.tokens += settings.tokens_per_step();
        self.state.losses = figures.losses;
        let planned = self.plan_minutes()?;
        let eval = if self.is_evaluation_due() { Some(self.evaluate(&learner)?) } else { None };
        self.write_line(Some((&figures, rate)), Some(step_seconds), eval)?;
        self.show_progress(figures.losses.loss);
        if planned || self.is_checkpoint_due() {
            self.save(&learner)?;
        }
        if planned {
            self.host.end();
            self.announce();
        }
        Ok(learner)
    }

    fn announce(&self) {
        let steps = self.state.plan.total_steps;
        let what = if steps.is_some() { "train" } else { "train, timing the first steps" };
        let tokens = steps.unwrap_or(TIMED_STEPS).saturating_mul(self.settings.tokens_per_step());
        self.host.begin(what, tokens, "tokens");
        self.host.advance_to(self.state.tokens, "");
    }

    /// Turns minutes into steps once enough of them were timed, and looks at them again later; true at a step where the
    /// plan changes.
    fn plan_minutes(&mut self) -> Result<bool, TrainError> {
        let Budget::Minutes(minutes) = self.settings.budget else { return Ok(false) };
        let (done, is_settled) = (self.state.step, self.state.plan.total_steps.is_some());
        let seconds_left = minutes * 60.0 - self.clock.seconds();
        let is_due = match is_settled {
            false => done >= TIMED_STEPS || seconds_left <= 0.0,
            // A session that has just gone on knows too little of its pace.
            true => {
                self.state.plan.revision_is_due(self.settings, done) && self.clock.n_steps() >= TIMED_STEPS
            }
        };
        if !is_due {
            return Ok(false);
        }
        let eval_seconds = self.clock.eval_seconds();
        let eval_share = match self.settings.eval_every {
            0 => 0.0,
            every => eval_seconds / every as f64,
        };
        let step_seconds = self.clock.mean_step_seconds();
        if step_seconds <= 0.0 {
            let why = "needs a host whose clock runs: give steps or tokens";
            return Err(TrainError::Setting { field: "budget.minutes", value: minutes.to_string(), why });
        }
        let (each, left) = (step_seconds + eval_share, seconds_left - eval_seconds); // the last evaluation
        if is_settled {
            return Ok(self.state.plan.revise(done, each, left));
        }
        self.state.plan.resolve(self.settings, done, each, left);
        Ok(true)
    }

    fn is_out_of_time(&self) -> bool {
        matches!(self.settings.budget, Budget::Minutes(m) if self.clock.seconds() > m * 60.0 * OVERTIME)
    }

    fn warn_out_of_time(&self) {
        let planned = self.state.plan.total_steps.unwrap_or(self.state.step);
        let (step, seconds) = (self.state.step, self.clock.seconds());
        self.host.warn(&format!(
            "stopped after {step} of {planned} steps: {seconds:.0} s have passed, a tenth more than the budget; the \
             learning rate has not reached its end"
        ));
    }

    fn is_evaluation_due(&self) -> bool {
        let (step, every) = (self.state.step, self.settings.eval_every);
        let is_last = self.state.is_complete() || self.is_out_of_time();
        !self.eval.is_empty() && (is_last || (every > 0 && step.is_multiple_of(every)))
    }

    fn is_checkpoint_due(&self) -> bool {
        match self.settings.checkpoint_every {
            0 => self.clock.seconds() - self.last_saved.1 >= CHECKPOINT_SECONDS,
            every => self.state.step.is_multiple_of(every),
        }
    }

    fn evaluate<L: Learn>(&mut self, learner: &L) -> Result<EvalFigures, TrainError> {
        let began = self.clock.seconds();
        let figures = learner.evaluate(self.eval, self.state.step)?;
        self.clock.note_eval(self.clock.seconds() - began);
        self.state.eval = Some((self.state.step, figures));
        Ok(figures)
    }

    fn write_line(
        &mut self,
        figures: Option<(&StepFigures, f64)>,
        step_seconds: Option<f64>,
        eval: Option<EvalFigures>,
    ) -> Result<(), TrainError> {
        let rate_of = |seconds: f64| self.settings.tokens_per_step() as f64 / seconds;
        let line = MetricsLine {
            step: self.state.step,
            tokens: self.state.tokens,
            losses: figures.map(|(figures, _)| figures.losses),
            lr: figures.map(|(_, rate)| rate),
            grad_norm: figures.map(|(figures, _)| figures.grad_norm),
            tokens_per_s: step_seconds.filter(|&seconds| seconds > 0.0).map(rate_of),
            seconds: self.clock.seconds(),
            eval,
        };
        self.metrics.write(&line)
    }

    fn show_progress(&self, loss: f64) {
        let step_seconds = self.clock.step_seconds();
        let mut note = format!("loss {loss:.2}");
        if step_seconds > 0.0 {
            note += &format!(" · {:.0} tok/s", self.settings.tokens_per_step() as f64 / step_seconds);
        }
        self.host.advance_to(self.state.tokens, &note);
    }

    /// Writes a checkpoint, unless the newest is of this very step.
    fn save<L: Learn>(&mut self, learner: &L) -> Result<(), TrainError> {
        if self.last_saved.0 == Some(self.state.step) {
            return Ok(());
        }
        self.metrics.sync()?;
        self.state.seconds = self.clock.seconds();
        self.folder.save(&mut self.state, self.settings.keep_checkpoints, |folder| learner.save(folder))?;
        self.last_saved = (Some(self.state.step), self.clock.seconds());
        Ok(())
    }

    fn outcome<L: Learn>(&self, learner: &L, stopped: Stopped) -> Outcome<L::Student> {
        Outcome {
            student: learner.student(),
            steps: self.state.step,
            tokens: self.state.tokens,
            seconds: self.clock.seconds(),
            plan: self.state.plan,
            final_loss: self.state.losses.loss,
            losses: self.state.losses,
            eval: self.state.eval.map(|(_, figures)| figures),
            stopped,
            metrics: self.folder.metrics(),
        }
    }
}
