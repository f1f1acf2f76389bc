//! The safetensors of a Hugging Face folder: one file, or shards and their index.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use slmc_formats::{SafetensorsHeader, ShardIndex, TypedHeader, TypedTensorInfo, map_file};
use slmc_ir::{ModelSpec, TensorKey, Weight};

use crate::{
    error::{At as _, OpenError, OpenFault, TensorError, shorten},
    names::{hf_key, is_hf_buffer},
    packed::Module,
};

pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Every tensor of the folder, as slices of the mapped files.
pub(crate) fn map_weights(folder: &Path, spec: &ModelSpec) -> Result<BTreeMap<TensorKey, Weight>, OpenError> {
    let mut found = BTreeMap::new();
    each_file(folder, |path| add_tensors(path, spec, &mut found))?;
    Ok(found)
}

/// A packed folder's float tensors, and those that stand for matrices.
pub(crate) type PackedTensors = (BTreeMap<TensorKey, Weight>, BTreeMap<TensorKey, Module>);

/// Every tensor of a packed folder, as slices of the mapped files.
pub(crate) fn map_packed_weights(folder: &Path, spec: &ModelSpec) -> Result<PackedTensors, OpenError> {
    let mut found = PackedTensors::default();
    each_file(folder, |path| {
        let file: Bytes = map_file(path).at(path)?;
        let header = TypedHeader::parse(&file).at(path)?;
        let mut names = Vec::with_capacity(header.tensors.len());
        for tensor in header.tensors {
            add_packed_tensor(&tensor, &file, spec, &mut found).at(path)?;
            names.push(tensor.name);
        }
        names.sort_unstable();
        Ok(names)
    })?;
    Ok(found)
}

fn add_packed_tensor(
    tensor: &TypedTensorInfo,
    file: &Bytes,
    spec: &ModelSpec,
    (floats, modules): &mut PackedTensors,
) -> Result<(), TensorError> {
    let shown = || shorten(&tensor.name);
    let bytes = file.slice(tensor.range.clone());
    // What belongs to a packed matrix is named after its module.
    let part = tensor.name.rsplit_once('.').filter(|(_, suffix)| !["weight", "bias"].contains(suffix));
    if let Some((module, suffix)) = part.filter(|_| !is_hf_buffer(&tensor.name)) {
        let key = hf_key(&format!("{module}.weight")).ok_or_else(|| TensorError::Unknown(shown()))?;
        let fresh = modules.entry(key).or_default().add(suffix, tensor, bytes);
        return if fresh { Ok(()) } else { Err(TensorError::Twice(shown())) };
    }
    let Some(key) = wanted_key(&tensor.name, spec)? else { return Ok(()) };
    let Some(format) = tensor.dtype.format() else {
        return Err(TensorError::Type { name: shown(), found: tensor.dtype.name(), expected: "floats" });
    };
    let weight = Weight::new(tensor.shape.clone(), format, bytes)
        .map_err(|source| TensorError::Weight { name: shown(), source })?;
    match floats.insert(key, weight) {
        None => Ok(()),
        Some(_) => Err(TensorError::Twice(shown())),
    }
}

/// Hands every file to `add`, which returns the names in it, sorted; and holds the shard index to them.
fn each_file(
    folder: &Path,
    mut add: impl FnMut(&Path) -> Result<Vec<String>, OpenError>,
) -> Result<(), OpenError> {
    let single = folder.join(WEIGHTS_FILE);
    if single.is_file() {
        add(&single)?;
        return Ok(());
    }
    let index_path = folder.join(INDEX_FILE);
    if !index_path.is_file() {
        return Err(no_weights(folder));
    }
    let index = ShardIndex::parse(&map_file(&index_path).at(&index_path)?).at(&index_path)?;
    for shard in index.shards() {
        let path = folder.join(shard);
        let names = add(&path)?;
        let stated = index.weight_map.iter().filter(|(_, file)| *file == shard).map(|(name, _)| name);
        if let Some(name) = stated.into_iter().find(|name| names.binary_search(name).is_err()) {
            let fault = TensorError::NotInShard { name: shorten(name), shard: shorten(shard) };
            return Err(OpenFault::from(fault).at(&index_path));
        }
    }
    Ok(())
}

/// Adds a file's tensors; returns the names in it, sorted.
fn add_tensors(
    path: &Path,
    spec: &ModelSpec,
    found: &mut BTreeMap<TensorKey, Weight>,
) -> Result<Vec<String>, OpenError> {
    let file: Bytes = map_file(path).at(path)?;
    let header = SafetensorsHeader::parse(&file).at(path)?;
    let mut names = Vec::with_capacity(header.tensors.len());
    for tensor in header.tensors {
        let shown = || shorten(&tensor.name);
        if let Some(key) = wanted_key(&tensor.name, spec).at(path)? {
            let weight = Weight::new(tensor.shape, tensor.format, file.slice(tensor.range))
                .map_err(|source| TensorError::Weight { name: shown(), source })
                .at(path)?;
            if found.insert(key, weight).is_some() {
                return Err(OpenFault::from(TensorError::Twice(shown())).at(path));
            }
        }
        names.push(tensor.name);
    }
    names.sort_unstable();
    Ok(names)
}

/// The key of a tensor; `None` for one that the model computes without.
fn wanted_key(name: &str, spec: &ModelSpec) -> Result<Option<TensorKey>, TensorError> {
    if is_hf_buffer(name) {
        return Ok(None);
    }
    let key = hf_key(name).ok_or_else(|| TensorError::Unknown(shorten(name)))?;
    // With a tied head transformers uses the embedding, whatever else the file holds.
    let unused = spec.tied_head && key.role == slmc_ir::Role::Head;
    Ok((!unused).then_some(key))
}

fn no_weights(folder: &Path) -> OpenError {
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"];
    match pickles.into_iter().find(|name| folder.join(name).is_file()) {
        Some(name) => OpenFault::Pickle(name.to_owned()).at(folder),
        None => OpenFault::NoWeights.at(folder),
    }
}
