//! Exports to ONNX, and the comparison that comes before an export is called done: the written model in onnxruntime
//! beside the same numbers in our engine.

use std::{path::Path, sync::Arc};

use serde::Serialize;
use slmc_data::Special;
use slmc_interop::{
    Encoded, OnnxOptions, OnnxPlan, OnnxPrecision, Written, write_onnx_file, write_onnx_folder,
};
use slmc_ir::{Checkpoint, Host, LanguageModel, TokenId};
use slmc_onnxruntime::Runtime;

use crate::{
    calibration::tokenizer_of,
    evaluate::{Exactness, engine_of},
    open::outline_of,
};

/// Tokens that both run.
const N_TOKENS: usize = 96;
/// Ordinary English, so that the figures mean something.
const TEXT: &str = "The river was low that summer, and the boys walked across it on the stones. Their father had told \
    them of the year when the water came up to the second step of the church, and nobody in the village believed him. \
    He wrote the date on the door post. In the evening they sat by the fire and he told it again, with other numbers, \
    and their mother laughed and said that it had been the first step, and a wet spring, and that was all.";
/// Mean KL divergence in nats that is still the same model: rounding of f32 sums, of f16, and of activations to int8
/// (which alone costs 0.003 on SmolLM2-135M, more on smaller models). A wrong tensor gives several nats.
const SAME_IN_F32: f64 = 1e-5;
const SAME_IN_F16: f64 = 1e-3;
const SAME_IN_INT8: f64 = 0.05;

/// How far the exported model in onnxruntime is from the same numbers in the engine, over ordinary text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Tokens compared.
    pub tokens: usize,
    /// Largest difference of a logit.
    pub max_abs: f64,
    /// Mean KL divergence, nats.
    pub kld: f64,
    /// Share of positions with the same likeliest token.
    pub same_top: f64,
}

/// Writes a checkpoint for onnxruntime: to a folder for onnxruntime-genai, or to `PATH.onnx` and its data. Where a
/// runtime is given, the model is opened in it and compared before it appears.
///
/// # Errors
/// In words: what cannot be exported or written, or how far the two models are apart.
pub fn export_onnx(
    checkpoint: &Checkpoint,
    path: &Path,
    options: &OnnxOptions,
    runtime: Option<&Runtime>,
    host: &dyn Host,
) -> Result<(Written, Option<Agreement>), String> {
    let outline = outline_of(checkpoint)?;
    let plan = OnnxPlan::new(&outline, options).map_err(|objections| objections.join("; "))?;
    let mut agreement = None;
    let mut check = |model: &Path| {
        if let Some(runtime) = runtime {
            agreement = Some(compare(checkpoint, model, options, &plan, runtime)?);
        }
        Ok(())
    };
    let is_file = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx"));
    let written = if is_file {
        write_onnx_file(checkpoint, path, options, host, &mut check)
    } else {
        write_onnx_folder(checkpoint, path, options, host, &mut check)
    };
    Ok((written.map_err(|error| error.to_string())?, agreement))
}

fn compare(
    checkpoint: &Checkpoint,
    model: &Path,
    options: &OnnxOptions,
    plan: &OnnxPlan,
    runtime: &Runtime,
) -> Result<Agreement, String> {
    let n_threads = rayon::current_num_threads();
    let mut exported = runtime.open(model, checkpoint.spec().into(), n_threads).map_err(|e| e.to_string())?;
    let formats = plan.formats.clone();
    let rounded = Encoded::new(Arc::clone(&checkpoint.weights), formats).map_err(|e| e.to_string())?;
    let rounded = checkpoint.with_weights(Arc::new(rounded));
    let mut ours = engine_of(&rounded, Exactness::Exact).map_err(|e| e.to_string())?;
    let tokens = tokens_of(checkpoint)?;
    let theirs = exported.logits(&tokens).map_err(|e| e.to_string())?;
    let agreement = agreement(&mut ours, &tokens, &theirs)?;
    let is_packed = plan.formats.values().any(|format| !format.is_float());
    let limit = match options.precision {
        _ if is_packed && (options.plain || !matches!(options.accuracy_level, 0 | 1)) => SAME_IN_INT8,
        _ if plan.activations == slmc_ir::Format::F16 => SAME_IN_F16,
        Some(OnnxPrecision::F16) => SAME_IN_F16,
        _ => SAME_IN_F32,
    };
    // Written so that NaN is refused, too.
    if agreement.kld <= limit {
        return Ok(agreement);
    }
    Err(format!(
        "the model in onnxruntime is not the one that was exported: KL divergence {:.2e} where {limit:.0e} is rounding, \
         same top token at {:.1} % of {} positions, a logit off by {:.3}; nothing was written",
        agreement.kld,
        100.0 * agreement.same_top,
        agreement.tokens,
        agreement.max_abs
    ))
}

fn tokens_of(checkpoint: &Checkpoint) -> Result<Vec<TokenId>, String> {
    let longest = N_TOKENS.min(checkpoint.spec().context_len);
    if checkpoint.tokenizer.is_some() {
        let tokenizer = tokenizer_of(checkpoint).map_err(|e| e.to_string())?;
        let tokens = tokenizer.encode(TEXT, Special::Add).map_err(|e| e.to_string())?;
        return Ok(tokens.into_iter().take(longest).collect());
    }
    let vocab = checkpoint.spec().vocab_size;
    Ok((0..longest).map(|i| (i * 7919 % vocab) as TokenId).collect())
}

fn agreement(ours: &mut dyn LanguageModel, tokens: &[TokenId], theirs: &[f32]) -> Result<Agreement, String> {
    let vocab = ours.vocab_size();
    if theirs.len() != tokens.len() * vocab {
        return Err(format!("onnxruntime gave {} logits for {} tokens", theirs.len(), tokens.len()));
    }
    let (mut max_abs, mut kld, mut n_same) = (0.0_f64, 0.0, 0);
    let mut visit = |position: usize, rows: &[f32]| {
        for (row, other) in rows.chunks_exact(vocab).zip(theirs[position * vocab..].chunks_exact(vocab)) {
            let far = row.iter().zip(other).map(|(a, b)| f64::from((a - b).abs()));
            max_abs = far.fold(max_abs, f64::max);
            let (p, q) = (log_softmax(row), log_softmax(other));
            kld += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            n_same += usize::from(top(row) == top(other));
        }
    };
    ours.forward(tokens, 0, &mut visit).map_err(|e| e.to_string())?;
    let n = tokens.len().max(1) as f64;
    Ok(Agreement { tokens: tokens.len(), max_abs, kld: kld / n, same_top: n_same as f64 / n })
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
    row.iter().map(|x| f64::from(x - largest) - sum.ln()).collect()
}

fn top(row: &[f32]) -> usize {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(index, _)| index)
}
