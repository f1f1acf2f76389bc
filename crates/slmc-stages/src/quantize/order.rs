//! Channels beside their like before they are rounded: blocks of 32 weights share a scale, and one large weight among them costs
//! all the others.

use std::sync::Arc;

use ndarray::Array2;
use rayon::prelude::*;
use slmc_compress::quant::{Reader, neighbours};
use slmc_interop::Reordered;
use slmc_ir::{BlockOrder, ChannelOrder, Checkpoint, Host, Reordering, Role, TensorKey, TokenId};
use slmc_recipe::StageError;

use super::{channel_sizes::ChannelSizes, solved::failed, store::Store};

/// Channels that share a scale in most formats.
const BLOCK: usize = 32;

/// Rows that are looked at: of all matrices that read the stream, and of each down projection. As many as tell, not more than
/// memory holds of a wide model.
const STREAM_ROWS: usize = 6144;
const HIDDEN_ROWS: usize = 512;

/// Sequences that are looked at: the channels' sizes are all that is wanted of them.
const SEQUENCES: usize = 16;

/// The model with its channels in an order that is good for rounding, and that order: the one that an earlier run has found, if
/// one has.
pub fn reordered(
    input: &Checkpoint,
    sequences: &[Vec<TokenId>],
    store: &Store,
    host: &dyn Host,
) -> Result<(Checkpoint, ChannelOrder), StageError> {
    let order = match store.order()? {
        Some(order) => order,
        None => {
            let order = order_of(input, &sequences[..SEQUENCES.min(sequences.len())], host)?;
            store.keep_order(&order)?;
            order
        }
    };
    let weights = Reordered::new(Arc::clone(&input.weights), Reordering::from(&order));
    Ok((input.with_weights(Arc::new(weights)), order))
}

fn order_of(
    input: &Checkpoint,
    sequences: &[Vec<TokenId>],
    host: &dyn Host,
) -> Result<ChannelOrder, StageError> {
    let spec = input.spec();
    let sizes = ChannelSizes::of(input, sequences, host)?;
    let stream = stream_order(input, &sizes)?;
    let hidden = (0..spec.n_layers).into_par_iter().map(|index| {
        let down =
            Sampled::of(input, TensorKey::block(index, Role::Down), HIDDEN_ROWS, &sizes.hidden[index])?;
        in_blocks(&[down])
    });
    Ok(ChannelOrder { stream, hidden: hidden.collect::<Result<_, _>>()? })
}

/// Each matrix counts by the number of its rows: relative to its size, a weight's error costs about as much in one as in another.
fn stream_order(input: &Checkpoint, sizes: &ChannelSizes) -> Result<BlockOrder, StageError> {
    let spec = input.spec();
    let mut readers = vec![(TensorKey::model(Role::Embedding), &sizes.last)];
    if !spec.tied_head {
        readers.push((TensorKey::model(Role::Head), &sizes.last));
    }
    for (index, [attn, ffn]) in sizes.stream.iter().enumerate() {
        let block = |role| TensorKey::block(index, role);
        readers.extend([Role::Query, Role::Key, Role::Value].map(|role| (block(role), attn)));
        readers.extend([Role::Gate, Role::Up].map(|role| (block(role), ffn)));
    }
    let n_rows: usize = readers.iter().map(|(key, _)| key.shape(spec)[0]).sum();
    let share = STREAM_ROWS as f64 / n_rows as f64;
    let sampled = readers.into_iter().map(|(key, sizes)| {
        let of_this = (key.shape(spec)[0] as f64 * share).ceil() as usize;
        Sampled::of(input, key, of_this, sizes)
    });
    let sampled: Vec<Sampled> = sampled.collect::<Result<_, _>>()?;
    slmc_formats::release_all();
    in_blocks(&sampled)
}

fn in_blocks(matrices: &[Sampled]) -> Result<BlockOrder, StageError> {
    let readers: Vec<Reader<'_>> = matrices
        .iter()
        .map(|Sampled { rows, costs }| Reader { rows: rows.view(), costs: costs.clone() })
        .collect();
    BlockOrder::new(neighbours(&readers, BLOCK), BLOCK).map_err(failed)
}

/// Some rows of a matrix, and what an error in each column costs; at a scale at which matrices can be compared.
struct Sampled {
    rows: Array2<f32>,
    costs: Vec<f32>,
}

impl Sampled {
    /// A column's error costs what the column sees, less what others make up for: about the root of its mean square, as the
    /// conditional variances of inputs show.
    fn of(input: &Checkpoint, key: TensorKey, n_rows: usize, sizes: &[f32]) -> Result<Self, StageError> {
        let weight = input.weights.read(key).map_err(failed)?;
        let step = weight.n_rows().div_ceil(n_rows.max(1));
        let picked: Vec<usize> = (step / 2..weight.n_rows()).step_by(step).collect();
        let n_columns = weight.n_columns();
        let numbers = slmc_blocks::decode_weight(&weight.with_rows(&picked)).map_err(failed)?;
        let mut rows = Array2::from_shape_vec((picked.len(), n_columns), numbers).map_err(failed)?;
        let mean_cost = sizes.iter().map(|&x| f64::from(x)).sum::<f64>() / n_columns as f64;
        let costs: Vec<f32> = sizes.iter().map(|&x| (f64::from(x) / mean_cost.max(1e-30)) as f32).collect();
        let squares = rows.rows().into_iter().flat_map(|row| row.to_vec().into_iter().zip(costs.clone()));
        let mean = squares.map(|(w, cost)| f64::from(w * w * cost)).sum::<f64>() / rows.len().max(1) as f64;
        let scale = if mean > 0.0 { (1.0 / mean.sqrt()) as f32 } else { 0.0 };
        rows.mapv_inplace(|w| w * scale);
        Ok(Self { rows, costs })
    }
}
