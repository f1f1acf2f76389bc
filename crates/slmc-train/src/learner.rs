//! What is trained, and by what: the student's parameters, their optimizer and the teacher.
//!
//! The only part that knows which parameters learn. The loop sees steps, evaluations, and tensors to save.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use slmc_data::Batch;
use slmc_ir::{ModelSpec, SourceError, TensorKey, TokenId, Weight, WeightSource};
use slmc_model::{
    AdamW, Decoder, Distillation, Grads, Moment, Products, distillation_loss, gradients, next_token_loss,
};

use crate::batches::{n_targets, target_positions, weights};
use crate::learn::{Learn, StepFigures};
use crate::run_folder::{MODEL_FILE, OPTIMIZER_FILE, SavedFile};
use crate::teacher::{Teacher, input_ids};
use crate::tensor_file::{self, Entry, TensorFile};
use crate::{DistillSettings, EvalFigures, LossFigures, TrainError, TrainSettings};

/// A student that learns.
pub(crate) struct Learner<'t> {
    student: Decoder,
    teacher: Option<&'t dyn Teacher>,
    optimizer: AdamW,
}

impl<'t> Learner<'t> {
    /// A student at the start of its run.
    pub(crate) fn new(student: Decoder, teacher: Option<&'t dyn Teacher>, settings: &TrainSettings) -> Self {
        Self { student: trainable(student, settings), teacher, optimizer: AdamW::new() }
    }

    /// The student and its optimizer as a checkpoint of `step` steps holds them, bit for bit.
    pub(crate) fn restore(
        folder: &Path,
        step: u64,
        spec: &ModelSpec,
        teacher: Option<&'t dyn Teacher>,
        settings: &TrainSettings,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let source = CheckpointSource::open(&folder.join(MODEL_FILE), spec)?;
        let student = Decoder::load(&source, device).map_err(|e| TrainError::checkpoint(folder, e))?;
        let student = trainable(student, settings);
        let optimizer = restore_optimizer(&folder.join(OPTIMIZER_FILE), step, &student)?;
        Ok(Self { student, teacher, optimizer })
    }

    /// Loss and gradients of one micro-batch, both times `share`.
    fn backward(
        &self,
        batch: &Batch,
        share: f64,
        settings: &TrainSettings,
    ) -> Result<(LossFigures, Grads), TrainError> {
        let (n_rows, n_columns, products) = (batch.batch_size, batch.seq_len, self.student.products());
        let run = |loss: &dyn Fn(Tensor<3>, Tensor<2>) -> (Tensor<1>, LossFigures)| {
            let scaled = |hidden, head| {
                let (total, figures) = loss(hidden, head);
                (if share == 1.0 { total } else { total * share as f32 }, figures)
            };
            gradients(&self.student, &batch.inputs, n_rows, n_columns, scaled, settings.recompute)
        };
        let (total, figures, grads) = match (self.teacher, settings.distill) {
            (Some(teacher), Some(distill)) => {
                let soft = teacher.hidden(batch)?;
                run(&|hidden, head| {
                    distill_loss(hidden, head, soft.clone(), teacher.head(), batch, distill, share, products)
                })
            }
            _ => run(&|hidden, head| {
                let weights = weights(batch);
                (
                    next_token_loss(hidden, head, &batch.targets, weights.as_deref(), products),
                    LossFigures::default(),
                )
            }),
        };
        Ok((LossFigures { loss: f64::from(total), ..figures }, grads))
    }

    /// Loss and gradients of a step's micro-batches, each target token weighing the same; clipped.
    pub(crate) fn gradients(
        &self,
        batches: &[Batch],
        step: u64,
        settings: &TrainSettings,
    ) -> Result<(StepFigures, Grads), TrainError> {
        if batches.iter().any(|batch| batch.starts.is_some()) {
            let message =
                "rows of several documents are for adapters: a whole decoder looks across their borders";
            return Err(TrainError::Data { index: step - 1, message: message.to_owned() });
        }
        let n_all: usize = batches.iter().map(n_targets).sum();
        let mut losses = LossFigures::default();
        let mut grads = Grads::default();
        for batch in batches.iter().filter(|batch| n_targets(batch) > 0) {
            let share = n_targets(batch) as f64 / n_all as f64;
            let (part, part_grads) = self.backward(batch, share, settings)?;
            add(&mut losses, part);
            grads.accumulate(part_grads);
        }
        if !losses.loss.is_finite() {
            return Err(TrainError::NotFinite { step, what: format!("the loss ({})", losses.loss) });
        }
        let grad_norm = match settings.clip_norm {
            0.0 => grads.norm(),
            max_norm => grads.clip(max_norm as f32),
        };
        if !grad_norm.is_finite() {
            return Err(TrainError::NotFinite { step, what: worst_gradient(&grads) });
        }
        Ok((StepFigures { losses, grad_norm: f64::from(grad_norm) }, grads))
    }

    /// The student, to change.
    pub(crate) fn student_mut(&mut self) -> &mut Decoder {
        &mut self.student
    }
}

impl Learn for Learner<'_> {
    type Student = Decoder;

    fn step(
        mut self,
        batches: &[Batch],
        step: u64,
        rate: f64,
        settings: &TrainSettings,
    ) -> Result<(Self, StepFigures), TrainError> {
        let (figures, grads) = self.gradients(batches, step, settings)?;
        self.student = self.optimizer.step(self.student, grads, rate as f32, settings.adamw());
        Ok((self, figures))
    }

    fn evaluate(&self, batches: &[Batch], step: u64) -> Result<EvalFigures, TrainError> {
        let student = self.student.for_evaluation();
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in batches {
            let hidden = student.hidden(input_ids(batch, &student));
            sum += nll_sum(&student, hidden, batch);
            tokens += n_targets(batch) as u64;
        }
        let nll = sum / tokens as f64;
        if !nll.is_finite() {
            return Err(TrainError::NotFinite { step, what: format!("the held-out loss ({nll})") });
        }
        Ok(EvalFigures { nll, perplexity: nll.exp(), tokens })
    }

    fn save(&self, folder: &Path) -> Result<Vec<SavedFile>, TrainError> {
        let keys = self.student.keys();
        let entries: Vec<Entry> =
            keys.iter().map(|key| (key.to_string(), key.shape(self.student.spec()))).collect();
        let model = tensor_file::write(&folder.join(MODEL_FILE), &entries, |i| {
            let parameter = self.student.parameter(keys[i]).ok_or(SourceError::Missing(keys[i]))?;
            numbers(parameter.flat())
        })?;

        let keys: Vec<TensorKey> = self.optimizer.keys().collect();
        let name = |i: usize| ["first", "second"][i % 2];
        let entry =
            |i: usize| (format!("{} {}", keys[i / 2], name(i)), keys[i / 2].shape(self.student.spec()));
        let entries: Vec<Entry> = (0..keys.len() * 2).map(entry).collect();
        let optimizer = tensor_file::write(&folder.join(OPTIMIZER_FILE), &entries, |i| {
            let moment = self.optimizer.moment(keys[i / 2]).ok_or(SourceError::Missing(keys[i / 2]))?;
            Ok(if i % 2 == 0 { moment.first } else { moment.second })
        })?;
        let file = |name: &str, n_bytes| SavedFile { name: name.to_owned(), n_bytes };
        Ok(vec![file(MODEL_FILE, model), file(OPTIMIZER_FILE, optimizer)])
    }

    fn student(&self) -> Decoder {
        self.student.for_evaluation()
    }
}

/// The student with those of its parameters tracked that learn.
fn trainable(student: Decoder, settings: &TrainSettings) -> Decoder {
    let student = student.for_training().with_products(settings.products());
    if settings.freeze_embedding { student.with_frozen_embedding() } else { student }
}

/// Distillation over the target positions of a batch; kl and cross-entropy come out times `share`.
#[allow(clippy::too_many_arguments)] // two models, a batch, and how to compare them
fn distill_loss(
    hidden: Tensor<3>,
    head: Tensor<2>,
    teacher_hidden: Tensor<3>,
    teacher_head: Tensor<2>,
    batch: &Batch,
    distill: DistillSettings,
    share: f64,
    products: Products,
) -> (Tensor<1>, LossFigures) {
    let soft = Distillation { temperature: distill.temperature as f32, alpha: distill.alpha as f32 };
    let positions = target_positions(batch);
    let targets: Vec<TokenId> = positions.iter().map(|&i| batch.targets[i]).collect();
    let hidden = rows_at(hidden, &positions, batch);
    let teacher_hidden = rows_at(teacher_hidden, &positions, batch);
    let apart = (distill.hidden_weight > 0.0)
        .then(|| hidden_difference(hidden.clone(), teacher_hidden.clone()) * (distill.hidden_weight as f32));
    let result = distillation_loss(hidden, head, teacher_hidden, teacher_head, &targets, soft, products);
    let scaled = |figure: f32| Some(f64::from(figure) * share);
    let total = match apart {
        Some(apart) => result.total + apart,
        None => result.total,
    };
    (total, LossFigures { loss: 0.0, kl: scaled(result.kl), ce: scaled(result.cross_entropy) })
}

/// Mean square of the difference of the final hidden states, as a share of the teacher's mean square; `[1]`.
fn hidden_difference(student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
    let mean_square = (teacher.clone() * teacher.clone()).mean().into_scalar::<f32>();
    let difference = student - teacher.autodiff();
    (difference.clone() * difference).mean() / mean_square.max(f32::MIN_POSITIVE)
}

/// The hidden states of some positions, `[1, n, d_model]`; all of them as they are when none is left out.
fn rows_at(hidden: Tensor<3>, positions: &[usize], batch: &Batch) -> Tensor<3> {
    if positions.len() == batch.targets.len() {
        return hidden;
    }
    let [n_rows, n_columns, d_model] = hidden.dims();
    let indices: Vec<i32> = positions.iter().map(|&i| i as i32).collect();
    let data = TensorData::new(indices, [positions.len()]);
    let indices = Tensor::<1, Int>::from_data(data, &hidden.device());
    hidden.reshape([1, n_rows * n_columns, d_model]).select(1, indices)
}

fn add(sum: &mut LossFigures, part: LossFigures) {
    let plus = |a: Option<f64>, b: Option<f64>| b.map(|b| a.unwrap_or(0.0) + b).or(a);
    sum.loss += part.loss;
    sum.kl = plus(sum.kl, part.kl);
    sum.ce = plus(sum.ce, part.ce);
}

/// Sum over a batch's targets of `-log p`, in nats.
fn nll_sum(student: &Decoder, hidden: Tensor<3>, batch: &Batch) -> f64 {
    let weights = weights(batch);
    let mean =
        next_token_loss(hidden, student.head(), &batch.targets, weights.as_deref(), student.products());
    f64::from(mean.into_scalar::<f32>()) * n_targets(batch) as f64
}

/// The tensor to blame for a gradient that is not finite.
fn worst_gradient(grads: &Grads) -> String {
    let is_bad = |key: &TensorKey| {
        let square = grads.get(*key).map(|g| g.clone().powi_scalar(2).sum().into_scalar::<f32>());
        square.is_some_and(|square| !square.is_finite())
    };
    let name = grads.keys().find(is_bad).map(|key| key.to_string());
    name.map_or_else(|| "the gradient's norm".to_owned(), |name| format!("the gradient of `{name}`"))
}

/// The numbers of a tensor, in row order.
pub(crate) fn numbers(tensor: Tensor<1>) -> Result<Vec<f32>, TrainError> {
    let data = tensor.without_autodiff().into_data_as::<f32>();
    Ok(data.iter::<f32>().collect())
}

fn restore_optimizer(path: &Path, step: u64, student: &Decoder) -> Result<AdamW, TrainError> {
    let file = TensorFile::open(path)?;
    let mut moments = Vec::new();
    for key in student.keys() {
        if file.has(&format!("{key} first")) {
            let (_, first) = file.read(&format!("{key} first"))?;
            let (_, second) = file.read(&format!("{key} second"))?;
            moments.push(Moment { key, first, second });
        }
    }
    AdamW::restore(student, step, moments).map_err(|e| TrainError::checkpoint(path, e))
}

/// A checkpoint's weights, read from the file as they are asked for.
struct CheckpointSource {
    file: TensorFile,
    spec: ModelSpec,
    keys: Vec<TensorKey>,
}

impl CheckpointSource {
    fn open(path: &Path, spec: &ModelSpec) -> Result<Self, TrainError> {
        Ok(Self { file: TensorFile::open(path)?, spec: spec.clone(), keys: TensorKey::all(spec) })
    }
}

impl WeightSource for CheckpointSource {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn keys(&self) -> &[TensorKey] {
        &self.keys
    }

    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let other = |e: TrainError| SourceError::Other { key, message: e.to_string() };
        let (shape, numbers) = self.file.read(&key.to_string()).map_err(other)?;
        Weight::from_f32(shape, &numbers).map_err(|source| SourceError::Weight { key, source })
    }
}
