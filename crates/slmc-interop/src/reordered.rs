//! A model with its channels in another order.

use std::sync::Arc;

use slmc_ir::{
    Checkpoint, Format, Lineage, ModelSpec, Reordering, SourceError, TensorKey, Weight, WeightSource,
};

/// The checkpoint with its channels in the order that a model's have, where both come from one: tensor lies beside tensor.
pub fn in_order_of(checkpoint: &Checkpoint, model: &Checkpoint) -> Checkpoint {
    let order_of = |lineage: &Lineage| Reordering::of(lineage, checkpoint.spec());
    with_order(checkpoint, order_of(&model.lineage).relative_to(&order_of(&checkpoint.lineage)))
}

/// The checkpoint with its channels in the order in which they were before any stage changed it, and no word of another.
pub fn in_first_order(checkpoint: &Checkpoint) -> Checkpoint {
    let spec = checkpoint.spec();
    let order = Reordering::none(spec).relative_to(&Reordering::of(&checkpoint.lineage, spec));
    let mut first = with_order(checkpoint, order);
    first.lineage.steps.iter_mut().for_each(|step| step.channel_order = None);
    first
}

fn with_order(checkpoint: &Checkpoint, order: Reordering) -> Checkpoint {
    if order.is_none() {
        return checkpoint.clone();
    }
    checkpoint.with_weights(Arc::new(Reordered::new(Arc::clone(&checkpoint.weights), order)))
}

/// The same function: what writes a channel and what reads it agree on its new place. Whole rows and single numbers move as they
/// are stored; packed rows whose columns move are decoded.
pub struct Reordered {
    inner: Arc<dyn WeightSource>,
    order: Reordering,
}

impl Reordered {
    /// # Panics
    /// When the order is that of another shape.
    pub fn new(inner: Arc<dyn WeightSource>, order: Reordering) -> Self {
        let spec = inner.spec();
        assert_eq!(order.stream.len(), spec.d_model, "an order of the stream's channels");
        assert_eq!(order.hidden.len(), spec.n_layers, "an order for each block's MLP");
        assert!(
            order.hidden.iter().all(|hidden| hidden.len() == spec.d_ff),
            "an order of the MLP's channels"
        );
        Self { inner, order }
    }
}

impl WeightSource for Reordered {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn keys(&self) -> &[TensorKey] {
        self.inner.keys()
    }

    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        let weight = self.inner.read(key)?;
        let failed = |message: String| SourceError::Other { key, message };
        match (self.order.moves(key), weight.shape().len()) {
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

    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        let format = self.inner.format(key)?;
        let [_, columns] = self.order.moves(key);
        Ok(if columns.is_some() && !format.is_float() { Format::F32 } else { format })
    }
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
