//! Which format each tensor gets.

use std::collections::BTreeMap;

use slmc_compress::quant::{Choice, allocate};
use slmc_ir::{Format, Outline, Role, TensorKey};

use super::{
    solved::Wanted,
    store::{Candidate, Solved},
};

/// Projections that a runtime may fuse: one format for all of them.
const FUSED: [&[Role]; 2] = [&[Role::Query, Role::Key, Role::Value], &[Role::Gate, Role::Up]];

/// Formats worth trying under a size, by the bits they take.
const MIXED: [Format; 12] = [
    Format::Q2K,
    Format::Q3K,
    Format::Mxfp4,
    Format::Iq4Xs,
    Format::Iq4Nl,
    Format::Q4K,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5K,
    Format::Q5_1,
    Format::Q6K,
    Format::Q8_0,
];

/// What is solved for under a size: the formats that fit a tensor's rows and may be chosen within these bits on average.
pub fn mixed(outline: &Outline, bits: f64) -> Wanted {
    let matrices = outline.formats.iter().filter(|(key, _)| key.shape(&outline.spec).len() == 2);
    let wanted = matrices.map(|&(key, _)| {
        let n_columns = key.shape(&outline.spec)[1];
        let fits = |format: &Format| n_columns.is_multiple_of(format.block_weights());
        // Far from the average nothing is ever chosen; and where there is room, the coarse ones are not either.
        let is_near = |format: &Format| {
            let own = format.bits_per_weight();
            own > bits - 2.2 && own < bits + 2.2 || *format == Format::Q8_0 && bits > 5.0
        };
        (key, MIXED.into_iter().filter(fits).filter(is_near).collect::<Vec<_>>())
    });
    wanted.filter(|(_, formats)| !formats.is_empty()).collect()
}

/// Tensors that are decided together.
fn items(keys: &[TensorKey]) -> Vec<Vec<TensorKey>> {
    let mut items: Vec<Vec<TensorKey>> = Vec::new();
    for &key in keys {
        let fused = FUSED.iter().find(|roles| roles.contains(&key.role));
        let mate = items.iter_mut().find(|item| {
            fused.is_some_and(|roles| item[0].block == key.block && roles.contains(&item[0].role))
        });
        match mate {
            Some(item) => item.push(key),
            None => items.push(vec![key]),
        }
    }
    items
}

/// The formats with which the estimated divergence is least in at most `budget` bytes, and that estimate.
pub fn choose(
    solved: &BTreeMap<TensorKey, Solved>,
    budget: u64,
) -> Option<(BTreeMap<TensorKey, Format>, f64)> {
    let keys: Vec<TensorKey> = solved.keys().copied().collect();
    let items = items(&keys);
    let candidate = |key: &TensorKey, index: usize| -> &Candidate { &solved[key].candidates[index] };
    let choices: Vec<Vec<Choice>> = items
        .iter()
        .map(|item| {
            (0..solved[&item[0]].candidates.len())
                .map(|index| Choice {
                    loss: item
                        .iter()
                        .map(|key| candidate(key, index))
                        .map(|c| c.kl.unwrap_or(0.0) + c.inputs_kl.unwrap_or(0.0))
                        .sum(),
                    // Tensors begin at multiples of 32 bytes.
                    n_bytes: item.iter().map(|key| candidate(key, index).n_bytes.next_multiple_of(32)).sum(),
                })
                .collect()
        })
        .collect();
    let chosen = allocate(&choices, budget)?;
    let kl = chosen.iter().zip(&choices).map(|(&index, choices)| choices[index].loss).sum();
    let formats = items
        .iter()
        .zip(chosen)
        .flat_map(|(item, index)| item.iter().map(move |key| (*key, candidate(key, index).format)));
    Some((formats.collect(), kl))
}
