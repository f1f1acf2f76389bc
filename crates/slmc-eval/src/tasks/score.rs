//! What a model thinks of each choice.
//!
//! As lm-evaluation-harness has it: spaces at the end of the context belong to the continuation; both are encoded together,
//! and the tokens after those of the context alone are the continuation's; a sequence longer than the model sees loses its
//! beginning. BOS stands first where the model begins texts with it (the harness leaves it out unless asked; llama.cpp does
//! not), and alone where the context is empty.

use slmc_data::{Special, Tokenizer};
use slmc_ir::{Host, LanguageModel, TokenId};

use super::{
    Item, ItemResult, TaskFile, TaskKind, TaskResult,
    writing::{Answers, write_answer},
};
use crate::{
    EvalError, Journal,
    journal::Work,
    log_softmax::{argmax, log_sum_exp},
};

/// A model that is asked: how its texts are read, and which tokens end them.
pub struct Asked<'a> {
    /// The model.
    pub model: &'a mut dyn LanguageModel,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end what it writes.
    pub ends: &'a [TokenId],
}

/// Runs a task. What the journal holds is not asked again. A model that keeps what it computed for the beginning of the sequence before, as sessions of the engine do,
/// scores what choices share once: they come one after the other.
///
/// # Errors
/// When a text cannot be encoded, the model fails, or the user stops it.
pub fn run_task(
    task: &TaskFile,
    items: &[Item],
    asked: &mut Asked<'_>,
    journal: &mut Journal,
    host: &dyn Host,
) -> Result<TaskResult, EvalError> {
    let answers = match task.kind {
        TaskKind::Generation => Some(Answers::of(task).map_err(|e| EvalError::Task(Box::new(e)))?),
        _ => None,
    };
    let mut results = Vec::with_capacity(items.len());
    let mut n_right = 0;
    let mut ask = |i: usize| {
        let item = &items[i];
        let Some(answers) = &answers else { return score_item(item, asked.model, asked.tokenizer) };
        let (context, target) = &item.choices[0];
        let written = write_answer(task, answers, context, target, asked)?;
        Ok(ItemResult { item: item.index, written: Some(written), ..ItemResult::default() })
    };
    let is_whole = |i: usize, result: &ItemResult| {
        let n = if answers.is_some() { 0 } else { items[i].choices.len() };
        let lens =
            [result.log_likelihoods.len(), result.bytes.len(), result.chars.len(), result.greedy.len()];
        result.item == items[i].index
            && lens == [n; 4]
            && result.written.is_some() == answers.is_some()
            && (answers.is_some() || result.label == items[i].label)
    };
    let work = Work { what: &task.name, unit: "items", n: items.len() };
    journal.each(work, host, &is_whole, &mut ask, &mut |scored| {
        n_right += usize::from(scored.right(task.metric, task.kind));
        results.push(scored);
        format!("{n_right} of {} right", results.len())
    })?;
    Ok(TaskResult::new(task, results))
}

fn score_item(
    item: &Item,
    model: &mut dyn LanguageModel,
    tokenizer: &Tokenizer,
) -> Result<ItemResult, EvalError> {
    let mut result = ItemResult { item: item.index, label: item.label, ..ItemResult::default() };
    for ((context, continuation), text) in item.choices.iter().zip(&item.lengths_of) {
        let (tokens, n_context) = encode_pair(tokenizer, context, continuation)?;
        let (log_likelihood, is_greedy) = score(model, &tokens, n_context)?;
        result.log_likelihoods.push(log_likelihood);
        result.bytes.push(text.len());
        result.chars.push(text.chars().count());
        result.greedy.push(is_greedy);
    }
    Ok(result)
}

/// Context and continuation as tokens, and how many of them are the context's: at least one.
fn encode_pair(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
) -> Result<(Vec<TokenId>, usize), EvalError> {
    let kept = context.trim_end();
    let whole = format!("{context}{continuation}");
    let special = tokenizer.special();
    let mut tokens: Vec<TokenId> = special.bos.into_iter().filter(|_| special.add_bos).collect();
    if kept.is_empty() && tokens.is_empty() {
        tokens.extend(special.bos.or(special.eos));
    }
    let n_before = tokens.len();
    let n_context = n_before + tokenizer.encode(kept, Special::Plain)?.len();
    tokens.extend(tokenizer.encode(&whole, Special::Plain)?);
    // An encoding of both that is no longer than the context's has merged them: its last token is what is scored.
    let n_context = n_context.min(tokens.len().saturating_sub(1)).max(1);
    Ok((tokens, n_context))
}

/// The log-likelihood of the tokens from `n_context` on, and whether each was the likeliest.
fn score(
    model: &mut dyn LanguageModel,
    tokens: &[TokenId],
    n_context: usize,
) -> Result<(f64, bool), EvalError> {
    let n_cut = tokens.len().saturating_sub(1).saturating_sub(model.context_len());
    let tokens = &tokens[n_cut..];
    let n_context = n_context.saturating_sub(n_cut).max(1);
    let Some((_, inputs)) = tokens.split_last().filter(|(_, inputs)| inputs.len() >= n_context) else {
        return Err(EvalError::Setting {
            what: "tokens of a choice",
            value: tokens.len(),
            why: "an empty continuation cannot be scored".to_owned(),
        });
    };
    let first = n_context - 1;
    let (mut sum, mut is_greedy, mut expected, mut fault) = (0.0, true, first, None);
    let vocab_size = model.vocab_size();
    model.forward(inputs, first, &mut |position, rows| {
        for (position, row) in (position..).zip(rows.chunks_exact(vocab_size)) {
            let token = tokens[position + 1] as usize;
            match log_sum_exp(row) {
                Some(log_sum) if position == expected && token < row.len() => {
                    sum += f64::from(row[token]) - log_sum;
                    is_greedy &= argmax(row) == token;
                    expected += 1;
                }
                _ => fault = fault.or(Some(position)),
            }
        }
    })?;
    match fault {
        Some(token_index) => Err(EvalError::NotFinite { token_index }),
        None if expected == inputs.len() => Ok((sum, is_greedy)),
        None => Err(EvalError::NotFinite { token_index: expected }),
    }
}
