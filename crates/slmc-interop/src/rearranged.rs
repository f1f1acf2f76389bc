//! A model with other channels: in another order, larger or smaller. The same function.

use std::sync::Arc;

use slmc_ir::{Channels, Checkpoint, Format, ModelSpec, SourceError, TensorKey, Weight, WeightSource};

/// The checkpoint with its channels as a model's are, where both come from one: tensor lies beside tensor.
pub fn with_channels_of(checkpoint: &Checkpoint, model: &Checkpoint) -> Checkpoint {
    let of = |lineage| Channels::of(lineage, checkpoint.spec());
    with_channels(checkpoint, of(&model.lineage).relative_to(&of(&checkpoint.lineage)))
}

/// The checkpoint with its channels in the order in which they were before any stage changed it, and no word of another. What was
/// scaled stays so.
pub fn in_first_order(checkpoint: &Checkpoint) -> Checkpoint {
    let spec = checkpoint.spec();
    let now = Channels::of(&checkpoint.lineage, spec);
    if now.order.is_none() {
        return checkpoint.clone();
    }
    let mut way = now.in_first_order().relative_to(&now);
    // They are the same channels; what rounding left of one times the other is not a scale.
    way.scales = Channels::none(spec).scales;
    let mut first = with_channels(checkpoint, way);
    // Where the channels of each step's scales stood first.
    let mut before = Channels::none(spec);
    for step in &mut first.lineage.steps {
        if let Some(scales) = step.channel_scales.as_mut().filter(|scales| scales.fits(spec)) {
            let back = Channels::none(spec).order.relative_to(&before.order);
            for (block, hidden) in scales.blocks.iter_mut().zip(&back.hidden) {
                block.attn = block.attn.moved(&back.stream);
                block.ffn = block.ffn.moved(&back.stream);
                block.hidden = block.hidden.moved(hidden);
            }
        }
        if let Some(order) = step.channel_order.take() {
            before.reorder(&order);
        }
    }
    first
}

/// The checkpoint with these channels, relative to those that it has.
pub fn with_channels(checkpoint: &Checkpoint, channels: Channels) -> Checkpoint {
    if channels.is_none() {
        return checkpoint.clone();
    }
    checkpoint.with_weights(Arc::new(Rearranged::new(Arc::clone(&checkpoint.weights), channels)))
}

/// The same function: what writes a channel and what reads it agree on its new place and size. Whole rows and single numbers move as
/// they are stored; what is scaled, and packed rows whose columns move, are decoded.
pub struct Rearranged {
    inner: Arc<dyn WeightSource>,
    channels: Channels,
}

impl Rearranged {
    /// # Panics
    /// When the channels are those of another shape.
    pub fn new(inner: Arc<dyn WeightSource>, channels: Channels) -> Self {
        let (spec, order) = (inner.spec(), &channels.order);
        assert_eq!(order.stream.len(), spec.d_model, "an order of the stream's channels");
        assert_eq!(order.hidden.len(), spec.n_layers, "an order for each block's MLP");
        assert!(
            order.hidden.iter().all(|hidden| hidden.len() == spec.d_ff),
            "an order of the MLP's channels"
        );
        assert_eq!(channels.scales.len(), spec.n_layers, "scales for each block");
        Self { inner, channels }
    }

    fn moved(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let weight = self.inner.read(key)?;
        let failed = |message: String| SourceError::Other { key, message };
        match (self.channels.moves(key), weight.shape().len()) {
            ([None, None], _) => Ok(weight),
            // A vector is one row.
            ([Some(order), None], 1) => with_columns(&weight, order).map_err(failed),
            ([rows, columns], _) => {
                let weight = match rows {
                    Some(rows) => weight.with_rows(rows),
                    None => weight,
                };
                match columns {
                    Some(columns) => with_columns(&weight, columns).map_err(failed),
                    None => Ok(weight),
                }
            }
        }
    }
}

impl WeightSource for Rearranged {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn keys(&self) -> &[TensorKey] {
        self.inner.keys()
    }

    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let weight = self.moved(key)?;
        match self.channels.factors(key, self.spec()) {
            [None, None] => Ok(weight),
            factors => scaled(&weight, factors).map_err(|message| SourceError::Other { key, message }),
        }
    }

    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        let format = self.inner.format(key)?;
        let [_, columns] = self.channels.moves(key);
        let is_scaled = self.channels.factors(key, self.spec()) != [None, None];
        Ok(if is_scaled || columns.is_some() && !format.is_float() { Format::F32 } else { format })
    }
}

/// Rows and columns times these.
fn scaled(weight: &Weight, [rows, columns]: [Option<Vec<f32>>; 2]) -> Result<Weight, String> {
    let mut numbers = slmc_blocks::decode_weight(weight).map_err(|e| e.to_string())?;
    // A vector's numbers are its rows.
    let n_columns = if weight.shape().len() == 1 { 1 } else { weight.n_columns() };
    if let Some(factors) = rows {
        let rows = numbers.chunks_exact_mut(n_columns.max(1)).zip(factors);
        rows.for_each(|(row, factor)| row.iter_mut().for_each(|x| *x *= factor));
    }
    if let Some(factors) = columns {
        let rows = numbers.chunks_exact_mut(n_columns.max(1));
        rows.for_each(|row| row.iter_mut().zip(&factors).for_each(|(x, factor)| *x *= factor));
    }
    Weight::from_f32(weight.shape().to_vec(), &numbers).map_err(|e| e.to_string())
}

/// The columns in another order.
fn with_columns(weight: &Weight, order: &[usize]) -> Result<Weight, String> {
    let width = match weight.format() {
        Format::F32 => 4,
        Format::F16 | Format::Bf16 => 2,
        _ => {
            let numbers = slmc_blocks::decode_weight(weight).map_err(|e| e.to_string())?;
            let decoded = Weight::from_f32(weight.shape().to_vec(), &numbers).map_err(|e| e.to_string())?;
            return with_columns(&decoded, order);
        }
    };
    let mut bytes = Vec::with_capacity(weight.bytes().len());
    for row in weight.bytes().chunks_exact(order.len() * width) {
        for &column in order {
            bytes.extend_from_slice(&row[column * width..(column + 1) * width]);
        }
    }
    Weight::new(weight.shape().to_vec(), weight.format(), bytes.into()).map_err(|e| e.to_string())
}
