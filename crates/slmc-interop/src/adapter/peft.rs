//! PEFT's folders: `adapter_config.json` and `adapter_model.safetensors` with `base_model.model.MODULE.lora_A.weight`
//! `[r, in]` and `….lora_B.weight` `[out, r]` (peft `src/peft/utils/save_and_load.py`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
};

use slmc_formats::{AtomicDir, Existing, PlannedSafeTensor, SafetensorsHeader, SafetensorsWriter, map_file};
use slmc_ir::{Adapter, Channels, Checkpoint, Factors, Format, ModelSpec, TensorKey, Weight};

use super::{
    config,
    sidecar::{AdapterAbout, SIDECAR_FILE},
};
use crate::{
    error::{At as _, OpenError, OpenFault, TensorError, WriteError, shorten},
    files::{read_object, read_text},
    names::{hf_key, hf_name},
};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// Opens an adapter's folder for a model whose channels may have become others since: an adapter's folder is one for the model's, which
/// has its channels in their first order, and those that were scaled as they are, so that both go together in PEFT.
///
/// # Errors
/// As [`open_adapter`].
pub fn open_adapter_for(folder: &Path, base: &Checkpoint) -> Result<(Adapter, AdapterAbout), OpenError> {
    let spec = base.spec();
    let (adapter, about) = open_adapter(folder, Some(spec))?;
    let channels = Channels::of(&base.lineage, spec);
    // Another program says nothing of the model: an adapter of its making is one of the folder.
    let is_ours = !about.lineage.steps.is_empty();
    let made_for = if is_ours { Channels::of(&about.lineage, spec) } else { channels.clone() };
    Ok((adapter.with_channels(&channels.relative_to(&made_for.in_first_order()), spec), about))
}

/// Opens an adapter's folder; with a spec, for a model of that spec.
///
/// # Errors
/// When there is no adapter, it is damaged, does something other than plain LoRA, or belongs to another model.
pub fn open_adapter(folder: &Path, spec: Option<&ModelSpec>) -> Result<(Adapter, AdapterAbout), OpenError> {
    let config_path = folder.join(CONFIG_FILE);
    let found = read_object(&config_path)?.ok_or_else(|| OpenFault::NoAdapter.at(folder))?;
    let (rank, alpha) = config::read(&found).at(&config_path)?;
    let path = folder.join(WEIGHTS_FILE);
    if !path.is_file() {
        return Err(OpenFault::NoAdapter.at(folder));
    }
    let file = map_file(&path).at(&path)?;
    let header = SafetensorsHeader::parse(&file).at(&path)?;
    let mut factors: BTreeMap<TensorKey, Factors> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for tensor in header.tensors {
        let shown = || shorten(&tensor.name);
        let (key, is_a) = factor_of(&tensor.name).ok_or_else(|| TensorError::Unknown(shown())).at(&path)?;
        if !seen.insert((key, is_a)) {
            return Err(OpenFault::from(TensorError::Twice(shown())).at(&path));
        }
        let expected = match (spec.map(|spec| key.shape(spec)), is_a, &tensor.shape[..]) {
            (Some(shape), true, _) if shape.len() == 2 => vec![rank, shape[1]],
            (Some(shape), false, _) if shape.len() == 2 => vec![shape[0], rank],
            (_, true, &[_, d_in]) => vec![rank, d_in],
            (_, false, &[d_out, _]) => vec![d_out, rank],
            _ => return Err(OpenFault::from(TensorError::Unknown(shown())).at(&path)),
        };
        if tensor.shape != expected {
            let fault = TensorError::Shape { name: shown(), expected, found: tensor.shape };
            return Err(OpenFault::from(fault).at(&path));
        }
        let weight = Weight::new(tensor.shape.clone(), tensor.format, file.slice(tensor.range.clone()))
            .map_err(|source| TensorError::Weight { name: shown(), source })
            .at(&path)?;
        // Floats decode whatever they hold; what is not finite is found below.
        let numbers = slmc_blocks::decode_weight(&weight).unwrap_or_default();
        let entry = factors.entry(key).or_default();
        if is_a { entry.a = numbers } else { entry.b = numbers }
    }
    let adapter = Adapter { rank, alpha, factors };
    match spec {
        Some(spec) => adapter.check(spec).at(&path)?,
        None => adapter.check_alone().at(&path)?,
    }
    let about_path = folder.join(SIDECAR_FILE);
    let about = match read_text(&about_path)? {
        Some(text) => serde_json::from_str(&text).at(&about_path)?,
        None => AdapterAbout::default(),
    };
    Ok((adapter, about))
}

/// Writes an adapter's folder, which appears under its name when it is complete. Returns its size in bytes.
///
/// # Errors
/// When the folder is there and not empty, or the system cannot write.
pub fn write_adapter_folder(
    adapter: &Adapter,
    about: &AdapterAbout,
    folder: &Path,
) -> Result<u64, WriteError> {
    adapter.check_alone()?;
    let dir = AtomicDir::create(folder, Existing::Refuse)?;
    let mut planned = Vec::new();
    let mut numbers = Vec::new();
    for (&key, factors) in &adapter.factors {
        let [d_in, d_out] = adapter.sizes(factors).ok_or(slmc_ir::AdapterError::Target(key))?;
        for (ending, shape, factor) in
            [(A, vec![adapter.rank, d_in], &factors.a), (B, vec![d_out, adapter.rank], &factors.b)]
        {
            planned.push(PlannedSafeTensor { name: factor_name(key, ending), format: Format::F32, shape });
            numbers.push(factor);
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = SafetensorsWriter::create(&dir.path().join(WEIGHTS_FILE), &metadata, &planned)?;
    for factor in numbers {
        writer.tensor(&factor.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    let mut n_bytes = writer.finish()?;
    let config = config::write(adapter, about.base.as_deref());
    for (name, value) in [(CONFIG_FILE, config), (SIDECAR_FILE, serde_json::to_value(about)?)] {
        let mut bytes = serde_json::to_vec_pretty(&value)?;
        bytes.push(b'\n');
        n_bytes += bytes.len() as u64;
        let path = dir.path().join(name);
        let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(&bytes));
        written.map_err(|source| WriteError::Io { path, source })?;
    }
    dir.commit()?;
    Ok(n_bytes)
}

/// The name of a matrix's factor.
fn factor_name(key: TensorKey, ending: &str) -> String {
    let name = hf_name(key);
    format!("{PREFIX}{}{ending}", name.strip_suffix(".weight").unwrap_or(&name))
}

/// The matrix that a factor stands beside, and whether it is `A`.
fn factor_of(name: &str) -> Option<(TensorKey, bool)> {
    let bare = name.strip_prefix(PREFIX)?;
    let (module, is_a) = match bare.strip_suffix(A) {
        Some(module) => (module, true),
        None => (bare.strip_suffix(B)?, false),
    };
    Some((hf_key(&format!("{module}.weight"))?, is_a))
}
