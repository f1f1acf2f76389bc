//! From a stage's settings to the stage.

use std::sync::Arc;

use slmc_recipe::{Stage, StageConfig, StageEntry};

use crate::{
    Surroundings,
    carve::Carve,
    export::Export,
    fresh::Fresh,
    lora::Lora,
    quantize::{Quantize, Scale},
    rotate::Rotate,
    training::Training,
};

/// Makes the stage that carries out an entry of a recipe; an error says which setting is wrong.
pub fn build(entry: &StageEntry, surroundings: &Arc<Surroundings>) -> Result<Box<dyn Stage>, String> {
    let around = Arc::clone(surroundings);
    Ok(match &entry.config {
        StageConfig::Fresh(config) => Box::new(Fresh::new(config.clone(), around)),
        StageConfig::Carve(config) => Box::new(Carve::new(config.clone(), around)),
        StageConfig::Train(config) => Box::new(Training::plain(config.clone(), around)?),
        StageConfig::Distill(config) => Box::new(Training::distill(config.clone(), around)?),
        StageConfig::Lora(config) => Box::new(Lora::new(config.clone(), around)?),
        StageConfig::Rotate(config) => Box::new(Rotate::new(config.clone())?),
        StageConfig::Scale(config) => Box::new(Scale::new(config.clone(), around)?),
        StageConfig::Quantize(config) => Box::new(Quantize::new(config, around)?),
        StageConfig::Export(config) => Box::new(Export::new(config)?),
    })
}
