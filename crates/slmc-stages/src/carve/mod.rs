//! A smaller model cut out of a bigger one: which blocks and which MLP channels go is measured on text.
//!
//! Blocks go one by one, each time the one whose absence costs least (Shortened LLaMA, arXiv:2402.02834), among those
//! that change the residual stream least (ShortGPT, arXiv:2403.03853). Channels go by the norm of what they add to
//! the residual stream; the down projection is then refitted so that the remaining channels make up for them.

mod assemble;
mod depth;
mod surgeon;
mod width;

use std::sync::Arc;

use serde_json::json;
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{Checkpoint, Format, ModelSpec, Outline};
use slmc_model::Decoder;
use slmc_recipe::{CarveConfig, Finished, Rejection, Stage, StageContext, StageError};

use self::{
    assemble::assemble,
    surgeon::{Surgeon, batches},
};
use crate::{Surroundings, calibration::sequences, open::open_device};

/// The carve stage.
pub struct Carve {
    config: CarveConfig,
    around: Arc<Surroundings>,
}

impl Carve {
    pub fn new(config: CarveConfig, around: Arc<Surroundings>) -> Self {
        Self { config, around }
    }

    /// The student's spec, or why the teacher has no such student.
    fn student_spec(&self, teacher: &ModelSpec) -> Result<ModelSpec, Rejection> {
        let smaller = |field: &str, asked: Option<usize>, has: usize| match asked {
            None => Ok(has),
            Some(n) if (1..=has).contains(&n) => Ok(n),
            Some(n) => {
                Err(Rejection(format!("{field} = {n}: the model has {has}, and carving only takes away")))
            }
        };
        let n_layers = smaller("n_layers", self.config.n_layers, teacher.n_layers)?;
        let d_ff = smaller("d_ff", self.config.d_ff, teacher.d_ff)?;
        if self.config.seq_len > teacher.context_len {
            let message = format!("seq_len = {} is more than the model's context", self.config.seq_len);
            return Err(Rejection(message));
        }
        Ok(ModelSpec { n_layers, d_ff, ..teacher.clone() })
    }
}

impl Stage for Carve {
    fn name(&self) -> &'static str {
        "carve"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to carve".to_owned()))?;
        let spec = self.student_spec(&input.spec)?;
        Ok(Outline::of(spec, Format::F32, input.has_tokenizer))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to carve".to_owned()))?;
        let spec = self.student_spec(input.spec()).map_err(|e| StageError::Input(e.to_string()))?;
        let device = open_device(&self.around)?;
        let decoder =
            Decoder::load(&*input.weights, &device).map_err(|e| StageError::Failed(e.to_string()))?;
        let CarveConfig { calibration, n_sequences, seq_len, .. } = &self.config;
        let tokens = sequences(calibration, *n_sequences, *seq_len, &input, &self.around)?;
        let surgeon = Surgeon {
            input: &input,
            decoder,
            device,
            batches: batches(&tokens),
            config: &self.config,
            context,
        };
        let choice = surgeon.blocks_to_remove(input.spec().n_layers - spec.n_layers)?;
        let kept: Vec<usize> = (0..input.spec().n_layers).filter(|i| !choice.removed.contains(i)).collect();
        let narrowed =
            if spec.d_ff < input.spec().d_ff { surgeon.narrow(&kept, spec.d_ff)? } else { Vec::new() };
        let weights = assemble(&input, &spec, &kept, &narrowed)?;
        let report = json!({
            "removed_blocks": choice.removed,
            "losses": choice.losses,
            "output_error": narrowed.iter().map(|narrow| narrow.output_error).collect::<Vec<_>>(),
            "n_layers": spec.n_layers,
            "d_ff": spec.d_ff,
        });
        let lineage = context.history(&input.lineage, self, &[]);
        let checkpoint = Checkpoint { weights: Arc::new(weights), lineage, ..input.clone() };
        let artefact = context.folder.join("model");
        write_hf_folder(&checkpoint, &artefact, &WriteOptions::default(), context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        Ok(Finished { artefact, report, fallbacks: Vec::new() })
    }
}
