//! The best mixture of formats under a size.

use std::{collections::BTreeMap, sync::Arc};

use slmc_interop::Written;
use slmc_ir::{Format, Lineage, Outline, TensorKey};
use slmc_recipe::{Rejection, StageContext, StageError};

use super::{
    Goal, Quantize,
    choice::choose,
    solved::Wanted,
    store::{Chosen, Solved},
    way::Material,
};

impl Quantize {
    /// That the smallest formats fit, before anything is computed.
    pub(super) fn check_size(&self, outline: &Outline, wanted: &Wanted) -> Result<(), Rejection> {
        let limit = match self.goal {
            Goal::Format(_) | Goal::Integers(_) => return Ok(()),
            Goal::FileBytes(bytes) => bytes,
            Goal::BitsPerWeight(bits) => (bits * outline.spec.n_parameters() as f64 / 8.0) as u64,
        };
        let least = |&(key, stored): &(TensorKey, Format)| -> u64 {
            let n_weights = key.shape(&outline.spec).iter().product();
            let formats = wanted.get(&key).map_or(&[][..], Vec::as_slice);
            let bytes = |format: Format| format.bytes_for(n_weights).unwrap_or(usize::MAX) as u64;
            formats.iter().map(|&format| bytes(format)).min().unwrap_or_else(|| bytes(stored))
        };
        let least: u64 = outline.formats.iter().map(least).sum();
        if least <= limit {
            return Ok(());
        }
        Err(Rejection(format!(
            "the size that was asked for is too small: {:.1} MB, and the smallest formats that are tried take {:.1} MB",
            limit as f64 / 1e6,
            least as f64 / 1e6
        )))
    }

    /// Writes the best choice that keeps to the goal; what the file holds besides tensors is known once it is written.
    pub(super) fn write_best(
        &self,
        outline: &Outline,
        Material { before, inner, solved, store, .. }: &Material,
        lineage: &Lineage,
        context: &StageContext<'_>,
    ) -> Result<(Written, BTreeMap<TensorKey, Format>, f64), StageError> {
        let rest: u64 = outline.n_bytes() - outline_bytes(outline, solved);
        let n_weights = outline.spec.n_parameters() as f64;
        let (mut budget, limit) = match self.goal {
            Goal::Format(_) | Goal::Integers(_) => (u64::MAX >> 16, u64::MAX),
            Goal::FileBytes(bytes) => (bytes.saturating_sub(rest), bytes),
            Goal::BitsPerWeight(bits) => (((bits * n_weights / 8.0) as u64).saturating_sub(rest), u64::MAX),
        };
        loop {
            let (formats, kl) = choose(solved, budget).ok_or_else(|| {
                let least: u64 = solved.values().filter_map(|s| s.candidates.iter().map(|c| c.n_bytes).min()).sum();
                StageError::Input(format!(
                    "the size that was asked for is too small: the smallest formats that are tried take {:.1} MB beside {:.1} MB \
                     of tokenizer and norms",
                    least as f64 / 1e6,
                    rest as f64 / 1e6
                ))
            })?;
            let chosen =
                Chosen { inner: Arc::clone(inner), store: Arc::clone(store), formats: formats.clone() };
            let written = self.write_chosen(before, chosen, lineage.clone(), context)?;
            if written.file_bytes <= limit {
                return Ok((written, formats, kl));
            }
            let excess = written.file_bytes - limit;
            if budget < excess {
                let message =
                    "the size that was asked for is too small for what the file holds beside its matrices";
                return Err(StageError::Input(message.to_owned()));
            }
            budget -= excess;
        }
    }
}

/// Bytes that the tensors to be solved take as they are.
fn outline_bytes(outline: &Outline, solved: &BTreeMap<TensorKey, Solved>) -> u64 {
    let those = outline.formats.iter().filter(|(key, _)| solved.contains_key(key));
    those
        .filter_map(|(key, format)| format.bytes_for(key.shape(&outline.spec).iter().product()))
        .map(|n| n as u64)
        .sum()
}
