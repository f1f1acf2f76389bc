//! Models in whole levels with a scale for each group: rounded to the nearest, and written as a Hugging Face folder or as
//! the blocks that carry them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde_json::{Value, json};
use slmc_interop::{PackedMatrices, WriteOptions, Written, write_packed_folder};
use slmc_ir::{Checkpoint, Format, Lineage, Outline, TensorKey, WeightSource};
use slmc_recipe::{Finished, StageContext, StageError};

use super::{
    ARTEFACT, FOLDER, Quantize,
    scheme::Scheme,
    solved::{failed, weight_in},
    store::{Chosen, Solved, Store},
    warn_all, write,
};

impl Quantize {
    /// The blocks that carry a scheme's matrices, and which of them it cannot hold.
    pub(super) fn assign_scheme(
        input: &Outline,
        scheme: Scheme,
    ) -> (BTreeMap<TensorKey, Format>, Vec<String>) {
        let mut fallbacks = Vec::new();
        let plan = input.formats.iter().map(|&(key, stored)| {
            let shape = key.shape(&input.spec);
            if shape.len() != 2 || key.block.is_none() {
                return (key, stored);
            }
            let container = scheme.container(shape[1]);
            if container.is_none() {
                let (name, n) = (scheme.name(), shape[1]);
                fallbacks.push(format!("{key}: f16 instead of {name}: rows of {n} are not a multiple of 32"));
            }
            (key, container.unwrap_or(Format::F16))
        });
        (plan.collect(), fallbacks)
    }

    /// Rounds to the nearest levels of a scheme.
    pub(super) fn round_scheme(
        &self,
        input: &Checkpoint,
        outline: &Outline,
        scheme: Scheme,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let (plan, fallbacks) = Self::assign_scheme(outline, scheme);
        warn_all(&fallbacks, context);
        let store = Arc::new(Store::open(context.folder.join("solved"))?);
        let packed = plan.into_iter().filter(|(key, format)| key.block.is_some() && !format.is_float());
        let formats: BTreeMap<TensorKey, Format> = packed.collect();
        context.host.begin("round", formats.len() as u64, "tensors");
        for (done, (&key, &container)) in formats.iter().enumerate() {
            let shape = key.shape(&outline.spec);
            let numbers = weight_in(input, key)?;
            let weight = ndarray::ArrayView2::from_shape((shape[0], shape[1]), &numbers).map_err(failed)?;
            let packed = scheme.pack(&scheme.round(weight), container).map_err(failed)?;
            store.keep(key, &packed)?;
            context.host.advance_to(done as u64 + 1, "");
        }
        context.host.end();
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let chosen = Chosen { inner: Arc::clone(&input.weights), store, formats: formats.clone() };
        let written = self.write_scheme(input, chosen, scheme, lineage, context)?;
        let report = json!({
            "method": "rtn",
            "file_bytes": written.file_bytes,
            "tensors": scheme_table(&written, scheme, &formats, None),
        });
        let _ = std::fs::remove_dir_all(context.folder.join("solved"));
        Ok(Finished { artefact: self.artefact(context), report, fallbacks })
    }

    /// Writes a scheme's matrices, in a layout of Hugging Face folders or as the blocks that carry them.
    pub(super) fn write_scheme(
        &self,
        input: &Checkpoint,
        chosen: Chosen,
        scheme: Scheme,
        lineage: Lineage,
        context: &StageContext<'_>,
    ) -> Result<Written, StageError> {
        let Some(layout) = self.layout else { return write(input, Arc::new(chosen), lineage, context) };
        let mut matrices = BTreeMap::new();
        for &key in chosen.formats.keys() {
            let matrix = scheme.unpack(&chosen.read(key).map_err(failed)?);
            matrices.insert(key, matrix.map_err(|e| failed(format!("{key}: {e}")))?);
        }
        let checkpoint = Checkpoint { lineage, ..input.clone() };
        let packed = PackedMatrices { layout, matrices: &matrices };
        let options = WriteOptions::default();
        write_packed_folder(&checkpoint, packed, &self.artefact(context), &options, context.host)
            .map_err(failed)
    }

    pub(super) fn artefact(&self, context: &StageContext<'_>) -> PathBuf {
        context.folder.join(if self.layout.is_some() { FOLDER } else { ARTEFACT })
    }
}

/// The report's line for each tensor; folders list packed matrices among no formats.
pub(super) fn scheme_table(
    written: &Written,
    scheme: Scheme,
    formats: &BTreeMap<TensorKey, Format>,
    solved: Option<&BTreeMap<TensorKey, Solved>>,
) -> Vec<Value> {
    let others = written.tensors.iter().filter(|(key, _)| !formats.contains_key(key)).map(|(key, format)| {
        json!({"tensor": key.to_string(), "format": format.name(), "bits_per_weight": format.bits_per_weight()})
    });
    let matrices = formats.keys().map(|key| {
        let mut line = json!({
            "tensor": key.to_string(),
            "format": scheme.name(),
            "bits_per_weight": scheme.bits_per_weight(),
        });
        let candidate = solved.and_then(|solved| solved.get(key)?.candidates.first());
        if let Some(candidate) = candidate {
            line["relative_error"] = json!(candidate.relative_error);
            line["estimated_kl"] = json!(candidate.kl);
        }
        line
    });
    others.chain(matrices).collect()
}
