//! Writes a Hugging Face folder.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value, json};
use slmc_formats::{AtomicDir, Existing};
use slmc_ir::{Checkpoint, Format, Host, Quantized, SpecialTokens, TensorKey};

use super::{
    CONFIG_EXTRA, TOKENIZER_CONFIG_EXTRA,
    config_write::write_config,
    shards::{MAX_SHARD_BYTES, Packed, write_weights},
    sidecar,
    tokenizer_write::tokenizer_configs,
};
use crate::{
    error::WriteError,
    finite::is_lossless,
    packed::{PackedLayout, PackedScheme, fused_roles, module_name, quantization_config},
    rearranged::in_first_order,
    write::{Formats, WriteOptions, Written, check_options, is_matrix, read_checked},
};

/// Format of matrices that were packed, when none is asked for.
const UNPACKED: Format = Format::F16;

/// Writes the checkpoint as a Hugging Face folder, which appears under its name when it is complete.
///
/// Channels that a stage has brought into another order are where they were. Packed matrices are decoded: to
/// [`WriteOptions::float`], or to f16, which is reported; those whose columns move, to f32. Norms and biases have
/// the matrices' format where that loses nothing, and f32 elsewhere.
///
/// # Errors
/// When the folder is there and not empty, a tensor cannot be read or is not finite, the family's configuration
/// has no way to say what the spec says, files cannot be written, or the host asks to stop; then no folder appears.
pub fn write_hf_folder(
    checkpoint: &Checkpoint,
    folder: &Path,
    options: &WriteOptions,
    host: &dyn Host,
) -> Result<Written, WriteError> {
    // Other tools lay such folders beside the model before, and adapters on them.
    write_shards_of(&in_first_order(checkpoint), folder, options, host, None, MAX_SHARD_BYTES)
}

/// Matrices to be packed, and in which layout.
#[derive(Clone, Copy)]
pub struct PackedMatrices<'a> {
    /// The order of the numbers.
    pub layout: PackedLayout,
    /// Projections inside blocks, all of one scheme. Those that are not named stay floats.
    pub matrices: &'a BTreeMap<TensorKey, Quantized>,
}

/// Writes the checkpoint as a Hugging Face folder with packed matrices. The others are f16, or f32 where
/// [`WriteOptions::float`] asks for it; what the checkpoint holds of the packed ones is not looked at.
///
/// # Errors
/// As [`write_hf_folder`]; and when a matrix is no projection of the model, schemes differ, the layout cannot hold a
/// matrix, or of projections that runtimes fuse (query, key, value; gate, up) some are packed and some not.
pub fn write_packed_folder(
    checkpoint: &Checkpoint,
    packed: PackedMatrices<'_>,
    folder: &Path,
    options: &WriteOptions,
    host: &dyn Host,
) -> Result<Written, WriteError> {
    if let Some(Format::Bf16) = options.float {
        return Err(WriteError::PackedFloat(Format::Bf16));
    }
    let scheme = scheme_of(checkpoint, packed)?;
    let options = WriteOptions { float: options.float.or(Some(UNPACKED)), ..options.clone() };
    let packed = scheme.map(|scheme| Packed { scheme, matrices: packed.matrices });
    write_shards_of(checkpoint, folder, &options, host, packed.as_ref(), MAX_SHARD_BYTES)
}

/// The one scheme of all matrices; `None` when there are none.
fn scheme_of(
    checkpoint: &Checkpoint,
    packed: PackedMatrices<'_>,
) -> Result<Option<PackedScheme>, WriteError> {
    let spec = checkpoint.spec();
    let mut scheme: Option<PackedScheme> = None;
    let whole_rows = packed.matrices.values().all(|matrix| matrix.n_groups() == 1);
    for (&key, matrix) in packed.matrices {
        let parts = matrix.parts();
        if key.block.is_none() || !is_matrix(key) || !checkpoint.weights.keys().contains(&key) {
            return Err(WriteError::NotPackable { key });
        }
        let (found, expected) = ([parts.rows, parts.columns], key.shape(spec));
        if found[..] != expected {
            return Err(WriteError::PackedShape { key, found, expected });
        }
        let its = PackedScheme {
            layout: packed.layout,
            bits: parts.bits,
            group_size: (!whole_rows).then_some(parts.group_size),
            symmetric: matrix.is_symmetric(),
            column_order: parts.column_order.is_some(),
        };
        let all = scheme.get_or_insert(its);
        if (its.bits, its.group_size) != (all.bits, all.group_size) {
            let words = |s: &PackedScheme| match s.group_size {
                Some(n) => format!("{} bits in groups of {n} columns", s.bits),
                None => format!("{} bits and one scale a row", s.bits),
            };
            return Err(WriteError::MixedSchemes { key, found: words(&its), expected: words(all) });
        }
        all.symmetric &= its.symmetric;
        all.column_order |= its.column_order;
    }
    check_fused(packed.matrices)?;
    Ok(scheme)
}

/// Proves that what runtimes fuse is packed alike.
fn check_fused(matrices: &BTreeMap<TensorKey, Quantized>) -> Result<(), WriteError> {
    for (key, matrix) in matrices {
        let Some(block) = key.block else { continue };
        let roles = fused_roles(key.role);
        let alike = |role| {
            let other = matrices.get(&TensorKey::block(block, role));
            other.is_some_and(|other| other.parts().column_order == matrix.parts().column_order)
        };
        if !roles.iter().all(|&role| alike(role)) {
            let roles = roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
            return Err(WriteError::Fused { block, roles });
        }
    }
    Ok(())
}

fn write_shards_of(
    checkpoint: &Checkpoint,
    folder: &Path,
    options: &WriteOptions,
    host: &dyn Host,
    packed: Option<&Packed<'_>>,
    max_shard_bytes: u64,
) -> Result<Written, WriteError> {
    check_options(options)?;
    let is_packed = |key: TensorKey| packed.is_some_and(|packed| packed.matrices.contains_key(&key));
    let (tensors, notes) = written_formats(checkpoint, options.float, is_packed)?;
    let matrices = main_format(&tensors);
    let kept = |name: &str| checkpoint.extras.get(name).and_then(Value::as_object);
    let special = checkpoint.tokenizer.as_ref().map(|files| &files.special);
    let mut config = write_config(checkpoint.spec(), matrices, special, kept(CONFIG_EXTRA))?;
    if let Some(name) = &options.name {
        config.insert("_name_or_path".to_owned(), json!(name));
    }
    if let Some(packed) = packed {
        let floats = tensors.iter().filter(|(key, _)| is_matrix(*key) && key.block.is_some());
        let floats: Vec<String> = floats.map(|(key, _)| module_name(*key)).collect();
        let has_head = !checkpoint.spec().tied_head;
        let said = quantization_config(&packed.scheme, &floats, has_head);
        config.insert("quantization_config".to_owned(), said);
    }
    let target = AtomicDir::create(folder, Existing::Refuse)?;
    let mut files = Files { folder: target.path(), n_bytes: 0 };
    files.put_json("config.json", &config)?;
    if let Some(generation) = checkpoint.generation.clone().or_else(|| special.map(generation_config)) {
        files.put_json("generation_config.json", &generation)?;
    }
    if let Some(tokenizer) = &checkpoint.tokenizer {
        let (config, map) =
            tokenizer_configs(tokenizer, checkpoint.spec().context_len, kept(TOKENIZER_CONFIG_EXTRA))?;
        files.put("tokenizer.json", tokenizer.json.as_bytes())?;
        files.put_json("tokenizer_config.json", &config)?;
        files.put_json("special_tokens_map.json", &map)?;
        if let Some(template) = &tokenizer.chat_template {
            files.put("chat_template.jinja", template.as_bytes())?;
        }
    }
    if let Some(text) = sidecar::to_text(&checkpoint.extras, &checkpoint.lineage)? {
        files.put(sidecar::FILE, text.as_bytes())?;
    }
    write_weights(checkpoint, &tensors, packed, max_shard_bytes, host, &mut files)?;
    let file_bytes = files.n_bytes;
    target.commit()?;
    Ok(Written { file_bytes, tensors, notes })
}

/// What transformers writes for a model that comes without defaults for sampling.
fn generation_config(special: &SpecialTokens) -> Value {
    let ids = [("bos_token_id", special.bos), ("eos_token_id", special.eos), ("pad_token_id", special.pad)];
    let mut config = Map::from_iter([("_from_model_config".to_owned(), json!(true))]);
    config.extend(ids.into_iter().filter_map(|(field, id)| Some((field.to_owned(), json!(id?)))));
    Value::Object(config)
}

/// The format of each tensor in the folder, and what is other than it was.
fn written_formats(
    checkpoint: &Checkpoint,
    float: Option<Format>,
    is_packed: impl Fn(TensorKey) -> bool,
) -> Result<(Formats, Vec<String>), WriteError> {
    let mut n_packed = 0;
    let mut formats = Vec::with_capacity(checkpoint.weights.keys().len());
    for &key in checkpoint.weights.keys().iter().filter(|key| !is_packed(**key)) {
        let stored = checkpoint.weights.format(key)?;
        let written = float.unwrap_or(if stored.is_float() { stored } else { UNPACKED });
        n_packed += usize::from(!stored.is_float());
        formats.push((key, written));
    }
    let matrices = main_format(&formats);
    for (key, format) in formats.iter_mut().filter(|(key, _)| !is_matrix(*key)) {
        let weight = read_checked(checkpoint, *key)?;
        *format = if is_lossless(*key, &weight, matrices)? { matrices } else { Format::F32 };
    }
    let decoded =
        format!("{n_packed} packed tensors were decoded to {UNPACKED}, as no float format was asked for");
    let notes = if n_packed > 0 && float.is_none() { vec![decoded] } else { Vec::new() };
    Ok((formats, notes))
}

/// The format of the most matrices; the one that `config.json` states.
fn main_format(formats: &[(TensorKey, Format)]) -> Format {
    let mut counts: BTreeMap<Format, usize> = BTreeMap::new();
    for (_, format) in formats.iter().filter(|(key, _)| is_matrix(*key)) {
        *counts.entry(*format).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map_or(Format::F32, |(format, _)| format)
}

/// The small files of the folder.
pub(super) struct Files<'a> {
    pub folder: &'a Path,
    pub n_bytes: u64,
}

impl Files<'_> {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).map_err(|source| WriteError::Io { path, source })?;
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    pub fn put_json(&mut self, name: &str, value: &impl serde::Serialize) -> Result<(), WriteError> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        self.put(name, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slmc_ir::{
        Activation, Biases, Family, MemorySource, ModelSpec, Part, RopeScaling, SilentHost, Weight,
    };

    use super::*;
    use crate::hf::weights::{INDEX_FILE, WEIGHTS_FILE};

    fn tiny() -> Checkpoint {
        let spec = ModelSpec {
            family: Family::Llama,
            vocab_size: 16,
            context_len: 8,
            d_model: 4,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            d_head: 2,
            d_ff: 8,
            norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            activation: Activation::Silu,
            biases: Biases::default(),
            qk_norm: false,
            tied_head: true,
        };
        let weight = |key: TensorKey| {
            let shape = key.shape(&spec);
            let numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
            (key, Weight::from_f32(shape, &numbers).unwrap())
        };
        let weights = TensorKey::all(&spec).into_iter().map(weight).collect();
        Checkpoint {
            weights: Arc::new(MemorySource::new(spec, weights).unwrap()),
            tokenizer: None,
            generation: None,
            extras: slmc_ir::Extras::new(),
            lineage: slmc_ir::Lineage::default(),
        }
    }

    #[test]
    fn shards_stay_below_their_limit_and_open_again() {
        let folder = tempfile::tempdir().unwrap();
        let (original, path) = (tiny(), folder.path().join("hf"));
        let options = WriteOptions::default();
        write_shards_of(&original, &path, &options, &SilentHost, None, 600).unwrap();
        let shards: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        assert!(shards.len() > 2, "{shards:?}");
        assert!(!path.join(WEIGHTS_FILE).exists());
        for shard in &shards {
            let file = fs::read(shard).unwrap();
            let header = slmc_formats::SafetensorsHeader::parse(&file).unwrap();
            assert!(header.tensors.iter().map(|t| t.range.len()).sum::<usize>() <= 600);
        }
        let opened = crate::open(&path).unwrap();
        for &key in original.weights.keys() {
            let (a, b) = (original.weights.read(key).unwrap(), opened.weights.read(key).unwrap());
            assert_eq!(a.bytes(), b.bytes(), "{key}");
        }
        // An index that points to the wrong shard is found out.
        let index = fs::read_to_string(path.join(INDEX_FILE)).unwrap();
        let mut index: Value = serde_json::from_str(&index).unwrap();
        let (a, b) = ("model.embed_tokens.weight", "model.norm.weight");
        assert_ne!(index["weight_map"][a], index["weight_map"][b]);
        index["weight_map"][a] = index["weight_map"][b].clone();
        fs::write(path.join(INDEX_FILE), index.to_string()).unwrap();
        let message = crate::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(a), "{message}");
    }

    #[test]
    fn a_vector_that_is_not_exact_in_the_matrices_format_stays_f32() {
        let mut checkpoint = tiny();
        let norm = TensorKey::model(slmc_ir::Role::FinalNorm);
        let mut weights: BTreeMap<TensorKey, Weight> =
            checkpoint.weights.keys().iter().map(|&k| (k, checkpoint.weights.read(k).unwrap())).collect();
        weights.insert(norm, Weight::from_f32(vec![4], &[0.1, 1.0, 1.0, 1.0]).unwrap());
        let spec = checkpoint.spec().clone();
        checkpoint = checkpoint.with_weights(Arc::new(MemorySource::new(spec, weights).unwrap()));
        let (formats, _) = written_formats(&checkpoint, Some(Format::F16), |_| false).unwrap();
        for (key, format) in formats {
            assert_eq!(format == Format::F32, key == norm, "{key}");
            assert_eq!(key.part, Part::Weight);
        }
    }
}
