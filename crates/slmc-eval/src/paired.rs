//! A model beside its baseline, token by token, and how sure the differences are.

use serde::Serialize;
use slmc_ir::{Host, LanguageModel};

use crate::{
    Baseline, EvalError, EvalText, Journal, Windowing,
    baseline::Tables,
    divergence::{Compared, compared, quantile},
    journal::Work,
    log_softmax::log_sum_exp,
    perplexity::predictions,
    stats::{Interval, Resampling, interval},
    windows::windows,
};

/// Both models on the same tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Paired {
    /// The model's negative log-likelihood of each scored token, in nats.
    pub nlls: Vec<f64>,
    /// The baseline's.
    pub nlls_base: Vec<f64>,
    /// KL(base || model) before each scored token, in nats.
    pub klds: Vec<f64>,
    /// Whether both thought the same token likeliest.
    pub same_top: Vec<bool>,
    /// Scored tokens of each chunk, in order.
    pub chunk_tokens: Vec<usize>,
}

/// What a pair of models comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairedFigures {
    /// Perplexity of the model.
    pub ppl: f64,
    /// Perplexity of the baseline.
    pub ppl_base: f64,
    /// `ppl / ppl_base - 1`, from the paired differences.
    pub ppl_increase: Interval,
    /// Mean KL(base || model) of a token, in nats.
    pub kld: Interval,
    /// The KL that 99 % of the tokens stay below.
    pub kld_p99: f64,
    /// Share of the tokens for which both models think the same token likeliest.
    pub same_top: Interval,
    /// Tokens scored.
    pub tokens: u64,
    /// Chunks that they are in: what was drawn for the intervals.
    pub chunks: u64,
}

/// Runs a model over the text that a baseline was recorded on.
///
/// # Errors
/// When the vocabularies or the number of scored tokens differ, the model fails, or the user stops it.
pub fn compare_with_baseline(
    model: &mut dyn LanguageModel,
    baseline: &Baseline,
    text: &EvalText,
    windowing: Windowing,
    journal: &mut Journal,
    host: &dyn Host,
) -> Result<Paired, EvalError> {
    if model.vocab_size() != baseline.vocab_size() {
        return Err(EvalError::Vocabulary { model: model.vocab_size(), baseline: baseline.vocab_size() });
    }
    let windows = windows(text.tokens().len(), windowing, model.context_len())?;
    let nlls_base: Vec<f64> = baseline.nlls().collect();
    let tables = Tables::new();
    let mut paired = Paired::default();
    // Scored tokens before each window.
    let before: Vec<usize> =
        windows.iter().scan(0, |n, w| Some(std::mem::replace(n, *n + w.n_scored()))).collect();
    let mut compare = |i: usize| {
        let (window, before) = (&windows[i], before[i]);
        predictions(model, text, window, &|target, row| {
            let index = before + target - window.scored;
            let Some(&nll_base) = nlls_base.get(index) else {
                return Err(EvalError::BaselineRows { found: nlls_base.len() });
            };
            let log_sum = log_sum_exp(row).ok_or(EvalError::NotFinite { token_index: target })?;
            let divergence = baseline.compare(index, row, log_sum, &tables);
            let nll = log_sum - f64::from(row[text.tokens()[target] as usize]);
            Ok(Compared { nll_base, nll, kld: divergence.kld, same_top: divergence.same_top })
        })
    };
    let work = Work { what: "model", unit: "chunks", n: windows.len() };
    let is_whole = |i: usize, chunk: &Vec<Compared>| chunk.len() == windows[i].n_scored();
    journal.each(work, host, &is_whole, &mut compare, &mut |chunk| paired.extend(chunk))?;
    Ok(paired)
}

/// Runs both models over a text, chunk by chunk; the baseline's rows of one chunk are held.
///
/// # Errors
/// When the vocabularies differ, the text is too short, a model fails, or the user stops it.
pub fn compare_pair(
    model: &mut dyn LanguageModel,
    baseline: &mut dyn LanguageModel,
    text: &EvalText,
    windowing: Windowing,
    journal: &mut Journal,
    host: &dyn Host,
) -> Result<Paired, EvalError> {
    if model.vocab_size() != baseline.vocab_size() {
        return Err(EvalError::Vocabulary { model: model.vocab_size(), baseline: baseline.vocab_size() });
    }
    let windows = windows(text.tokens().len(), windowing, model.context_len().min(baseline.context_len()))?;
    let mut paired = Paired::default();
    let work = Work { what: "compare", unit: "chunks", n: windows.len() };
    let is_whole = |i: usize, chunk: &Vec<Compared>| chunk.len() == windows[i].n_scored();
    let mut compare = |i: usize| compared(model, baseline, text, &windows[i]);
    journal.each(work, host, &is_whole, &mut compare, &mut |chunk| paired.extend(chunk))?;
    Ok(paired)
}

impl Paired {
    /// Adds a chunk; how far the models are apart so far.
    fn extend(&mut self, chunk: Vec<Compared>) -> String {
        self.chunk_tokens.push(chunk.len());
        for token in chunk {
            self.nlls.push(token.nll);
            self.nlls_base.push(token.nll_base);
            self.klds.push(token.kld);
            self.same_top.push(token.same_top);
        }
        format!("kld {:.5}", mean(&self.klds))
    }

    /// The first `n` chunks of it.
    pub fn first_chunks(&self, n: usize) -> Self {
        let chunk_tokens = self.chunk_tokens[..n.min(self.chunk_tokens.len())].to_vec();
        let n_tokens: usize = chunk_tokens.iter().sum();
        Self {
            nlls: self.nlls[..n_tokens].to_vec(),
            nlls_base: self.nlls_base[..n_tokens].to_vec(),
            klds: self.klds[..n_tokens].to_vec(),
            same_top: self.same_top[..n_tokens].to_vec(),
            chunk_tokens,
        }
    }

    /// Mean KL(base || model) of a token.
    pub fn mean_kld(&self) -> f64 {
        mean(&self.klds)
    }

    /// `ppl / ppl_base - 1`.
    pub fn ppl_increase(&self) -> f64 {
        (mean(&self.nlls) - mean(&self.nlls_base)).exp_m1()
    }

    /// The figures with intervals that stand for other text of the same kind.
    pub fn figures(&self, how: Resampling) -> PairedFigures {
        let clusters = self.clusters();
        let per_token = |which: usize| move |sums: &[f64]| sums[which] / sums[0];
        let mut sorted = self.klds.clone();
        sorted.sort_by(f64::total_cmp);
        PairedFigures {
            ppl: mean(&self.nlls).exp(),
            ppl_base: mean(&self.nlls_base).exp(),
            ppl_increase: interval(&clusters, &|sums| (sums[1] / sums[0]).exp_m1(), how),
            kld: interval(&clusters, &per_token(2), how),
            kld_p99: quantile(&sorted, 0.99),
            same_top: interval(&clusters, &per_token(3), how),
            tokens: self.nlls.len() as u64,
            chunks: self.chunk_tokens.len() as u64,
        }
    }

    /// For each chunk: tokens, sum of differences of negative log-likelihood, sum of KL, tokens with the same top.
    pub fn clusters(&self) -> Vec<Vec<f64>> {
        let mut begin = 0;
        let cluster = |&n: &usize| {
            let range = begin..begin + n;
            begin += n;
            let differences = self.nlls[range.clone()].iter().zip(&self.nlls_base[range.clone()]);
            let same = self.same_top[range.clone()].iter().filter(|&&same| same).count();
            vec![
                n as f64,
                differences.map(|(nll, base)| nll - base).sum(),
                self.klds[range].iter().sum(),
                same as f64,
            ]
        };
        self.chunk_tokens.iter().map(cluster).collect()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
