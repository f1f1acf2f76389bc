//! `slmc.json`, beside a model's files: what they cannot hold.

use std::path::Path;

use serde::{Deserialize, Serialize};
use slmc_ir::{Extras, Lineage};

use super::{CONFIG_EXTRA, TOKENIZER_CONFIG_EXTRA};
use crate::{
    error::{At as _, OpenError, OpenFault},
    files::read_tokenizer_text,
};

pub(crate) const FILE: &str = "slmc.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sidecar {
    version: u32,
    #[serde(default)]
    lineage: Lineage,
    #[serde(default)]
    extras: Extras,
}

/// What is in a folder's sidecar; nothing when there is none.
pub(crate) fn read(folder: &Path) -> Result<(Extras, Lineage), OpenError> {
    let path = folder.join(FILE);
    // Kept token lists make it as long as a tokenizer may be.
    let Some(text) = read_tokenizer_text(&path)? else {
        return Ok((Extras::new(), Lineage::default()));
    };
    let Sidecar { version, lineage, extras } = serde_json::from_str(&text).at(&path)?;
    if version != VERSION {
        let found = version.to_string();
        let why = "this version of slmc reads version 1; use the version that wrote it, or delete the file";
        let fault = crate::error::FieldError::Unsupported { field: "version".to_owned(), found, why };
        return Err(OpenFault::from(fault).at(&path));
    }
    Ok((extras, lineage))
}

/// The text of a sidecar, or `None` when there is nothing to say.
pub(crate) fn to_text(extras: &Extras, lineage: &Lineage) -> Result<Option<String>, serde_json::Error> {
    let has_file = |name: &str| name == CONFIG_EXTRA || name == TOKENIZER_CONFIG_EXTRA;
    let extras: Extras =
        extras.iter().filter(|(name, _)| !has_file(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
    if extras.is_empty() && lineage.steps.is_empty() {
        return Ok(None);
    }
    let sidecar = Sidecar { version: VERSION, lineage: lineage.clone(), extras };
    serde_json::to_string(&sidecar).map(Some)
}
