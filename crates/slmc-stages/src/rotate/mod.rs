//! The same function in other coordinates: the residual stream and the heads' values rotated, so that no channel is much
//! larger than the others (QuaRot, arXiv:2404.00456). Where scales are shared by a few dozen weights, rounding gains nothing by it (docs/LOG.md).

mod rotated;

use std::sync::Arc;

use serde_json::json;
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{Checkpoint, Format, ModelSpec, Outline};
use slmc_recipe::{Finished, Rejection, RotateConfig, Stage, StageContext, StageError};

use self::rotated::Rotated;
use crate::export::float_format;

/// The rotate stage.
pub struct Rotate {
    config: RotateConfig,
    dtype: Format,
}

impl Rotate {
    pub fn new(config: RotateConfig) -> Result<Self, String> {
        let dtype = float_format(&config.dtype)?;
        Ok(Self { config, dtype })
    }

    /// Whether the stream is rotated: where that was asked for, and else where it costs no head of its own.
    fn rotates_stream(&self, spec: &ModelSpec) -> bool {
        self.config.stream.unwrap_or(!spec.tied_head)
    }

    fn spec_after(&self, spec: &ModelSpec) -> ModelSpec {
        ModelSpec { tied_head: spec.tied_head && !self.rotates_stream(spec), ..spec.clone() }
    }

    fn told(&self, spec: &ModelSpec) -> Vec<String> {
        if !spec.tied_head {
            return Vec::new();
        }
        vec![match self.config.stream {
            None => "the residual stream is left as it is: its head is the embedding, and with `stream = true` both would \
                     be stored"
                .to_owned(),
            Some(true) => "the head has become a matrix of its own: it reads the stream through the final norm's gains, \
                           which the embedding does not"
                .to_owned(),
            Some(false) => return Vec::new(),
        }]
    }
}

impl Stage for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to rotate".to_owned()))?;
        if !self.rotates_stream(&input.spec) && !self.config.heads {
            let message =
                "nothing is left to rotate: `stream` (on where the head is not the embedding) or `heads`";
            return Err(Rejection(message.to_owned()));
        }
        Ok(Outline::of(self.spec_after(&input.spec), self.dtype, input.has_tokenizer))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to rotate".to_owned()))?;
        let spec = self.spec_after(input.spec());
        let stream = self.rotates_stream(input.spec());
        let fallbacks = self.told(input.spec());
        for message in &fallbacks {
            context.host.warn(message);
        }
        let report = json!({
            "stream": stream,
            "heads": self.config.heads,
            "head_of_its_own": input.spec().tied_head && !spec.tied_head,
        });
        let rotated = Rotated::new(Arc::clone(&input.weights), spec, stream, self.config.heads, context.seed);
        let lineage = context.history(&input.lineage, self, &[]);
        let checkpoint = Checkpoint { weights: Arc::new(rotated), lineage, ..input };
        let artefact = context.folder.join("model");
        let options = WriteOptions { float: Some(self.dtype), ..WriteOptions::default() };
        write_hf_folder(&checkpoint, &artefact, &options, context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        Ok(Finished { artefact, report, fallbacks })
    }
}
