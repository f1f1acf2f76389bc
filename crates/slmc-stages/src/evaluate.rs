//! Measuring an artefact with the Burn model.

use slmc_eval::{Divergence, EvalError, EvalText, Perplexity, Windowing};
use slmc_ir::{Checkpoint, Host, LanguageModel};
use slmc_model::{Decoder, Evaluator};
use slmc_recipe::{EvalConfig, Evaluation, StageError};

use crate::{
    Surroundings,
    calibration::{Dataset, same_vocabulary, text_of_document, tokenizer_of},
    open::open_device,
};

/// Perplexity of a checkpoint by llama-perplexity's protocol, for the table at the end of a run.
pub fn evaluate(
    checkpoint: &Checkpoint,
    config: &EvalConfig,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Evaluation, StageError> {
    let windowing = Windowing::llama(config.ctx, config.chunks);
    let found = perplexity_of(checkpoint, &config.data, windowing, surroundings, host)?;
    Ok(Evaluation { ppl: found.ppl, standard_error: found.standard_error, tokens: found.tokens })
}

/// Perplexity of a checkpoint on the text of a dataset.
pub fn perplexity_of(
    checkpoint: &Checkpoint,
    data: &str,
    windowing: Windowing,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Perplexity, StageError> {
    let mut load = |checkpoint: &Checkpoint| boxed_evaluator(checkpoint, surroundings);
    perplexity_by(&mut load, checkpoint, data, windowing, surroundings, host)
}

/// Makes a model of a checkpoint: on a device, in the engine.
pub type Load<'l> = dyn FnMut(&Checkpoint) -> Result<Box<dyn LanguageModel>, StageError> + 'l;

fn boxed_evaluator(
    checkpoint: &Checkpoint,
    surroundings: &Surroundings,
) -> Result<Box<dyn LanguageModel>, StageError> {
    Ok(Box::new(evaluator_of(checkpoint, surroundings)?))
}

/// As [`perplexity_of`], by whatever model `load` makes of the checkpoint; the text is read first.
pub fn perplexity_by(
    load: &mut Load<'_>,
    checkpoint: &Checkpoint,
    data: &str,
    windowing: Windowing,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Perplexity, StageError> {
    let tokenizer = tokenizer_of(checkpoint)?;
    let text = EvalText::new(&tokenizer, &text_of(data, surroundings)?).map_err(eval_error)?;
    let mut model = load(checkpoint)?;
    slmc_eval::perplexity(&mut *model, &text, windowing, host).map_err(eval_error)
}

/// The model, ready to be asked.
pub fn evaluator_of(checkpoint: &Checkpoint, surroundings: &Surroundings) -> Result<Evaluator, StageError> {
    let device = open_device(surroundings)?;
    let decoder =
        Decoder::load(&*checkpoint.weights, &device).map_err(|e| StageError::Failed(e.to_string()))?;
    Ok(Evaluator::new(&decoder))
}

/// The text of a dataset, documents one after the other.
fn text_of(data: &str, surroundings: &Surroundings) -> Result<String, StageError> {
    let dataset = Dataset::open(data, surroundings)?;
    let texts: Result<Vec<&str>, StageError> =
        dataset.to_measure_on().into_iter().map(text_of_document).collect();
    Ok(texts?.join("\n"))
}

/// KL divergence of a checkpoint from a baseline on the text of a dataset.
pub fn divergence_of(
    checkpoint: &Checkpoint,
    baseline: &Checkpoint,
    data: &str,
    windowing: Windowing,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Divergence, StageError> {
    let mut load = |checkpoint: &Checkpoint| boxed_evaluator(checkpoint, surroundings);
    divergence_by(&mut load, checkpoint, baseline, data, windowing, surroundings, host)
}

/// As [`divergence_of`], by whatever models `load` makes of the two checkpoints.
pub fn divergence_by(
    load: &mut Load<'_>,
    checkpoint: &Checkpoint,
    baseline: &Checkpoint,
    data: &str,
    windowing: Windowing,
    surroundings: &Surroundings,
    host: &dyn Host,
) -> Result<Divergence, StageError> {
    let tokenizer = tokenizer_of(checkpoint)?;
    if !same_vocabulary(&tokenizer, &tokenizer_of(baseline)?) {
        let message =
            "the two models have different tokenizers: their distributions are about different tokens";
        return Err(StageError::Input(message.to_owned()));
    }
    let text = EvalText::new(&tokenizer, &text_of(data, surroundings)?).map_err(eval_error)?;
    let (mut model, mut base) = (load(checkpoint)?, load(baseline)?);
    slmc_eval::kl_divergence(&mut *model, &mut *base, &text, windowing, host).map_err(eval_error)
}

fn eval_error(error: EvalError) -> StageError {
    match error {
        EvalError::Stopped { .. } => StageError::Interrupted(error.to_string()),
        EvalError::Forward(_) | EvalError::NotFinite { .. } | EvalError::Row { .. } => {
            StageError::Failed(error.to_string())
        }
        _ => StageError::Input(error.to_string()),
    }
}
