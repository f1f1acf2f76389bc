//! AWQ: channels scaled ([`super::scales`]), then each weight to the nearest level, block and group scales searched for what their
//! columns are multiplied by.

use ndarray::ArrayView2;
use rayon::prelude::*;
use slmc_compress::quant::importance_of;
use slmc_ir::{Checkpoint, Format, Role, ScaleSteps, TensorKey, Weight};
use slmc_recipe::StageError;

use super::{
    scales::{Found, FoundInput, Nearest, Rounding},
    solved::{failed, weight_in},
    store::{Candidate, Solved, Store},
};

/// Rounds the scaled model's projections.
pub fn round_all(
    scaled: &Checkpoint,
    found: &[Found],
    rounding: &Rounding,
    store: &Store,
) -> Result<Vec<Solved>, StageError> {
    let mut all = Vec::new();
    for (index, found) in found.iter().enumerate() {
        let each =
            found.inputs.iter().flat_map(|input| input.projections.iter().map(move |one| (input, one)));
        let each: Vec<(&FoundInput, &(Role, f64))> = each.collect();
        let scales = found.scales.map(ScaleSteps::scales);
        let solved = each.into_par_iter().filter_map(|(input, &(role, kl))| {
            let key = TensorKey::block(index, role);
            let nearest = *rounding.get(&key)?;
            let [_, columns] = scales.factors(key, scaled.spec());
            let importance = match columns {
                Some(columns) => importance_of(&input.squares, &columns),
                None => input.squares.clone(),
            };
            Some(round(scaled, key, nearest, &importance, store).map(|candidate| Solved {
                tensor: key.to_string(),
                damping: 0.0,
                couples_rows: false,
                n_dead: 0,
                candidates: vec![Candidate { kl, ..candidate }],
            }))
        });
        all.extend(solved.collect::<Result<Vec<_>, StageError>>()?);
    }
    Ok(all)
}

/// One projection, kept; what it costs the model is not known here.
fn round(
    scaled: &Checkpoint,
    key: TensorKey,
    nearest: Nearest,
    importance: &[f32],
    store: &Store,
) -> Result<Candidate, StageError> {
    let shape = key.shape(scaled.spec());
    let numbers = weight_in(scaled, key)?;
    let weight = ArrayView2::from_shape((shape[0], shape[1]), &numbers).map_err(failed)?;
    let (packed, format) = match nearest {
        Nearest::Blocks(format) => (in_blocks(weight, importance, format).map_err(failed)?, format),
        Nearest::Groups(scheme, carrier) => {
            let codes = scheme.round_weighted(weight, importance);
            (scheme.pack(&codes, carrier).map_err(failed)?, carrier)
        }
    };
    store.keep(key, &packed)?;
    let decoded = slmc_blocks::decode_weight(&packed).map_err(failed)?;
    let error: f64 = numbers.iter().zip(&decoded).map(|(w, v)| f64::from(w - v).powi(2)).sum();
    let square = numbers.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().max(1e-300);
    let n_bytes = packed.bytes().len() as u64;
    Ok(Candidate { format, kl: 0.0, inputs_kl: None, relative_error: error / square, n_bytes })
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
