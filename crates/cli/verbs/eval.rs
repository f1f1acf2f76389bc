//! Measuring models.

use slmc_eval::{Protocol, Windowing};
use slmc_ir::{Checkpoint, LanguageModel};
use slmc_recipe::StageError;
use slmc_stages::{divergence_by, evaluator_of, perplexity_by};

use super::{Session, engine, model};
use crate::{
    args::{EvalVerb, KldArgs, PplArgs},
    failure::{Failure, OrFail, input_error},
    output,
};

/// Runs an evaluation.
pub fn eval(verb: &EvalVerb, session: &Session<'_>) -> Result<(), Failure> {
    match verb {
        EvalVerb::Ppl(args) => ppl(args, session),
        EvalVerb::Kld(args) => kld(args, session),
    }
}

fn ppl(args: &PplArgs, session: &Session<'_>) -> Result<(), Failure> {
    let checkpoint = model::open(&args.model)?;
    let text = &args.text;
    let protocol = match args.protocol.as_str() {
        "rolling" => Protocol::Rolling { stride: (text.ctx / 2).max(1) },
        _ => Protocol::Llama,
    };
    let windowing = Windowing { protocol, ctx: text.ctx, chunks: text.chunks };
    let mut load = |checkpoint: &Checkpoint| measured_by(checkpoint, text.exact, session);
    let found =
        perplexity_by(&mut load, &checkpoint, &text.data, windowing, &session.surroundings, session.terminal);
    let found = found.map_err(stage_failure)?;
    let bits = found.bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
    let line = format!(
        "perplexity {:.4} ± {:.4} over {} tokens{bits}",
        found.ppl, found.standard_error, found.tokens
    );
    output::print(session.global.json, &serde_json::to_value(&found).or_run()?, &line)
}

fn kld(args: &KldArgs, session: &Session<'_>) -> Result<(), Failure> {
    let (checkpoint, baseline) = (model::open(&args.model)?, model::open(&args.baseline)?);
    let text = &args.text;
    let mut load = |checkpoint: &Checkpoint| measured_by(checkpoint, text.exact, session);
    let found = divergence_by(
        &mut load,
        &checkpoint,
        &baseline,
        &text.data,
        Windowing::llama(text.ctx, text.chunks),
        &session.surroundings,
        session.terminal,
    );
    let found = found.map_err(stage_failure)?;
    let line = format!(
        "KL divergence {:.5}, same top token {:.2} %, perplexity {:.4} (baseline {:.4}) over {} tokens",
        found.kld,
        found.same_top * 100.0,
        found.ppl,
        found.ppl_base,
        found.tokens
    );
    output::print(session.global.json, &serde_json::to_value(&found).or_run()?, &line)
}

/// The engine; the training code's model where a device is named.
fn measured_by(
    checkpoint: &Checkpoint,
    exact: bool,
    session: &Session<'_>,
) -> Result<Box<dyn LanguageModel>, StageError> {
    match &session.global.device {
        Some(device) if exact => Err(StageError::Input(format!(
            "--exact is about the engine, --device {device} measures without it: give one of the two"
        ))),
        Some(_) => Ok(Box::new(evaluator_of(checkpoint, &session.surroundings)?)),
        None => {
            let found = slmc_engine::Engine::load(checkpoint, engine::options(exact, session));
            Ok(Box::new(found.map_err(|e| StageError::Failed(e.to_string()))?))
        }
    }
}

/// How a failed measurement ends the program.
pub fn stage_failure(error: StageError) -> Failure {
    use StageError::{Failed, Input, Interrupted};
    match error {
        Interrupted(what) => Failure::Interrupted(format!("{what}; nothing of it is kept: start it again")),
        Input(message) => input_error(message),
        Failed(message) => Failure::Run(anyhow::Error::msg(message)),
    }
}
