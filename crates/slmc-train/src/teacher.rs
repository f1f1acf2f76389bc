//! Whom a student learns from, as far as the loop cares.

use burn::tensor::{Int, Tensor, TensorData};
use slmc_data::Batch;
use slmc_ir::ModelSpec;
use slmc_model::Decoder;

use crate::TrainError;

/// A model whose distributions are learned from. Its tensors are on the student's device, without autodiff; whatever it
/// computes with, the same batch gives the same bits.
pub trait Teacher {
    /// Its shape.
    fn spec(&self) -> &ModelSpec;

    /// What its head multiplies after each of a batch's inputs, `[batch_size, seq_len, d_model]`.
    fn hidden(&self, batch: &Batch) -> Result<Tensor<3>, TrainError>;

    /// The head, `[vocab_size, d_model]`.
    fn head(&self) -> Tensor<2>;
}

/// A decoder like the student, without autodiff.
impl Teacher for Decoder {
    fn spec(&self) -> &ModelSpec {
        Self::spec(self)
    }

    fn hidden(&self, batch: &Batch) -> Result<Tensor<3>, TrainError> {
        Ok(Self::hidden(self, input_ids(batch, self)))
    }

    fn head(&self) -> Tensor<2> {
        Self::head(self)
    }
}

/// A batch's inputs, `[batch_size, seq_len]`, on the decoder's device.
pub(crate) fn input_ids(batch: &Batch, decoder: &Decoder) -> Tensor<2, Int> {
    let ids: Vec<i32> = batch.inputs.iter().map(|id| id.cast_signed()).collect();
    Tensor::from_data(TensorData::new(ids, [batch.batch_size, batch.seq_len]), &decoder.device())
}
