//! Fewer bits a weight. So far by rounding to the nearest level of each block (RTN), the baseline to beat.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;
use slmc_interop::{Encoded, WriteOptions, write_gguf};
use slmc_ir::{Checkpoint, Format, Outline, Role, TensorKey};
use slmc_recipe::{Finished, QuantizeConfig, Rejection, Stage, StageContext, StageError};

use crate::open::outline_of;

/// The quantize stage.
pub struct Quantize {
    format: Format,
    embedding_format: Format,
}

impl Quantize {
    pub fn new(config: &QuantizeConfig) -> Result<Self, String> {
        if config.method != "rtn" {
            return Err(format!("method `{}` is not there yet: the methods are rtn", config.method));
        }
        let writable = |name: &str| -> Result<Format, String> {
            let format: Format = name.parse().map_err(|e: slmc_ir::UnknownFormat| e.to_string())?;
            if slmc_blocks::can_encode(format) {
                return Ok(format);
            }
            let known: Vec<&str> =
                Format::ALL.into_iter().filter(|&f| slmc_blocks::can_encode(f)).map(Format::name).collect();
            Err(format!("format `{name}` can be read but not made yet: the formats are {}", known.join(" ")))
        };
        let embedding = config.embedding_format.as_deref().unwrap_or("q8_0");
        Ok(Self { format: writable(&config.format)?, embedding_format: writable(embedding)? })
    }

    /// The format of every tensor, and what could not be as asked.
    fn assign(&self, input: &Outline) -> (BTreeMap<TensorKey, Format>, Vec<String>) {
        let mut fallbacks = Vec::new();
        let mut plan = BTreeMap::new();
        for &(key, stored) in &input.formats {
            let shape = key.shape(&input.spec);
            let asked = match key.role {
                _ if shape.len() != 2 => stored,
                Role::Embedding | Role::Head => self.embedding_format,
                _ => self.format,
            };
            let n_columns = shape.last().copied().unwrap_or(1);
            let given = fitting(asked, n_columns);
            if given != asked {
                let block = asked.block_weights();
                fallbacks.push(format!(
                    "{key}: {given} instead of {asked}: rows of {n_columns} are not whole blocks of {block}"
                ));
            }
            plan.insert(key, given);
        }
        (plan, fallbacks)
    }
}

/// The format itself where rows are whole blocks of it, else f16.
fn fitting(format: Format, n_columns: usize) -> Format {
    if n_columns.is_multiple_of(format.block_weights()) { format } else { Format::F16 }
}

impl Stage for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to quantize".to_owned()))?;
        let (plan, _) = self.assign(input);
        Ok(Outline { formats: plan.into_iter().collect(), ..input.clone() })
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to quantize".to_owned()))?;
        let outline = outline_of(&input).map_err(StageError::Failed)?;
        let (plan, fallbacks) = self.assign(&outline);
        for fallback in &fallbacks {
            context.host.warn(fallback);
        }
        let packed_before = outline.formats.iter().filter(|(_, format)| !format.is_float()).count();
        if packed_before > 0 {
            context.host.warn(&format!(
                "{packed_before} tensors are packed already: they are decoded and rounded again"
            ));
        }
        let encoded =
            Encoded::new(Arc::clone(&input.weights), plan).map_err(|e| StageError::Failed(e.to_string()))?;
        let lineage = context.history(&input.lineage, self, &fallbacks);
        let checkpoint = Checkpoint { lineage, ..input.with_weights(Arc::new(encoded)) };
        let artefact = context.folder.join("model.gguf");
        let written = write_gguf(&checkpoint, &artefact, &WriteOptions::default(), context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        let formats: Vec<_> = written
            .tensors
            .iter()
            .map(|(key, format)| json!({"tensor": key.to_string(), "format": format.name(), "bits_per_weight": format.bits_per_weight()}))
            .collect();
        let report = json!({"method": "rtn", "file_bytes": written.file_bytes, "tensors": formats});
        Ok(Finished { artefact, report, fallbacks })
    }
}
