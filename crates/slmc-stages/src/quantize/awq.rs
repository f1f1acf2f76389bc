//! AWQ for a block: each input's channels scaled where what feeds them can be scaled back (norms, value rows, up rows),
//! then rounded to nearest with scales searched for what columns are multiplied by.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2};
use slmc_compress::quant::{ChannelScales, channel_scales};
use slmc_ir::{Format, ModelSpec, Part, Role, TensorKey, Weight};
use slmc_recipe::StageError;

use super::{
    calibrate::{Input, Passes},
    solved::{Wanted, failed, normalized, weight_of},
    store::{Candidate, Solved, Store},
};

/// The projections of a block, as they are solved: what scales back an input lies in another projection's rows.
pub fn solve_block(
    passes: &Passes<'_>,
    index: usize,
    inputs: &[Input],
    wanted: &Wanted,
    store: &Store,
) -> Result<Vec<Solved>, StageError> {
    let spec = passes.checkpoint.spec();
    let mut rows: BTreeMap<Role, Vec<f32>> = BTreeMap::new();
    let mut all = Vec::new();
    for input in inputs {
        let roles: Vec<Role> = input.rows.iter().map(|(role, _)| *role).collect();
        let keys: Vec<TensorKey> = roles.iter().map(|&role| TensorKey::block(index, role)).collect();
        let Some(format) = wanted.get(&keys[0]).and_then(|formats| formats.first()).copied() else {
            continue;
        };
        let mut weights = Vec::new();
        for &key in &keys {
            let shape = key.shape(spec);
            let mut weight =
                Array2::from_shape_vec((shape[0], shape[1]), weight_of(passes, key)?).map_err(failed)?;
            if let Some(divisors) = rows.get(&key.role) {
                weight.rows_mut().into_iter().zip(divisors).for_each(|(mut row, &s)| row /= s);
            }
            weights.push(weight);
        }
        // What a row's error costs, twice; rows of up and value are those of the scaled weight.
        let costs: Vec<Vec<f32>> = input
            .rows
            .iter()
            .map(|(role, squares)| {
                let divisors = rows.get(role);
                let cost = |(row, square): (usize, &f32)| {
                    square / passes.n_tokens() as f32 * divisors.map_or(1.0, |by| by[row] * by[row])
                };
                squares.iter().enumerate().map(cost).collect()
            })
            .collect();
        let views: Vec<(ArrayView2<'_, f32>, &[f32])> =
            weights.iter().zip(&costs).map(|(weight, costs)| (weight.view(), costs.as_slice())).collect();
        let hessian = normalized(&input.hessian, input.weight);
        let round = |weight: ArrayView2<'_, f32>, importance: &[f32]| rounded(weight, importance, format).1;
        let found = channel_scales(&views, &hessian, tied(roles[0], spec).as_deref(), &round);
        scale_back(passes, index, roles[0], &found, &mut rows, store)?;
        let n_rows: usize = input.rows.iter().map(|(_, rho)| rho.len()).sum();
        for (key, weight) in keys.iter().zip(&weights) {
            let scaled = Array2::from_shape_fn(weight.dim(), |(i, j)| weight[[i, j]] * found.scales[j]);
            let (packed, decoded) = rounded(scaled.view(), &found.importance, format);
            store.keep(*key, &packed)?;
            let error: f64 = scaled.iter().zip(&decoded).map(|(w, v)| f64::from(w - v).powi(2)).sum();
            let square = scaled.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().max(1e-300);
            let share = weight.nrows() as f64 / n_rows as f64;
            all.push(Solved {
                tensor: key.to_string(),
                damping: 0.0,
                couples_rows: false,
                n_dead: 0,
                candidates: vec![Candidate {
                    format,
                    kl: found.error / 2.0 * share,
                    inputs_kl: None,
                    relative_error: error / square,
                    n_bytes: packed.bytes().len() as u64,
                }],
            });
        }
    }
    Ok(all)
}

/// Channels that must scale alike: query heads that share a value head.
fn tied(role: Role, spec: &ModelSpec) -> Option<Vec<usize>> {
    let group = spec.n_heads / spec.n_kv_heads;
    let channel = |c: usize| c / spec.d_head / group * spec.d_head + c % spec.d_head;
    (role == Role::AttnOutput && group > 1).then(|| (0..spec.n_heads * spec.d_head).map(channel).collect())
}

/// Divides what feeds an input: a norm's gains, or the rows of the projection before.
fn scale_back(
    passes: &Passes<'_>,
    index: usize,
    role: Role,
    found: &ChannelScales,
    rows: &mut BTreeMap<Role, Vec<f32>>,
    store: &Store,
) -> Result<(), StageError> {
    let spec = passes.checkpoint.spec();
    let norm = match role {
        Role::Down => {
            rows.insert(Role::Up, found.scales.clone());
            return divide(passes, TensorKey::block(index, Role::Up).bias(), &found.scales, store);
        }
        Role::AttnOutput => {
            let group = spec.n_heads / spec.n_kv_heads;
            let value = |c: usize| found.scales[c / spec.d_head * group * spec.d_head + c % spec.d_head];
            let scales: Vec<f32> = (0..spec.n_kv_heads * spec.d_head).map(value).collect();
            divide(passes, TensorKey::block(index, Role::Value).bias(), &scales, store)?;
            rows.insert(Role::Value, scales);
            return Ok(());
        }
        Role::Gate => Role::FfnNorm,
        _ => Role::AttnNorm,
    };
    divide(passes, TensorKey::block(index, norm), &found.scales, store)
}

/// Keeps a vector of the model divided by scales, in f32; one that the model lacks needs nothing.
fn divide(passes: &Passes<'_>, key: TensorKey, scales: &[f32], store: &Store) -> Result<(), StageError> {
    if key.part == Part::Bias && !passes.checkpoint.spec().biases.has(key.role) {
        return Ok(());
    }
    let numbers: Vec<f32> = weight_of(passes, key)?.iter().zip(scales).map(|(x, s)| x / s).collect();
    store.keep(key, &Weight::from_f32(vec![numbers.len()], &numbers).map_err(failed)?)
}

/// A weight as the format stores it, with scales searched for columns of so much importance, and what that decodes to.
fn rounded(weight: ArrayView2<'_, f32>, importance: &[f32], format: Format) -> (Weight, Array2<f32>) {
    let (n_rows, n_columns) = weight.dim();
    let numbers: Vec<f32> = weight.iter().copied().collect();
    let n_bytes = Weight::bytes_for(&[n_rows, n_columns], format).unwrap_or(0);
    let mut bytes = vec![0; n_bytes];
    // Formats and shapes were proved when the stage was planned.
    let encoded = slmc_blocks::encode_weighted(format, &numbers, Some(importance), &mut bytes);
    let packed = encoded.ok().and_then(|()| Weight::new(vec![n_rows, n_columns], format, bytes.into()).ok());
    let packed = packed
        .unwrap_or_else(|| Weight::from_f32(vec![n_rows, n_columns], &numbers).expect("as many numbers"));
    let decoded = slmc_blocks::decode_weight(&packed).unwrap_or(numbers);
    (packed, Array2::from_shape_vec((n_rows, n_columns), decoded).expect("as many numbers"))
}
