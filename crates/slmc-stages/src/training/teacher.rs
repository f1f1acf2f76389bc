//! The teacher, in floats like its student or in bytes.

use burn::tensor::{Device, Tensor, TensorData};
use slmc_data::Batch;
use slmc_engine::Engine;
use slmc_ir::{Checkpoint, ModelSpec, Role, TensorKey};
use slmc_model::{Decoder, read_matrix};
use slmc_recipe::StageError;
use slmc_train::{Teacher, TrainError, TrainSettings};

use crate::{
    evaluate::{Exactness, engine_of},
    sample::in_bytes,
};

/// What a teacher computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TeacherPrecision {
    /// As its student does, on its device.
    Float,
    /// In the engine, matrices and activations in bytes.
    Bytes,
}

impl TeacherPrecision {
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::Float),
            "int8" => Ok(Self::Bytes),
            other => Err(format!("teacher_precision = `{other}`: a teacher computes in `f32` or `int8`")),
        }
    }

    /// The teacher, ready to be asked by a student on this device.
    pub fn teacher(
        self,
        checkpoint: &Checkpoint,
        settings: &TrainSettings,
        device: &Device,
    ) -> Result<Box<dyn Teacher>, StageError> {
        let failed = |e: slmc_model::LoadError| StageError::Failed(e.to_string());
        Ok(match self {
            Self::Float => {
                let decoder = Decoder::load(&*checkpoint.weights, device).map_err(failed)?;
                Box::new(decoder.with_products(settings.products()))
            }
            Self::Bytes => {
                let packed = in_bytes(checkpoint).map_err(|e| StageError::Failed(e.to_string()))?;
                let role = if checkpoint.spec().tied_head { Role::Embedding } else { Role::Head };
                let head = read_matrix(&*checkpoint.weights, TensorKey::model(role), device);
                Box::new(InEngine {
                    engine: engine_of(&packed, Exactness::FAST)?,
                    head: head.map_err(failed)?,
                    device: device.clone(),
                })
            }
        })
    }
}

/// A teacher whose blocks run in the engine. Its head is in floats: it is multiplied where the loss is.
struct InEngine {
    engine: Engine,
    head: Tensor<2>,
    device: Device,
}

impl Teacher for InEngine {
    fn spec(&self) -> &ModelSpec {
        self.engine.spec()
    }

    fn hidden(&self, batch: &Batch) -> Result<Tensor<3>, TrainError> {
        let shape = [batch.batch_size, batch.seq_len, self.spec().d_model];
        let mut hidden = Vec::with_capacity(shape.iter().product());
        let failed = |e: slmc_engine::EngineError| TrainError::Teaching(e.to_string());
        let mut session = self.engine.session(batch.seq_len).map_err(failed)?;
        for row in batch.inputs.chunks_exact(batch.seq_len) {
            session.truncate(0);
            session.read_hidden(row, &mut hidden).map_err(failed)?;
        }
        Ok(Tensor::from_data(TensorData::new(hidden, shape), &self.device))
    }

    fn head(&self) -> Tensor<2> {
        self.head.clone()
    }
}
