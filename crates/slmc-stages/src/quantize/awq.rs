//! Each weight to the nearest level: plainly (RTN), or once channels were scaled ([`super::scales`]), with block and group scales
//! searched for what their columns are multiplied by (AWQ).

use std::collections::BTreeMap;

use ndarray::ArrayView2;
use rayon::prelude::*;
use slmc_compress::quant::importance_of;
use slmc_ir::{Checkpoint, Format, Host, ModelSpec, ScaleSteps, TensorKey, Weight};
use slmc_recipe::StageError;

use super::{
    scales::{Found, FoundInput, Nearest, Rounding},
    solved::failed,
    store::{Candidate, Solved, Store},
};

/// Rounds all that is to be rounded: projections whose inputs were looked at with scales searched for them, all else plainly.
pub fn round_all(
    model: &Checkpoint,
    found: &[Found],
    rounding: &Rounding,
    store: &Store,
    host: &dyn Host,
) -> Result<Vec<Solved>, StageError> {
    // Tensors of a block at a time.
    let mut parts: BTreeMap<Option<usize>, Vec<(TensorKey, Nearest)>> = BTreeMap::new();
    rounding.iter().for_each(|(&key, &nearest)| parts.entry(key.block).or_default().push((key, nearest)));
    let mut all = Vec::new();
    host.begin("round", parts.len() as u64, "blocks");
    for (done, (index, part)) in parts.into_iter().enumerate() {
        if host.stop_requested() {
            host.end();
            return Err(StageError::Interrupted("while rounding".to_owned()));
        }
        let found = index.and_then(|index| found.get(index));
        let solved = |(key, nearest): (TensorKey, Nearest)| {
            let (importance, kl) = found.and_then(|found| importance(found, key, model.spec())).unzip();
            let candidate = round(model, key, nearest, importance.as_deref(), store)?;
            Ok(Solved {
                tensor: key.to_string(),
                damping: 0.0,
                couples_rows: false,
                n_dead: 0,
                candidates: vec![Candidate { kl, ..candidate }],
            })
        };
        let solved: Result<Vec<_>, StageError> = match index {
            Some(_) => part.into_par_iter().map(solved).collect(),
            // Embedding and head are the largest of a model: one after the other.
            None => part.into_iter().map(solved).collect(),
        };
        all.extend(solved?);
        host.advance_to(done as u64 + 1, "");
    }
    host.end();
    Ok(all)
}

/// The mean square of what each column of a scaled projection is multiplied by, and what rounding it costs the model.
fn importance(found: &Found, key: TensorKey, spec: &ModelSpec) -> Option<(Vec<f32>, f64)> {
    let of = |input: &&FoundInput| input.projections.iter().any(|(role, _)| *role == key.role);
    let input = found.inputs.iter().find(of)?;
    let (_, kl) = input.projections.iter().find(|(role, _)| *role == key.role)?;
    let [_, columns] = found.scales.map(ScaleSteps::scales).factors(key, spec);
    let importance = match columns {
        Some(columns) => importance_of(&input.squares, &columns),
        None => input.squares.clone(),
    };
    Some((importance, *kl))
}

/// One matrix, kept; what it costs the model is not known here.
fn round(
    model: &Checkpoint,
    key: TensorKey,
    nearest: Nearest,
    importance: Option<&[f32]>,
    store: &Store,
) -> Result<Candidate, StageError> {
    let stored = model.weights.read(key).map_err(failed)?;
    let packed = match (nearest, importance) {
        (nearest, None) => nearest.plainly(&stored),
        (nearest, Some(importance)) => {
            let numbers = slmc_blocks::decode_weight(&stored).map_err(failed)?;
            let shape = (stored.n_rows(), stored.n_columns());
            let weight = ArrayView2::from_shape(shape, &numbers).map_err(failed)?;
            match nearest {
                Nearest::Blocks(format) => in_blocks(weight, importance, format),
                Nearest::Groups(scheme, carrier) => {
                    scheme.pack(&scheme.round_weighted(weight, importance), carrier)
                }
            }
        }
    };
    let packed = packed.map_err(|e| failed(format!("{key}: {e}")))?;
    store.keep(key, &packed)?;
    let (format, n_bytes) = (packed.format(), packed.bytes().len() as u64);
    let relative_error = relative_error(&stored, &packed).map_err(failed)?;
    slmc_formats::release(stored.bytes());
    Ok(Candidate { format, kl: None, inputs_kl: None, relative_error, n_bytes })
}

/// Rows that are compared at once.
const ROWS_AT_ONCE: usize = 8192;

/// Squared error over squares.
fn relative_error(weight: &Weight, rounded: &Weight) -> Result<f64, slmc_blocks::BlockError> {
    let (mut error, mut square) = (0.0, 0.0);
    let rows: Vec<usize> = (0..weight.n_rows()).collect();
    for rows in rows.chunks(ROWS_AT_ONCE) {
        let [asked, found] = [weight, rounded].map(|all| slmc_blocks::decode_weight(&all.with_rows(rows)));
        let (asked, found) = (asked?, found?);
        error += asked.iter().zip(&found).map(|(w, v)| f64::from(w - v).powi(2)).sum::<f64>();
        square += asked.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
    }
    Ok(error / square.max(1e-300))
}

/// A weight as the format stores it, with scales searched for columns of so much importance.
///
/// # Errors
/// In words, when its rows are no whole blocks.
pub(super) fn in_blocks(
    weight: ArrayView2<'_, f32>,
    importance: &[f32],
    format: Format,
) -> Result<Weight, String> {
    let shape = vec![weight.nrows(), weight.ncols()];
    let numbers: Vec<f32> = weight.iter().copied().collect();
    if format.is_float() {
        let weight = Weight::from_f32(shape, &numbers).map_err(|e| e.to_string())?;
        return slmc_blocks::encode_weight(&weight, format).map_err(|e| e.to_string());
    }
    let mut bytes = vec![0; Weight::bytes_for(&shape, format).map_err(|e| e.to_string())?];
    slmc_blocks::encode_weighted(format, &numbers, Some(importance), &mut bytes)
        .map_err(|e| e.to_string())?;
    Weight::new(shape, format, bytes.into()).map_err(|e| e.to_string())
}
