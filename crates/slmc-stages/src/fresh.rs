//! A new model with random weights, from a config and a tokenizer.

use std::{path::Path, sync::Arc};

use serde_json::json;
use slmc_data::Split;
use slmc_interop::{WriteOptions, open_config, write_hf_folder};
use slmc_ir::{Checkpoint, Extras, Format, Lineage, ModelSpec, Outline, TokenizerFiles};
use slmc_model::Decoder;
use slmc_recipe::{Finished, FreshConfig, Rejection, Stage, StageContext, StageError};

use crate::{
    Surroundings,
    calibration::{Dataset, text_of_document},
    open::{open_device, open_model},
};

/// What ends a text in a tokenizer of our own.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The fresh stage.
pub struct Fresh {
    config: FreshConfig,
    around: Arc<Surroundings>,
}

impl Fresh {
    pub fn new(config: FreshConfig, around: Arc<Surroundings>) -> Self {
        Self { config, around }
    }

    fn spec(&self) -> Result<ModelSpec, String> {
        open_config(Path::new(&self.config.config)).map_err(|e| e.to_string())
    }

    /// Trained on the data, taken from a model that is named, or taken from the recipe's model.
    fn tokenizer(&self, spec: &ModelSpec, model: Option<&Checkpoint>) -> Result<TokenizerFiles, StageError> {
        if let Some(data) = &self.config.data {
            let dataset = Dataset::open(data, &self.around)?;
            let texts: Result<Vec<&str>, _> = dataset.of(Split::Train).map(text_of_document).collect();
            let mut texts = texts?.into_iter().map(str::to_owned);
            return slmc_data::train_bpe(&mut texts, spec.vocab_size, &[END_OF_TEXT])
                .map_err(|e| StageError::Failed(e.to_string()));
        }
        let named =
            self.config.tokenizer.as_deref().map(open_model).transpose().map_err(StageError::Input)?;
        let files = named.as_ref().or(model).and_then(|checkpoint| checkpoint.tokenizer.clone());
        let none =
            "a new model needs a tokenizer: name a model (`tokenizer`) or a dataset to train one on (`data`)";
        files.ok_or_else(|| StageError::Input(none.to_owned()))
    }
}

impl Stage for Fresh {
    fn name(&self) -> &'static str {
        "fresh"
    }

    fn check(&self, _input: Option<&Outline>) -> Result<Outline, Rejection> {
        if self.config.tokenizer.is_some() && self.config.data.is_some() {
            return Err(Rejection(
                "`tokenizer` and `data` both say where the tokenizer comes from: keep one".into(),
            ));
        }
        Ok(Outline::of(self.spec().map_err(Rejection)?, Format::F32, true))
    }

    fn run(&self, _input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let spec = self.spec().map_err(StageError::Input)?;
        let tokenizer = self.tokenizer(&spec, context.model)?;
        let device = open_device(&self.around)?;
        let weights = Decoder::fresh(&spec, context.seed, &device).to_source();
        let checkpoint = Checkpoint {
            weights: Arc::new(weights),
            tokenizer: Some(tokenizer),
            generation: None,
            extras: Extras::new(),
            lineage: context.history(&Lineage::default(), self, &[]),
        };
        let artefact = context.folder.join("model");
        let written = write_hf_folder(&checkpoint, &artefact, &WriteOptions::default(), context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        let report = json!({"parameters": spec.n_parameters(), "file_bytes": written.file_bytes});
        Ok(Finished { artefact, report, fallbacks: Vec::new() })
    }
}
