//! Perplexity: how well a model predicts a text.

use rayon::prelude::*;
use serde::Serialize;
use slmc_ir::{Host, LanguageModel, TokenId};

use crate::{
    EvalError, EvalText, Journal, Windowing,
    journal::Work,
    log_softmax::log_sum_exp,
    windows::{Window, windows},
};

/// What one window came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chunk {
    /// Sum of the negative log-likelihoods, in nats.
    pub nll_sum: f64,
    /// Tokens scored.
    pub tokens: u64,
}

/// How well a model predicts a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood of a token.
    pub ppl: f64,
    /// Standard error of `ppl`, tokens taken as independent, as llama-perplexity gives it.
    pub standard_error: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Sum of the negative log-likelihoods, in nats.
    pub nll_sum: f64,
    /// Bits a byte of the scored text: comparable between tokenizers. Absent where the text's bytes are not known.
    pub bits_per_byte: Option<f64>,
    /// How the text was cut.
    pub windowing: Windowing,
    /// Window by window.
    pub per_chunk: Vec<Chunk>,
    /// Token by token, in nats, in the order of the text: what paired comparisons need.
    #[serde(skip)]
    pub nlls: Vec<f64>,
}

impl Perplexity {
    /// From the figures of each scored token.
    fn new(windowing: Windowing, per_chunk: Vec<Chunk>, nlls: Vec<f64>, n_bytes: u64) -> Self {
        let nll_sum: f64 = per_chunk.iter().map(|chunk| chunk.nll_sum).sum();
        let n = nlls.len() as f64;
        let mean = nll_sum / n;
        let ppl = mean.exp();
        let bits = nll_sum / std::f64::consts::LN_2;
        Self {
            ppl,
            standard_error: ppl * standard_error(&nlls, mean),
            tokens: nlls.len() as u64,
            nll_sum,
            bits_per_byte: (n_bytes > 0).then(|| bits / n_bytes as f64),
            windowing,
            per_chunk,
            nlls,
        }
    }
}

/// Perplexity of the tokens that were predicted from about as much context.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionStep {
    /// Fewest tokens of context.
    pub from: usize,
    /// Most tokens of context.
    pub to: usize,
    /// Perplexity of those tokens.
    pub ppl: f64,
    /// How many there are.
    pub tokens: u64,
}

impl Perplexity {
    /// Perplexity by the number of tokens before the predicted one in its window, in `n_steps` equal steps; steps without
    /// tokens are left out.
    pub fn by_position(&self, n_steps: usize) -> Vec<PositionStep> {
        let ctx = self.windowing.ctx;
        let mut steps = vec![(0.0, 0_u64); n_steps];
        let mut nlls = self.nlls.iter();
        for chunk in &self.per_chunk {
            let n_scored = chunk.tokens as usize;
            // The scored tokens end the window; a window that is the whole text may be shorter, and begins at 0.
            let first =
                if self.per_chunk.len() == 1 && n_scored < ctx / 2 { 1 } else { ctx - n_scored.min(ctx) };
            for (place, nll) in (first..).zip(nlls.by_ref().take(n_scored)) {
                let step = &mut steps[(place * n_steps / ctx.max(1)).min(n_steps - 1)];
                step.0 += nll;
                step.1 += 1;
            }
        }
        let bound = |index: usize| (index * ctx).div_ceil(n_steps);
        let step = |(index, &(nll, tokens)): (usize, &(f64, u64))| PositionStep {
            from: bound(index),
            to: bound(index + 1).saturating_sub(1),
            ppl: (nll / tokens as f64).exp(),
            tokens,
        };
        steps.iter().enumerate().filter(|(_, (_, tokens))| *tokens > 0).map(step).collect()
    }
}

/// Of a mean, values taken as independent; 0 where there are fewer than two.
pub(crate) fn standard_error(values: &[f64], mean: f64) -> f64 {
    let n = values.len() as f64;
    if values.len() < 2 {
        return 0.0;
    }
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (squares / n / (n - 1.0)).sqrt()
}

/// Measures a model on a text. What the journal holds is not run again.
///
/// # Errors
/// When the text is too short for the windows, the model fails, or the user stops it.
pub fn perplexity(
    model: &mut dyn LanguageModel,
    text: &EvalText,
    windowing: Windowing,
    journal: &mut Journal,
    host: &dyn Host,
) -> Result<Perplexity, EvalError> {
    let windows = windows(text.tokens().len(), windowing, model.context_len())?;
    let (mut per_chunk, mut nlls, mut nll_sum) = (Vec::new(), Vec::new(), 0.0);
    let work = Work { what: "perplexity", unit: "chunks", n: windows.len() };
    let is_whole = |i: usize, scored: &Vec<f64>| scored.len() == windows[i].n_scored();
    journal.each(work, host, &is_whole, &mut |i| score(model, text, &windows[i]), &mut |scored| {
        let sum: f64 = scored.iter().sum();
        nll_sum += sum;
        per_chunk.push(Chunk { nll_sum: sum, tokens: scored.len() as u64 });
        nlls.extend(scored);
        format!("ppl {:.4}", (nll_sum / nlls.len() as f64).exp())
    })?;
    Ok(Perplexity::new(windowing, per_chunk, nlls, scored_bytes(text, &windows)))
}

/// Bytes of the tokens that the windows score.
pub(crate) fn scored_bytes(text: &EvalText, windows: &[Window]) -> u64 {
    let bytes = |w: &Window| text.n_bytes()[w.scored..w.end].iter().map(|&n| u64::from(n)).sum::<u64>();
    windows.iter().map(bytes).sum()
}

/// The negative log-likelihood of each scored token of a window, in nats.
fn score(model: &mut dyn LanguageModel, text: &EvalText, window: &Window) -> Result<Vec<f64>, EvalError> {
    predictions(model, text, window, &|target, row| nll(row, text.tokens()[target], target))
}

/// The negative log-likelihood of `token`, token number `target` of the text, by a row of logits.
pub(crate) fn nll(row: &[f32], token: TokenId, target: usize) -> Result<f64, EvalError> {
    let not_finite = EvalError::NotFinite { token_index: target };
    let vocab_size = row.len();
    let logit = *row
        .get(token as usize)
        .ok_or(EvalError::Forward(slmc_ir::ForwardError::Token { token, vocab_size }))?;
    Ok(log_sum_exp(row).ok_or(not_finite)? - f64::from(logit))
}

/// What is made of the row that predicts a token, named by its place in the text.
pub(crate) type OfRow<'v, T> = dyn Fn(usize, &[f32]) -> Result<T, EvalError> + Sync + 'v;

/// Runs a window; what `of_row(target, row)` makes of the row that predicts each scored token, `target` being the token's
/// place in the text. Rows are looked at by several threads, results are in order.
pub(crate) fn predictions<T: Send>(
    model: &mut dyn LanguageModel,
    text: &EvalText,
    window: &Window,
    of_row: &OfRow<'_, T>,
) -> Result<Vec<T>, EvalError> {
    let mut tokens = text.tokens()[window.start..window.end].to_vec();
    if let Some(bos) = text.bos().filter(|_| window.begins_with_bos) {
        tokens[0] = bos;
    }
    let vocab_size = model.vocab_size();
    let first = window.scored - 1 - window.start;
    let mut made = Vec::with_capacity(window.end - window.scored);
    let mut expected = first;
    let mut outcome = Ok(());
    model.forward(&tokens, first, &mut |position, rows| {
        if outcome.is_err() {
            return;
        }
        if position != expected || rows.is_empty() || !rows.len().is_multiple_of(vocab_size) {
            outcome = Err(EvalError::Row { position, n_logits: rows.len(), expected, vocab_size });
            return;
        }
        expected += rows.len() / vocab_size;
        // The last row predicts what lies beyond the window.
        let n = (tokens.len() - 1).saturating_sub(position);
        let rows = rows.par_chunks_exact(vocab_size).take(n).enumerate();
        let some: Result<Vec<T>, EvalError> =
            rows.map(|(i, row)| of_row(window.start + position + i + 1, row)).collect();
        match some {
            Ok(some) => made.extend(some),
            Err(error) => outcome = Err(error),
        }
    })?;
    outcome?;
    if expected + 1 < tokens.len() {
        return Err(EvalError::Row { position: tokens.len(), n_logits: 0, expected, vocab_size });
    }
    Ok(made)
}
