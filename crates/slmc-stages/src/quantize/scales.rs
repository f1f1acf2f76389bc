//! Scales of channels (AWQ, arXiv:2306.00978, section 3.2): what feeds a projection is divided by them, its columns multiplied, so
//! that rounding hurts least where most comes by. The function stays.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use slmc_compress::quant::ScaleSearch;
use slmc_interop::with_channels;
use slmc_ir::{
    BlockScales, BlockSteps, ChannelScales, Channels, Checkpoint, Format, ModelSpec, Role, ScaleSteps,
    TensorKey, Weight,
};
use slmc_recipe::StageError;

use super::{
    calibrate::{Input, Passes},
    scheme::Scheme,
    solved::{failed, normalized, weight_of},
    store::Store,
};

/// Sequences on which scales are searched: the exponents that are tried are few.
pub(crate) const SEARCHED_SEQUENCES: usize = 32;

/// Rows of a projection that are rounded in the search: as many as tell which exponent is best.
const ROWS: usize = 256;

/// What a matrix is rounded to.
#[derive(Clone, Copy)]
pub enum Nearest {
    /// A format's blocks.
    Blocks(Format),
    /// Groups of a scheme, carried by blocks of this format.
    Groups(Scheme, Format),
}

/// What each tensor is rounded to.
pub type Rounding = BTreeMap<TensorKey, Nearest>;

/// What was found for a block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Its scales.
    pub scales: BlockSteps,
    /// Its inputs, in no order.
    pub inputs: Vec<FoundInput>,
}

/// What was found for the projections that share an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FoundInput {
    /// Its mean square by channel, unscaled.
    pub squares: Vec<f32>,
    /// The projections, and what rounding each to nearest adds to the KL divergence, estimated.
    pub projections: Vec<(Role, f64)>,
}

/// The scales of all blocks; those that an earlier run has found are kept.
pub fn find_all(passes: &Passes<'_>, rounding: &Rounding, store: &Store) -> Result<Vec<Found>, StageError> {
    let n_layers = passes.checkpoint.spec().n_layers;
    let known: Vec<Option<Found>> = (0..n_layers).map(|index| store.scales(index)).collect();
    if let Some(all) = known.iter().cloned().collect() {
        return Ok(all);
    }
    passes.forward()?;
    passes.head()?;
    passes.host.begin("scale", n_layers as u64, "blocks");
    let mut all = Vec::with_capacity(n_layers);
    for (index, known) in known.into_iter().enumerate().rev() {
        let inputs = passes.back(index, known.is_none())?;
        let found = match known {
            Some(found) => found,
            None => {
                let found = find(passes, index, &inputs, rounding)?;
                store.keep_scales(index, &found)?;
                found
            }
        };
        all.push(found);
        passes.host.advance_to((n_layers - index) as u64, "");
    }
    passes.host.end();
    all.reverse();
    Ok(all)
}

/// The scales alone.
pub fn steps(found: &[Found]) -> ChannelScales {
    ChannelScales { blocks: found.iter().map(|found| found.scales.clone()).collect() }
}

/// The same function with scaled channels.
pub fn scaled(checkpoint: &Checkpoint, scales: &ChannelScales) -> Checkpoint {
    let mut channels = Channels::none(checkpoint.spec());
    channels.scale(scales);
    with_channels(checkpoint, channels)
}

/// The scales of one block. What the rows of values and ups are divided by is left out of the search: blocks and groups lie along
/// rows, and their scales follow (in `mxfp4`, whose scales are powers of two, to within one).
fn find(
    passes: &Passes<'_>,
    index: usize,
    inputs: &[Input],
    rounding: &Rounding,
) -> Result<Found, StageError> {
    let spec = passes.checkpoint.spec();
    let mut scales = BlockScales::none(spec);
    let mut found_inputs = Vec::new();
    for input in inputs {
        let first = input.rows[0].0;
        let Some(&nearest) = rounding.get(&TensorKey::block(index, first)) else { continue };
        let mut matrices = Vec::new();
        for (role, squares) in &input.rows {
            let key = TensorKey::block(index, *role);
            let shape = key.shape(spec);
            let numbers = weight_of(passes, key)?;
            let all = ArrayView2::from_shape((shape[0], shape[1]), &numbers).map_err(failed)?;
            let step = shape[0].div_ceil(ROWS);
            let picked: Vec<usize> = (step / 2..shape[0]).step_by(step).collect();
            // What a row's error costs, twice; each of these stands for several.
            let share = (shape[0] as f32 / picked.len() as f32) / passes.n_tokens() as f32;
            let costs: Vec<f32> = picked.iter().map(|&row| squares[row] * share).collect();
            matrices.push((all.select(ndarray::Axis(0), &picked), costs));
        }
        let views: Vec<(ArrayView2<'_, f32>, &[f32])> =
            matrices.iter().map(|(weight, costs)| (weight.view(), costs.as_slice())).collect();
        let hessian = normalized(&input.hessian, input.weight);
        let tied = (first == Role::AttnOutput).then(|| spec.value_channels());
        let search = ScaleSearch {
            hessian: &hessian,
            tied: tied.as_deref(),
            round: &|weight, importance| nearest.rounded(weight, importance),
            near: &|scales| ScaleSteps::nearest(scales).scales(),
        };
        let found = search.best(&views);
        let n_rows: usize = input.rows.iter().map(|(_, squares)| squares.len()).sum();
        let kl = |rows: usize| found.error / 2.0 * rows as f64 / n_rows as f64;
        found_inputs.push(FoundInput {
            squares: hessian.diagonal().to_vec(),
            projections: input.rows.iter().map(|(role, squares)| (*role, kl(squares.len()))).collect(),
        });
        match first {
            Role::Down => scales.hidden = found.scales,
            Role::AttnOutput => scales.value = of_values(&found.scales, spec),
            Role::Gate => scales.ffn = found.scales,
            _ => scales.attn = found.scales,
        }
    }
    Ok(Found { scales: scales.map(|scales| ScaleSteps::nearest(scales)), inputs: found_inputs })
}

/// Of the scales of what all heads give, those of the values.
fn of_values(scales: &[f32], spec: &ModelSpec) -> Vec<f32> {
    let mut values = vec![1.0; spec.n_kv_heads * spec.d_head];
    // All that share a value have its scale.
    spec.value_channels().into_iter().zip(scales).for_each(|(channel, &scale)| values[channel] = scale);
    values
}

impl Nearest {
    /// With scales that just cover their groups, or those of the format's plain encoder.
    pub fn plainly(self, weight: &Weight) -> Result<Weight, String> {
        match self {
            Self::Blocks(format) => slmc_blocks::encode_weight(weight, format).map_err(|e| e.to_string()),
            Self::Groups(scheme, carrier) => {
                let numbers = slmc_blocks::decode_weight(weight).map_err(|e| e.to_string())?;
                let shape = (weight.n_rows(), weight.n_columns());
                let matrix = ArrayView2::from_shape(shape, &numbers).map_err(|e| e.to_string())?;
                scheme.pack(&scheme.round(matrix), carrier)
            }
        }
    }

    /// A matrix as it will decode, with scales searched for columns of so much importance.
    fn rounded(self, weight: ArrayView2<'_, f32>, importance: &[f32]) -> Array2<f32> {
        let shape = weight.dim();
        let numbers = match self {
            Self::Groups(scheme, _) => return scheme.round_weighted(weight, importance).decode(),
            // Formats and shapes were proved when the stage was planned.
            Self::Blocks(format) => super::awq::in_blocks(weight, importance, format)
                .and_then(|packed| slmc_blocks::decode_weight(&packed).map_err(|e| e.to_string())),
        };
        let numbers = numbers.ok().and_then(|numbers| Array2::from_shape_vec(shape, numbers).ok());
        numbers.unwrap_or_else(|| weight.to_owned())
    }
}
