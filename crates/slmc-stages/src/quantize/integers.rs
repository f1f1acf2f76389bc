//! Models in whole levels with a scale for each group: rounded to the nearest, and written as a Hugging Face folder or as
//! the blocks that carry them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde_json::json;
use slmc_interop::{PackedMatrices, PackedScheme, WriteOptions, Written, write_packed_folder};
use slmc_ir::{Checkpoint, Format, Lineage, Outline, TensorKey, WeightSource};
use slmc_recipe::{Finished, QuantizeConfig, StageContext, StageError};

use super::{
    ARTEFACT, FOLDER, Quantize, layout_of, remove_left,
    scheme::Scheme,
    solved::{failed, weight_in},
    store::{Chosen, Store},
    warn_all, write,
};

/// How the matrices of a Hugging Face folder will be packed; `None` when a GGUF is made, or the settings are wrong.
pub(crate) fn folder_scheme(config: &QuantizeConfig) -> Option<PackedScheme> {
    let scheme = Scheme::parse(config.format.as_deref()?).ok()??;
    let layout = layout_of(config.layout.as_deref()?).ok()?;
    Some(scheme.packed_in(layout))
}

impl Quantize {
    /// The blocks that carry each of a scheme's matrices, and which matrices it cannot hold.
    pub(super) fn packed_by(input: &Outline, scheme: Scheme) -> (BTreeMap<TensorKey, Format>, Vec<String>) {
        let (mut packed, mut fallbacks) = (BTreeMap::new(), Vec::new());
        for &(key, _) in input.formats.iter().filter(|(key, _)| key.block.is_some()) {
            let [_, n_columns] = key.shape(&input.spec)[..] else { continue };
            match scheme.container(n_columns) {
                Some(container) => {
                    packed.insert(key, container);
                }
                None => fallbacks.push(format!(
                    "{key}: as it is instead of {}: rows of {n_columns} are not a multiple of 32",
                    scheme.name()
                )),
            }
        }
        (packed, fallbacks)
    }

    /// The format of every tensor of a model in a scheme.
    pub(super) fn assign_scheme(input: &Outline, scheme: Scheme) -> BTreeMap<TensorKey, Format> {
        let mut plan: BTreeMap<TensorKey, Format> = input.formats.iter().copied().collect();
        plan.extend(Self::packed_by(input, scheme).0);
        plan
    }

    /// Rounds to the nearest levels of a scheme.
    pub(super) fn round_scheme(
        &self,
        input: &Checkpoint,
        outline: &Outline,
        scheme: Scheme,
        context: &StageContext<'_>,
    ) -> Result<Finished, StageError> {
        let (formats, fallbacks) = Self::packed_by(outline, scheme);
        warn_all(&fallbacks, context);
        let store = Arc::new(Store::open(context.folder.join("solved"))?);
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
        let written = self.write_chosen(input, chosen, lineage, context)?;
        let report = json!({
            "method": "rtn",
            "file_bytes": written.file_bytes,
            "tensors": self.table(&written, &BTreeMap::new(), &formats),
        });
        let _ = std::fs::remove_dir_all(context.folder.join("solved"));
        Ok(Finished { artefact: self.artefact(context), report, fallbacks })
    }

    /// Writes the model with what was chosen: a scheme in a layout of Hugging Face folders, anything else as a GGUF.
    pub(super) fn write_chosen(
        &self,
        input: &Checkpoint,
        chosen: Chosen,
        lineage: Lineage,
        context: &StageContext<'_>,
    ) -> Result<Written, StageError> {
        let (Some(scheme), Some(layout)) = (self.scheme(), self.layout) else {
            return write(input, Arc::new(chosen), lineage, context);
        };
        let mut matrices = BTreeMap::new();
        for &key in chosen.formats.keys() {
            let matrix = scheme.unpack(&chosen.read(key).map_err(failed)?);
            matrices.insert(key, matrix.map_err(|e| failed(format!("{key}: {e}")))?);
        }
        remove_left(&self.artefact(context))?;
        let checkpoint = Checkpoint { lineage, ..input.clone() };
        let packed = PackedMatrices { layout, matrices: &matrices };
        let options = WriteOptions::default();
        write_packed_folder(&checkpoint, packed, &self.artefact(context), &options, context.host)
            .map_err(failed)
    }

    /// Where the result lies.
    pub(super) fn artefact(&self, context: &StageContext<'_>) -> PathBuf {
        context.folder.join(if self.layout.is_some() { FOLDER } else { ARTEFACT })
    }
}
