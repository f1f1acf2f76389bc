//! An adapter that learns beside a frozen decoder (LoRA, arXiv:2106.09685).

use std::collections::BTreeMap;
use std::path::Path;

use slmc_data::Batch;
use slmc_ir::{Adapter, Factors, TensorKey};
use slmc_model::{AdapterAdamW, AdapterGrads, Frozen, Rows};

use crate::batches::n_targets;
use crate::learn::{Learn, StepFigures};
use crate::run_folder::{OPTIMIZER_FILE, SavedFile};
use crate::tensor_file::{self, Entry, TensorFile};
use crate::{EvalFigures, LossFigures, TrainError, TrainSettings};

/// The factors in a checkpoint.
const ADAPTER_FILE: &str = "adapter.safetensors";
const FACTORS: [&str; 2] = ["a", "b"];
const MOMENTS: [&str; 2] = ["first", "second"];

/// A frozen decoder, and the adapter that learns.
pub(crate) struct AdapterLearner<'a> {
    base: &'a Frozen,
    adapter: Adapter,
    optimizer: AdapterAdamW,
}

impl<'a> AdapterLearner<'a> {
    /// An adapter at the start of its run.
    pub(crate) fn new(base: &'a Frozen, adapter: Adapter) -> Self {
        Self { base, adapter, optimizer: AdapterAdamW::new() }
    }

    /// The adapter and its optimizer as a checkpoint of `step` steps holds them, bit for bit. `like` says which factors
    /// there are.
    pub(crate) fn restore(
        folder: &Path,
        step: u64,
        base: &'a Frozen,
        mut like: Adapter,
    ) -> Result<Self, TrainError> {
        let path = folder.join(ADAPTER_FILE);
        let file = TensorFile::open(&path)?;
        let read = |file: &TensorFile, name: String| file.read(&name).map(|(_, numbers)| numbers);
        for (key, factors) in &mut like.factors {
            let found = Factors { a: read(&file, format!("{key} a"))?, b: read(&file, format!("{key} b"))? };
            if [found.a.len(), found.b.len()] != [factors.a.len(), factors.b.len()] {
                return Err(TrainError::checkpoint(
                    &path,
                    format!("the factors of `{key}` have another rank"),
                ));
            }
            *factors = found;
        }
        let path = folder.join(OPTIMIZER_FILE);
        let file = TensorFile::open(&path)?;
        let mut moments = BTreeMap::new();
        for &key in like.factors.keys().filter(|key| file.has(&format!("{key} a first"))) {
            let mean = |moment: &str| -> Result<Factors, TrainError> {
                let of = |factor: &str| read(&file, format!("{key} {factor} {moment}"));
                Ok(Factors { a: of("a")?, b: of("b")? })
            };
            moments.insert(key, [mean("first")?, mean("second")?]);
        }
        let optimizer = AdapterAdamW::restore(&like, step, moments);
        let optimizer = optimizer.map_err(|e| TrainError::checkpoint(&path, e))?;
        Ok(Self { base, adapter: like, optimizer })
    }

    /// The shapes of a matrix's factors A and B.
    fn shapes(&self, key: TensorKey) -> [Vec<usize>; 2] {
        let (shape, rank) = (key.shape(self.base.spec()), self.adapter.rank);
        [vec![rank, shape[1]], vec![shape[0], rank]]
    }

    fn save_factors(&self, path: &Path) -> Result<u64, TrainError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut numbers = Vec::new();
        for (&key, factors) in &self.adapter.factors {
            for ((name, shape), factor) in FACTORS.iter().zip(self.shapes(key)).zip([&factors.a, &factors.b])
            {
                entries.push((format!("{key} {name}"), shape));
                numbers.push(factor);
            }
        }
        tensor_file::write(path, &entries, |i| Ok(numbers[i].clone()))
    }

    fn save_moments(&self, path: &Path) -> Result<u64, TrainError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut numbers = Vec::new();
        for &key in self.adapter.factors.keys() {
            let Some(means) = self.optimizer.moments(key) else { continue };
            for (moment, mean) in MOMENTS.iter().zip(means) {
                for ((name, shape), mean) in FACTORS.iter().zip(self.shapes(key)).zip([&mean.a, &mean.b]) {
                    entries.push((format!("{key} {name} {moment}"), shape));
                    numbers.push(mean);
                }
            }
        }
        tensor_file::write(path, &entries, |i| Ok(numbers[i].clone()))
    }
}

/// A batch as the frozen decoder takes it.
fn rows(batch: &Batch) -> Rows<'_> {
    Rows {
        inputs: &batch.inputs,
        targets: &batch.targets,
        mask: batch.loss_mask.as_deref(),
        starts: batch.starts.as_deref(),
        seq: batch.seq_len,
    }
}

impl Learn for AdapterLearner<'_> {
    type Student = Adapter;

    fn step(
        mut self,
        batches: &[Batch],
        step: u64,
        rate: f64,
        settings: &TrainSettings,
    ) -> Result<(Self, StepFigures), TrainError> {
        let n_all: usize = batches.iter().map(n_targets).sum();
        let mut loss = 0.0;
        let mut grads = AdapterGrads::default();
        for batch in batches.iter().filter(|batch| n_targets(batch) > 0) {
            let share = n_targets(batch) as f64 / n_all as f64;
            let (part, part_grads) = self.base.gradients(&self.adapter, rows(batch), settings.recompute);
            loss += f64::from(part) * share;
            grads.accumulate(part_grads, share as f32);
        }
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step, what: format!("the loss ({loss})") });
        }
        let grad_norm = match settings.clip_norm {
            0.0 => grads.norm(),
            max_norm => grads.clip(max_norm as f32),
        };
        if !grad_norm.is_finite() {
            let key = grads.first_not_finite();
            let what =
                key.map_or("the gradient's norm".to_owned(), |key| format!("the gradient beside `{key}`"));
            return Err(TrainError::NotFinite { step, what });
        }
        self.optimizer.step(&mut self.adapter, &grads, rate as f32, settings.adamw());
        let losses = LossFigures { loss, ..LossFigures::default() };
        Ok((self, StepFigures { losses, grad_norm: f64::from(grad_norm) }))
    }

    fn evaluate(&self, batches: &[Batch], step: u64) -> Result<EvalFigures, TrainError> {
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in batches {
            for row in self.base.row_losses(Some(&self.adapter), rows(batch)) {
                sum += row.nll;
                tokens += row.n_targets;
            }
        }
        let nll = sum / tokens as f64;
        if !nll.is_finite() {
            return Err(TrainError::NotFinite { step, what: format!("the held-out loss ({nll})") });
        }
        Ok(EvalFigures { nll, perplexity: nll.exp(), tokens })
    }

    fn save(&self, folder: &Path) -> Result<Vec<SavedFile>, TrainError> {
        let factors = self.save_factors(&folder.join(ADAPTER_FILE))?;
        let moments = self.save_moments(&folder.join(OPTIMIZER_FILE))?;
        let file = |name: &str, n_bytes| SavedFile { name: name.to_owned(), n_bytes };
        Ok(vec![file(ADAPTER_FILE, factors), file(OPTIMIZER_FILE, moments)])
    }

    fn student(&self) -> Adapter {
        self.adapter.clone()
    }
}
