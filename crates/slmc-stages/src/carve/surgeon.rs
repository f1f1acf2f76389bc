//! The teacher on the table: its decoder, and the text on which cuts are measured.

use burn::tensor::{Device, Int, Tensor, TensorData};
use ndarray::Array2;
use slmc_compress::CompressError;
use slmc_ir::{Checkpoint, TokenId};
use slmc_model::Decoder;
use slmc_recipe::{CarveConfig, StageContext, StageError};

/// Sequences of one length, a few at a time.
pub(super) struct TokenBatch {
    pub(super) tokens: Vec<TokenId>,
    pub(super) n_sequences: usize,
    pub(super) seq_len: usize,
}

impl TokenBatch {
    pub(super) fn tensor(&self, device: &Device) -> Tensor<2, Int> {
        let ids: Vec<i32> = self.tokens.iter().map(|&token| token as i32).collect();
        Tensor::from_data(TensorData::new(ids, [self.n_sequences, self.seq_len]), device)
    }
}

pub(super) fn batches(sequences: &[Vec<TokenId>]) -> Vec<TokenBatch> {
    let batch = |some: &[Vec<TokenId>]| TokenBatch {
        tokens: some.concat(),
        n_sequences: some.len(),
        seq_len: some[0].len(),
    };
    sequences.chunks(4).map(batch).collect()
}

/// The teacher on the table.
pub(super) struct Surgeon<'a> {
    pub(super) input: &'a Checkpoint,
    pub(super) decoder: Decoder,
    pub(super) device: Device,
    pub(super) batches: Vec<TokenBatch>,
    pub(super) config: &'a CarveConfig,
    pub(super) context: &'a StageContext<'a>,
}
pub(super) fn failed(error: CompressError) -> StageError {
    StageError::Failed(error.to_string())
}

/// `[batch, seq, width]` as a matrix of `batch * seq` rows.
pub(super) fn rows(tensor: Tensor<3>) -> Result<Array2<f32>, StageError> {
    let [n_batch, seq_len, width] = tensor.dims();
    let numbers =
        tensor.into_data().try_into_vec::<f32>().map_err(|e| StageError::Failed(format!("{e:?}")))?;
    Array2::from_shape_vec((n_batch * seq_len, width), numbers).map_err(|e| StageError::Failed(e.to_string()))
}
