//! That what a recipe measures on is not what it learns from.

use slmc_data::{Content, Document, overlap};
use slmc_recipe::{Plan, StageConfig, StageError};

use crate::{Surroundings, calibration::Dataset};

/// Share of a text that may be in another by chance: quotations, titles, lists.
const CHANCE: f64 = 0.01;

/// Refuses a plan that calibrates on the text of its `[eval]`; what is trained on it comes back as a warning.
///
/// # Errors
/// [`StageError::Input`] for such a plan, and for a text that cannot be read.
pub fn check_apart(plan: &Plan, surroundings: &Surroundings) -> Result<Vec<String>, StageError> {
    let Some(eval) = &plan.recipe.eval else { return Ok(Vec::new()) };
    let measured = Dataset::open(&eval.data, surroundings)?;
    let measured: Vec<&str> = texts(measured.to_measure_on()).collect();
    let mut warnings = Vec::new();
    for entry in &plan.recipe.stages {
        let (key, data) = match &entry.config {
            StageConfig::Carve(config) => ("calibration", Some(&config.calibration)),
            StageConfig::Scale(config) => ("calibration", Some(&config.calibration)),
            StageConfig::Quantize(config) => ("calibration", config.calibration.as_ref()),
            StageConfig::Train(config) => ("data", Some(&config.data)),
            StageConfig::Distill(config) => ("data", Some(&config.train.data)),
            StageConfig::Lora(config) => ("data", Some(&config.train.data)),
            StageConfig::Fresh(_) | StageConfig::Rotate(_) | StageConfig::Export(_) => continue,
        };
        let Some(data) = data else { continue };
        let seen = Dataset::open(data, surroundings)?;
        let share = overlap(measured.iter().copied(), texts(seen.to_calibrate_on()));
        if share <= CHANCE {
            continue;
        }
        let message = format!(
            "stage `{}`: {:.0} % of what [eval] measures on is in {key} = \"{data}\": its figures would flatter",
            entry.name,
            100.0 * share
        );
        if key == "calibration" {
            return Err(StageError::Input(format!("{message}. Calibrate on another text")));
        }
        warnings.push(message);
    }
    Ok(warnings)
}

fn texts(documents: Vec<&Document>) -> impl Iterator<Item = &str> {
    documents.into_iter().filter_map(|document| match &document.content {
        Content::Text(text) => Some(text.as_str()),
        _ => None,
    })
}
