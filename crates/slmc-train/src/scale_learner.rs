//! A packed model whose scales and gains learn, levels staying as they are: the last part of EfficientQAT (Chen et al.
//! 2024, arXiv:2407.11062, section 3.3), by the teacher's distribution instead of the text.

use std::collections::BTreeMap;
use std::path::Path;

use slmc_data::Batch;
use slmc_ir::{TensorKey, Weight, WeightSource};
use slmc_kernels::AdamWStep;
use slmc_model::{AdamWHyper, Decoder};

use crate::learn::{Learn, StepFigures};
use crate::learner::{Learner, numbers};
use crate::packed::PackedTensor;
use crate::run_folder::SavedFile;
use crate::tensor_file::{self, Entry, TensorFile};
use crate::{EvalFigures, Teacher, TrainError, TrainSettings};

/// Changes and their moments in a checkpoint.
const SCALES_FILE: &str = "scales.safetensors";
const PARTS: [&str; 3] = ["change", "first", "second"];

/// A decoder made of packed tensors, and the tensors.
pub(crate) struct ScaleLearner<'t> {
    /// The student's numbers, and the teacher; its optimizer is not used.
    whole: Learner<'t>,
    tensors: Vec<PackedTensor>,
    n_steps: u64,
}

impl<'t> ScaleLearner<'t> {
    /// A packed model at the start of its run. `student` has its numbers.
    pub(crate) fn new(
        source: &dyn WeightSource,
        student: Decoder,
        teacher: Option<&'t dyn Teacher>,
        settings: &TrainSettings,
    ) -> Result<Self, TrainError> {
        let mut tensors = Vec::new();
        for &key in source.keys() {
            let weight = source.read(key)?;
            let tensor =
                PackedTensor::new(key, &weight).map_err(|e| TrainError::Packed(format!("{key}: {e}")))?;
            tensors.extend(tensor);
        }
        if tensors.iter().all(|tensor| !tensor.key.role.is_matrix()) {
            let message = "no tensor is packed in a format whose scales can learn".to_owned();
            return Err(TrainError::Packed(message));
        }
        Ok(Self { whole: Learner::new(student, teacher, settings), tensors, n_steps: 0 })
    }

    /// The changes as a checkpoint of `step` steps holds them, bit for bit.
    pub(crate) fn restore(mut self, folder: &Path, step: u64) -> Result<Self, TrainError> {
        let path = folder.join(SCALES_FILE);
        let file = TensorFile::open(&path)?;
        for tensor in &mut self.tensors {
            let read = |part: &str| file.read(&format!("{} {part}", tensor.key)).map(|(_, numbers)| numbers);
            let [change, first, second] = [read(PARTS[0])?, read(PARTS[1])?, read(PARTS[2])?];
            if [change.len(), first.len(), second.len()] != [tensor.change.len(); 3] {
                let message = format!("the scales of `{}` are of another model", tensor.key);
                return Err(TrainError::checkpoint(&path, message));
            }
            (tensor.change, tensor.moments) = (change, [first, second]);
            tensor.settle();
        }
        self.n_steps = step;
        self.put_all()?;
        Ok(self)
    }

    /// Gives the decoder the tensors' numbers.
    fn put_all(&mut self) -> Result<(), TrainError> {
        for tensor in &self.tensors {
            let numbers = tensor.numbers().map_err(|e| TrainError::Packed(format!("{}: {e}", tensor.key)))?;
            self.whole.student_mut().replace(tensor.key, numbers);
        }
        Ok(())
    }
}

impl Learn for ScaleLearner<'_> {
    type Student = BTreeMap<TensorKey, Weight>;

    fn step(
        mut self,
        batches: &[Batch],
        step: u64,
        rate: f64,
        settings: &TrainSettings,
    ) -> Result<(Self, StepFigures), TrainError> {
        let (figures, grads) = self.whole.gradients(batches, step, settings)?;
        self.n_steps += 1;
        let AdamWHyper { beta1, beta2, eps, .. } = settings.adamw();
        let step = AdamWStep {
            learning_rate: rate as f32,
            beta1,
            beta2,
            eps,
            // What decays would be the changes: scales would be drawn to where they were.
            weight_decay: 0.0,
            gradient_scale: 1.0,
            n: self.n_steps,
        };
        for tensor in &mut self.tensors {
            if let Some(gradient) = grads.get(tensor.key) {
                tensor.step(&numbers(gradient)?, step);
            }
        }
        drop(grads);
        self.put_all()?;
        Ok((self, figures))
    }

    fn evaluate(&self, batches: &[Batch], step: u64) -> Result<EvalFigures, TrainError> {
        self.whole.evaluate(batches, step)
    }

    fn save(&self, folder: &Path) -> Result<Vec<SavedFile>, TrainError> {
        let part = |i: usize| (&self.tensors[i / PARTS.len()], i % PARTS.len());
        let entries: Vec<Entry> = (0..self.tensors.len() * PARTS.len())
            .map(|i| {
                let (tensor, part) = part(i);
                (format!("{} {}", tensor.key, PARTS[part]), vec![tensor.change.len()])
            })
            .collect();
        let n_bytes = tensor_file::write(&folder.join(SCALES_FILE), &entries, |i| {
            let (tensor, part) = part(i);
            Ok(match part {
                0 => tensor.change.clone(),
                moment => tensor.moments[moment - 1].clone(),
            })
        })?;
        Ok(vec![SavedFile { name: SCALES_FILE.to_owned(), n_bytes }])
    }

    fn student(&self) -> Self::Student {
        self.tensors.iter().map(|tensor| (tensor.key, tensor.weight())).collect()
    }
}
