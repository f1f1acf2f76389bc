//! Measuring models.

use std::path::Path;

use slmc_eval::{Protocol, Windowing};
use slmc_interop::OnnxFolder;
use slmc_onnxruntime::Runtime;
use slmc_recipe::StageError;
use slmc_stages::{
    Keeping, KeptBaseline, OnText, Subject, artefact_of, divergence_of, fingerprint_of, perplexity_of,
};

use super::{Session, keeping::keeping, model, onnx, tasks};
use crate::{
    args::{EvalVerb, KldArgs, PplArgs, TextArgs},
    failure::{Failure, OrFail, input_error},
    output,
};

/// Runs an evaluation.
pub fn eval(verb: &EvalVerb, session: &Session<'_>) -> Result<(), Failure> {
    match verb {
        EvalVerb::Ppl(args) => ppl(args, session),
        EvalVerb::Kld(args) => kld(args, session),
        EvalVerb::Tasks(args) => tasks::tasks(args, session),
        EvalVerb::Compare(args) => tasks::compare(args, session),
    }
}

fn ppl(args: &PplArgs, session: &Session<'_>) -> Result<(), Failure> {
    let subject = subject(&args.model, &mut None)?;
    let text = &args.text;
    let protocol = match (args.protocol.as_str(), args.stride) {
        ("rolling", stride) => Protocol::Rolling { stride: stride.unwrap_or((text.ctx / 2).max(1)) },
        (_, Some(_)) => return Err(input_error("--stride: is for --protocol rolling")),
        (_, None) => Protocol::Llama,
    };
    let windowing = Windowing { protocol, ctx: text.ctx, chunks: text.chunks };
    let keeping = keeping(&[&args.model]);
    let on = on_text(text, windowing, keeping.as_ref());
    let found = perplexity_of(&subject, &on, &session.surroundings, session.terminal);
    let found = found.map_err(stage_failure)?;
    let bits = found.bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
    let mut line = format!(
        "perplexity {:.4} ± {:.4} over {} tokens{bits}",
        found.ppl, found.standard_error, found.tokens
    );
    let mut document = serde_json::to_value(&found).or_run()?;
    if let Some(n_steps) = args.by_position {
        let steps = found.by_position(n_steps.max(1));
        for step in &steps {
            line += &format!(
                "\n  after {:>5} to {:>5} tokens: {:.4} over {}",
                step.from, step.to, step.ppl, step.tokens
            );
        }
        document["by_position"] = serde_json::to_value(&steps).or_run()?;
    }
    output::print(session.global.json, &document, &line)
}

fn kld(args: &KldArgs, session: &Session<'_>) -> Result<(), Failure> {
    let mut runtime = None;
    let (model, baseline) = (subject(&args.model, &mut runtime)?, subject(&args.baseline, &mut runtime)?);
    let text = &args.text;
    let keeping = keeping(&[&args.model, &args.baseline]);
    let on = on_text(text, Windowing::llama(text.ctx, text.chunks), keeping.as_ref());
    let fingerprint = match &args.keep_baseline {
        Some(_) => Some(
            artefact_of(&args.baseline)
                .map_err(input_error)
                .and_then(|path| fingerprint_of(&path.to_string_lossy()).map_err(input_error))?,
        ),
        None => None,
    };
    let kept = args.keep_baseline.as_deref().zip(fingerprint.as_deref());
    let kept = kept.map(|(folder, fingerprint)| KeptBaseline { folder, fingerprint });
    let found = divergence_of(&model, &baseline, &on, kept, &session.surroundings, session.terminal);
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

fn on_text<'a>(text: &'a TextArgs, windowing: Windowing, keeping: Option<&'a Keeping>) -> OnText<'a> {
    OnText { data: &text.data, windowing, exactness: text.how.exactness(), keeping }
}

/// What the user calls a model; a folder for onnxruntime is one where a runtime is found, which a process loads once.
pub fn subject(name: &str, loaded: &mut Option<Runtime>) -> Result<Subject, Failure> {
    let path = Path::new(name);
    if !OnnxFolder::is_one(path) {
        return Ok(Subject::Checkpoint(model::open_to_run(name)?));
    }
    let folder = OnnxFolder::open(path).or_input()?;
    let runtime = match loaded {
        Some(runtime) => runtime.clone(),
        None => {
            let (found, how) = onnx::find_runtime()?;
            let none = || input_error(format!("{name}: an ONNX model runs in onnxruntime: {how}"));
            loaded.insert(found.ok_or_else(none)?).clone()
        }
    };
    Ok(Subject::Onnx(Box::new(folder), runtime))
}

/// How a failed measurement ends the program.
pub fn stage_failure(error: StageError) -> Failure {
    use StageError::{Failed, Input, Interrupted};
    match error {
        Interrupted(what) => Failure::Interrupted(what),
        Input(message) => input_error(message),
        Failed(message) => Failure::Run(anyhow::Error::msg(message)),
    }
}
