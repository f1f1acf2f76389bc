//! Channels beside their like before they are rounded: blocks of 32 weights share a scale, and one large weight among them costs
//! all the others.

use ndarray::Array2;
use rayon::prelude::*;
use slmc_compress::quant::{Reader, neighbours};
use slmc_interop::with_channels;
use slmc_ir::{BlockOrder, ChannelOrder, Channels, Checkpoint, Host, Role, TensorKey, TokenId};
use slmc_recipe::StageError;

use super::{
    places::{Place, Places},
    solved::failed,
    store::Store,
};

/// Channels that share a scale in most formats.
const BLOCK: usize = 32;

/// Rows that are looked at: of all matrices that read the stream, and of each down projection. As many as tell, not more than
/// memory holds of a wide model.
const STREAM_ROWS: usize = 6144;
const HIDDEN_ROWS: usize = 512;

/// What an input's error counts beside a weight's, both relative to their size: 8 bits round it, 4 to 5 the weight, whose error
/// others make up for.
const INPUTS: f64 = 1.0 / 16.0;

/// Sequences that are looked at, and tokens of each: the channels' sizes are all that is wanted of them.
const SEQUENCES: usize = 16;
const SEQUENCE_TOKENS: usize = 512;

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
            let tokens = sequences[0].len().min(SEQUENCE_TOKENS);
            let some: Vec<&[TokenId]> = sequences.iter().take(SEQUENCES).map(|s| &s[..tokens]).collect();
            let order = order_of(input, &some, host)?;
            store.keep_order(&order)?;
            order
        }
    };
    if !order.fits(input.spec()) {
        let message = "order.json in the run's folder is of another model: start again with --fresh";
        return Err(StageError::Input(message.to_owned()));
    }
    let mut channels = Channels::none(input.spec());
    channels.reorder(&order);
    Ok((with_channels(input, channels), order))
}

fn order_of(
    input: &Checkpoint,
    sequences: &[&[TokenId]],
    host: &dyn Host,
) -> Result<ChannelOrder, StageError> {
    let places = Places::of(input, sequences, host)?;
    let stream = stream_order(input, &places, host)?;
    let hidden = places.hidden.par_iter().enumerate().map(|(index, place)| {
        in_blocks(&sampled(input, &[TensorKey::block(index, Role::Down)], place, |_| HIDDEN_ROWS)?, host)
    });
    Ok(ChannelOrder { stream, hidden: hidden.collect::<Result<_, _>>()? })
}

/// Each matrix counts by the number of its rows: relative to its size, a weight's error costs about as much in one as in another.
fn stream_order(input: &Checkpoint, places: &Places, host: &dyn Host) -> Result<BlockOrder, StageError> {
    let spec = input.spec();
    let head = if spec.tied_head { Role::Embedding } else { Role::Head };
    let mut readers = vec![(vec![TensorKey::model(head)], &places.last)];
    for (index, [attn, ffn]) in places.stream.iter().enumerate() {
        let of = |roles: &[Role]| roles.iter().map(|&role| TensorKey::block(index, role)).collect();
        readers.push((of(&[Role::Query, Role::Key, Role::Value]), attn));
        readers.push((of(&[Role::Gate, Role::Up]), ffn));
    }
    let rows_of = |key: TensorKey| key.shape(spec)[0];
    let n_rows: usize = readers.iter().flat_map(|(keys, _)| keys).map(|&key| rows_of(key)).sum();
    let share = STREAM_ROWS as f64 / n_rows as f64;
    let mut all = Vec::new();
    for (keys, place) in readers {
        all.extend(sampled(input, &keys, place, |key| (rows_of(key) as f64 * share).ceil() as usize)?);
    }
    if !spec.tied_head {
        // It is looked up: an error is the same in every channel.
        let (key, even) = (TensorKey::model(Role::Embedding), vec![1.0; spec.d_model]);
        all.push(Sampled::rows_of(input, key, (rows_of(key) as f64 * share).ceil() as usize, &even)?);
    }
    slmc_formats::release_all();
    in_blocks(&all, host)
}

fn in_blocks(matrices: &[Sampled], host: &dyn Host) -> Result<BlockOrder, StageError> {
    let readers = matrices.iter().map(|Sampled { rows, costs }| Reader { rows: rows.view(), costs });
    let readers: Vec<Reader<'_>> = readers.collect();
    let order = neighbours(&readers, BLOCK, &|| !host.stop_requested());
    let order =
        order.ok_or_else(|| StageError::Interrupted("while looking for an order of channels".to_owned()))?;
    BlockOrder::new(order, BLOCK).map_err(failed)
}

/// Rows of a matrix, or tokens in front of some, and what an error in each column costs.
struct Sampled {
    rows: Array2<f32>,
    costs: Vec<f32>,
}

/// Some rows of each matrix at a place, and the place's tokens: runtimes round them, too, in the same blocks.
fn sampled(
    input: &Checkpoint,
    keys: &[TensorKey],
    place: &Place,
    n_rows: impl Fn(TensorKey) -> usize,
) -> Result<Vec<Sampled>, StageError> {
    let mut all = Vec::with_capacity(keys.len() + 1);
    let mut energies = vec![0.0_f32; place.sizes.len()];
    for &key in keys {
        let matrix = Sampled::rows_of(input, key, n_rows(key), &place.sizes)?;
        let rows = matrix.rows.rows();
        rows.into_iter().for_each(|row| energies.iter_mut().zip(row).for_each(|(sum, w)| *sum += w * w));
        all.push(matrix);
    }
    let n_rows: usize = all.iter().map(|matrix| matrix.rows.nrows()).sum();
    let count = INPUTS * n_rows as f64 / place.tokens.nrows().max(1) as f64;
    all.push(Sampled::new(place.tokens.clone(), energies, count));
    Ok(all)
}

impl Sampled {
    /// A column's error costs what the column sees, less what others make up for: about the root of its mean square, as the
    /// conditional variances of inputs show.
    fn rows_of(input: &Checkpoint, key: TensorKey, n_rows: usize, sizes: &[f32]) -> Result<Self, StageError> {
        let weight = input.weights.read(key).map_err(failed)?;
        let step = weight.n_rows().div_ceil(n_rows.max(1));
        let picked: Vec<usize> = (step / 2..weight.n_rows()).step_by(step).collect();
        let numbers = slmc_blocks::decode_weight(&weight.with_rows(&picked)).map_err(failed)?;
        let rows = Array2::from_shape_vec((picked.len(), sizes.len()), numbers).map_err(failed)?;
        Ok(Self::new(rows, sizes.to_vec(), 1.0))
    }

    /// At a scale at which the rows of one count as much as those of another, times `count`.
    fn new(mut rows: Array2<f32>, mut costs: Vec<f32>, count: f64) -> Self {
        let mean_cost = costs.iter().map(|&cost| f64::from(cost)).sum::<f64>() / costs.len() as f64;
        costs.iter_mut().for_each(|cost| *cost = (f64::from(*cost) / mean_cost.max(1e-30)) as f32);
        let mut sum = 0.0;
        for row in rows.rows() {
            sum += row.iter().zip(&costs).map(|(w, cost)| f64::from(w * w * cost)).sum::<f64>();
        }
        let mean = sum / rows.len().max(1) as f64;
        let scale = if mean > 0.0 { ((count / mean).sqrt()) as f32 } else { 0.0 };
        rows.mapv_inplace(|w| w * scale);
        Self { rows, costs }
    }
}
