//! Which channels go, and how the others make up for them.

use burn::tensor::{Tensor, TensorData};
use ndarray::Array2;
use slmc_compress::{ChannelStats, GramStats, LayerStats, channel_scores, compensate, keep_top};
use slmc_ir::{Role, TensorKey};
use slmc_recipe::StageError;

use super::surgeon::{Surgeon, failed, rows};

/// A block's MLP made narrower.
pub(super) struct Narrowed {
    pub(super) kept: Vec<usize>,
    pub(super) down: Array2<f32>,
    /// Share of the projection's output that is lost, as mean squares; unknown where nothing was refitted.
    pub(super) output_error: Option<f64>,
}

/// Damping of the refit, as a share of the mean diagonal of the activations' Gram matrix.
const DAMPING: f64 = 0.01;

impl Surgeon<'_> {
    /// Chooses the channels of each kept block, with the blocks before it already narrowed.
    pub(super) fn narrow(&self, kept: &[usize], d_ff: usize) -> Result<Vec<Narrowed>, StageError> {
        let host = self.context.host;
        host.begin("carve: width", kept.len() as u64, "blocks");
        let mut hidden: Vec<Tensor<3>> = Vec::new();
        for batch in &self.batches {
            hidden.push(self.decoder.embed(batch.tensor(&self.device)));
        }
        let mut narrowed = Vec::new();
        for (done, &index) in kept.iter().enumerate() {
            if host.stop_requested() {
                return Err(StageError::Interrupted(
                    "nothing is lost but this stage's measurements".to_owned(),
                ));
            }
            narrowed.push(self.narrow_block(index, d_ff, &mut hidden)?);
            host.advance_to(done as u64 + 1, "");
        }
        host.end();
        Ok(narrowed)
    }

    fn narrow_block(
        &self,
        index: usize,
        d_ff: usize,
        hidden: &mut [Tensor<3>],
    ) -> Result<Narrowed, StageError> {
        let down = self.down_projection(index)?;
        let mut channels = ChannelStats::empty(down.ncols());
        let mut gram = GramStats::empty(down.ncols());
        let mut products = Vec::new();
        for hidden in hidden.iter_mut() {
            let (out, captured) = self.decoder.block_captured(index, hidden.clone());
            let product = rows(captured.ffn_product.clone())?;
            channels.observe(product.view());
            if self.config.compensate {
                gram.observe(product.view());
            }
            products.push(captured.ffn_product);
            *hidden = out;
        }
        let kept = keep_top(&channel_scores(&channels, down.view()).map_err(failed)?, d_ff);
        let (new_down, output_error) = if self.config.compensate {
            let refit = compensate(down.view(), &gram, &kept, DAMPING).map_err(failed)?;
            if refit.damping > DAMPING {
                self.context
                    .host
                    .warn(&format!("block {index}: the refit needed a damping of {:.3}", refit.damping));
            }
            (refit.weight, Some(refit.error / refit.energy.max(f64::MIN_POSITIVE)))
        } else {
            (down.select(ndarray::Axis(1), &kept), None)
        };
        self.replay(&down, &new_down, &kept, &products, hidden);
        Ok(Narrowed { kept, down: new_down, output_error })
    }

    fn down_projection(&self, index: usize) -> Result<Array2<f32>, StageError> {
        let key = TensorKey::block(index, Role::Down);
        let weight = self.input.weights.read(key).map_err(|e| StageError::Failed(e.to_string()))?;
        let numbers =
            slmc_blocks::decode_weight(&weight).map_err(|e| StageError::Failed(format!("{key}: {e}")))?;
        let shape = (weight.n_rows(), weight.n_columns());
        Array2::from_shape_vec(shape, numbers).map_err(|e| StageError::Failed(format!("{key}: {e}")))
    }

    /// Moves the residual stream to what the narrowed block makes of it: the difference of the down projections, applied.
    fn replay(
        &self,
        down: &Array2<f32>,
        new_down: &Array2<f32>,
        kept: &[usize],
        products: &[Tensor<3>],
        hidden: &mut [Tensor<3>],
    ) {
        let mut change = -down.t().to_owned();
        for (column, &channel) in kept.iter().enumerate() {
            let mut row = change.row_mut(channel);
            row += &new_down.column(column);
        }
        let shape = [change.nrows(), change.ncols()];
        let numbers: Vec<f32> = change.iter().copied().collect();
        let change = Tensor::<2>::from_data(TensorData::new(numbers, shape), &self.device);
        for (hidden, product) in hidden.iter_mut().zip(products) {
            *hidden = hidden.clone() + product.clone().matmul(change.clone().unsqueeze());
        }
    }
}
