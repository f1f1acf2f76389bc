//! Channels scaled, and nothing rounded: the stage for recipes that round afterwards.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{Checkpoint, Format, Outline, TensorKey};
use slmc_model::Products;
use slmc_recipe::{Finished, Rejection, ScaleConfig, Stage, StageContext, StageError};

use super::{
    FOLDER,
    calibrate::Passes,
    fitting, remove_left,
    scales::{Nearest, Rounding, find_all, scaled, steps},
    scheme::Scheme,
    solved::failed,
    spill::Spill,
    store::Store,
    writable,
};
use crate::{Surroundings, calibration::sequences, export::float_format};

/// The scale stage.
pub struct Scale {
    config: ScaleConfig,
    goal: Goal,
    dtype: Format,
    around: Arc<Surroundings>,
}

/// What will be rounded to.
#[derive(Clone, Copy)]
enum Goal {
    Format(Format),
    Scheme(Scheme),
}

impl Scale {
    pub fn new(config: ScaleConfig, around: Arc<Surroundings>) -> Result<Self, String> {
        let goal = match Scheme::parse(&config.format)? {
            Some(scheme) => Goal::Scheme(scheme),
            None => Goal::Format(writable(&config.format)?),
        };
        if matches!(goal, Goal::Format(format) if format.is_float()) {
            return Err(format!(
                "format `{}`: nothing is gained by scales where nothing is rounded",
                config.format
            ));
        }
        if config.n_sequences == 0 || config.seq_len < 2 {
            return Err("calibration needs at least 1 sequence of 2 tokens".to_owned());
        }
        let dtype = float_format(&config.dtype)?;
        Ok(Self { config, goal, dtype, around })
    }

    /// What each projection will be rounded to.
    fn rounding(&self, outline: &Outline) -> Rounding {
        let one = |&(key, _): &(TensorKey, Format)| {
            let [_, n_columns] = key.shape(&outline.spec)[..] else { return None };
            let nearest = match self.goal {
                Goal::Format(format) => Nearest::Blocks(fitting(format, n_columns)),
                Goal::Scheme(scheme) => Nearest::Groups(scheme, scheme.container(n_columns)?),
            };
            Some((key, nearest))
        };
        outline.formats.iter().filter(|(key, _)| key.block.is_some()).filter_map(one).collect()
    }
}

impl Stage for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to scale".to_owned()))?;
        if !input.has_tokenizer {
            return Err(Rejection("the model has no tokenizer: it cannot be calibrated".to_owned()));
        }
        if self.config.seq_len > input.spec.context_len {
            let message = format!("seq_len = {} is more than the model's context", self.config.seq_len);
            return Err(Rejection(message));
        }
        Ok(Outline::of(input.spec.clone(), self.dtype, true))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to scale".to_owned()))?;
        let outline = crate::outline_of(&input).map_err(StageError::Failed)?;
        let ScaleConfig { n_sequences, seq_len, .. } = self.config;
        let text = sequences(&self.config.calibration, n_sequences, seq_len, &input, &self.around)?;
        let passes = Passes {
            checkpoint: &input,
            sequences: &text,
            spill: Spill::create(context.folder.join("activations"))?,
            products: Products::half().unwrap_or_default(),
            couples_rows: false,
            rounds_inputs: false,
            seed: context.seed,
            host: context.host,
        };
        let found = find_all(&passes, &self.rounding(&outline), &Store::open(context.folder.join("found"))?)?;
        drop(passes);
        let scales = steps(&found);
        let mut lineage = context.history(&input.lineage, self, &[]);
        if let Some(step) = lineage.steps.last_mut() {
            step.channel_scales = Some(scales.clone());
        }
        let checkpoint = Checkpoint { lineage, ..scaled(&input, &scales) };
        let artefact = context.folder.join(FOLDER);
        remove_left(&artefact)?;
        let options = WriteOptions { float: Some(self.dtype), ..WriteOptions::default() };
        write_hf_folder(&checkpoint, &artefact, &options, context.host).map_err(failed)?;
        let kl: BTreeMap<String, f64> = found
            .iter()
            .enumerate()
            .flat_map(|(index, found)| found.inputs.iter().map(move |input| (index, input)))
            .flat_map(|(index, input)| {
                let of =
                    move |&(role, kl): &(slmc_ir::Role, f64)| (TensorKey::block(index, role).to_string(), kl);
                input.projections.iter().map(of)
            })
            .collect();
        let report = json!({"format": self.config.format, "estimated_kl_rounded_to_nearest": kl});
        Ok(Finished { artefact, report, fallbacks: Vec::new() })
    }
}
