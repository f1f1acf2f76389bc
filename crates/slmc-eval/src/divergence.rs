//! Kullback-Leibler divergence: how far a model's predictions are from its baseline's, token by token.
//!
//! KL(base || model) at each scored position of llama-perplexity's protocol. Far more sensitive than perplexity:
//! both models see the same text, and luck with the true next token drops out.

use serde::{Deserialize, Serialize};
use slmc_ir::{Host, LanguageModel};

use crate::{
    EvalError, EvalText, Journal, Paired, Windowing,
    journal::Work,
    log_softmax::{argmax, exp_of_non_positive, log_sum_exp},
    perplexity::{nll, predictions, standard_error},
    windows::{Window, windows},
};

/// How far a model is from its baseline on a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean KL(base || model) of a token, in nats.
    pub kld: f64,
    /// Standard error of `kld`, tokens taken as independent.
    pub kld_standard_error: f64,
    /// Median KL of a token.
    pub kld_median: f64,
    /// The KL that 99 % of the tokens stay below.
    pub kld_p99: f64,
    /// The largest KL of a token.
    pub kld_max: f64,
    /// Share of the tokens for which both models think the same token likeliest, 0 to 1.
    pub same_top: f64,
    /// Perplexity of the model.
    pub ppl: f64,
    /// Perplexity of the baseline.
    pub ppl_base: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// How the text was cut.
    pub windowing: Windowing,
    /// KL token by token, in nats, in the order of the text.
    #[serde(skip)]
    pub klds: Vec<f64>,
}

impl Divergence {
    /// What a pair of models comes to.
    pub fn of(paired: &Paired, windowing: Windowing) -> Self {
        let tally = Tally {
            klds: paired.klds.clone(),
            n_same_top: paired.same_top.iter().filter(|&&same| same).count() as u64,
            nll: paired.nlls.iter().sum(),
            nll_base: paired.nlls_base.iter().sum(),
        };
        tally.finish(windowing)
    }
}

/// Sums over the tokens scored so far.
#[derive(Default)]
struct Tally {
    klds: Vec<f64>,
    n_same_top: u64,
    nll: f64,
    nll_base: f64,
}

/// Measures a model against a baseline. Both run window by window; the baseline's rows of one window are held
/// (`scored tokens * vocab_size` f32: 50 MB for 255 tokens of a vocabulary of 49152).
///
/// # Errors
/// When the vocabularies differ, the text is too short, a model fails, or the user stops it.
pub fn kl_divergence(
    model: &mut dyn LanguageModel,
    baseline: &mut dyn LanguageModel,
    text: &EvalText,
    windowing: Windowing,
    journal: &mut Journal,
    host: &dyn Host,
) -> Result<Divergence, EvalError> {
    if model.vocab_size() != baseline.vocab_size() {
        return Err(EvalError::Vocabulary { model: model.vocab_size(), baseline: baseline.vocab_size() });
    }
    let context_len = model.context_len().min(baseline.context_len());
    let windows = windows(text.tokens().len(), windowing, context_len)?;
    let mut tally = Tally::default();
    let work = Work { what: "KL divergence", unit: "chunks", n: windows.len() };
    let is_whole = |i: usize, chunk: &Vec<Compared>| chunk.len() == windows[i].n_scored();
    let mut compare = |i: usize| compared(model, baseline, text, &windows[i]);
    journal.each(work, host, &is_whole, &mut compare, &mut |chunk| {
        tally.add(chunk);
        format!("kld {:.5}", tally.mean())
    })?;
    Ok(tally.finish(windowing))
}

impl Tally {
    fn add(&mut self, chunk: Vec<Compared>) {
        for token in chunk {
            self.nll_base += token.nll_base;
            self.nll += token.nll;
            self.klds.push(token.kld);
            self.n_same_top += u64::from(token.same_top);
        }
    }

    fn mean(&self) -> f64 {
        self.klds.iter().sum::<f64>() / self.klds.len() as f64
    }

    fn finish(self, windowing: Windowing) -> Divergence {
        let n = self.klds.len() as f64;
        let kld = self.mean();
        let mut sorted = self.klds.clone();
        sorted.sort_by(f64::total_cmp);
        Divergence {
            kld,
            kld_standard_error: standard_error(&self.klds, kld),
            kld_median: quantile(&sorted, 0.5),
            kld_p99: quantile(&sorted, 0.99),
            kld_max: quantile(&sorted, 1.0),
            same_top: self.n_same_top as f64 / n,
            ppl: (self.nll / n).exp(),
            ppl_base: (self.nll_base / n).exp(),
            tokens: self.klds.len() as u64,
            windowing,
            klds: self.klds,
        }
    }
}

/// How two models' predictions of a token differ.
#[derive(Serialize, Deserialize)]
pub(crate) struct Compared {
    pub nll_base: f64,
    pub nll: f64,
    /// KL(base || model), in nats.
    pub kld: f64,
    pub same_top: bool,
}

/// Both models on a window, token by token; the baseline's rows are held.
pub(crate) fn compared(
    model: &mut dyn LanguageModel,
    baseline: &mut dyn LanguageModel,
    text: &EvalText,
    window: &Window,
) -> Result<Vec<Compared>, EvalError> {
    let held = predictions(baseline, text, window, &|target, row| {
        Ok((nll(row, text.tokens()[target], target)?, row.to_vec()))
    })?;
    predictions(model, text, window, &|target, row| {
        let not_finite = EvalError::NotFinite { token_index: target };
        let (nll_base, base) = &held[target - window.scored];
        Ok(Compared {
            nll_base: *nll_base,
            nll: nll(row, text.tokens()[target], target)?,
            kld: kl(base, row).ok_or(not_finite)?,
            same_top: argmax(base) == argmax(row),
        })
    })
}

/// The value at a share of a sorted list, linear between neighbours.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

/// KL(p || q) of two rows of logits, in nats; `None` if either is not finite.
pub(crate) fn kl(base: &[f32], row: &[f32]) -> Option<f64> {
    let (base_sum, sum) = (log_sum_exp(base)?, log_sum_exp(row)?);
    let term = |(&b, &x): (&f32, &f32)| {
        let log_p = f64::from(b) - base_sum;
        f64::from(exp_of_non_positive(log_p as f32)) * (log_p - (f64::from(x) - sum))
    };
    Some(base.iter().zip(row).map(term).sum())
}
