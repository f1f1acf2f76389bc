//! What comes before the training of a taught student: text that its teacher writes, and the fit.

use std::time::Duration;

use slmc_data::Batches;
use slmc_ir::{Checkpoint, ModelSpec, TokenId};
use slmc_model::Products;
use slmc_recipe::{Budget, StageContext, StageError};
use slmc_train::Precision;

use super::{
    Teaching, Training,
    data::{SampledText, Writing},
    fit::{self, Fitted, Limits},
    precision_of,
};

/// Shares of a budget in minutes that what comes before the training may take.
const SHARE_OF_WRITING: f64 = 0.2;
const SHARE_OF_FIT: f64 = 0.4;

/// Tokens of a fit for each input of a projection, at the least: with as many tokens as inputs a fit gets each of them
/// right and is worth nothing elsewhere.
const TOKENS_PER_INPUT: usize = 8;

/// Tokens that a student is fitted on where so many are asked for.
pub(crate) fn fitted_tokens(asked: usize, student: &ModelSpec) -> usize {
    asked.max(TOKENS_PER_INPUT * student.d_ff)
}

/// Text that the teacher has written. What the student is fitted to is not what it learns from: what was fitted to has little left
/// to teach.
#[derive(Default)]
pub(super) struct Written {
    /// With its share of the training.
    to_learn_from: Option<(SampledText, f64)>,
    to_fit_to: Option<SampledText>,
}

impl Written {
    pub fn to_learn_from(&self) -> Option<(&SampledText, f64)> {
        self.to_learn_from.as_ref().map(|(text, share)| (text, *share))
    }

    pub fn seconds(&self) -> f64 {
        self.texts().map(|text| text.seconds).sum()
    }

    pub fn n_documents(&self) -> usize {
        self.texts().map(|text| text.n_documents).sum()
    }

    fn texts(&self) -> impl Iterator<Item = &SampledText> {
        self.to_learn_from.iter().map(|(text, _)| text).chain(&self.to_fit_to)
    }
}

impl Teaching {
    /// Tokens that the teacher writes: to be learnt from, and to be fitted to.
    fn asked_to_write(&self, student: &ModelSpec) -> [usize; 2] {
        if self.sampled_tokens == 0 || self.sampled_share == 0.0 {
            return [0, 0];
        }
        let fit_tokens = if self.fit_tokens == 0 { 0 } else { fitted_tokens(self.fit_tokens, student) };
        [self.sampled_tokens, (fit_tokens as f64 * self.fit_sampled_share).ceil() as usize]
    }
}

impl Training {
    /// A share of the minutes, where there are any.
    fn at_most(&self, share: f64) -> Option<Duration> {
        match self.config.budget() {
            Ok(Budget::Minutes(minutes)) => Some(Duration::from_secs_f64((minutes * 60.0 * share).min(1e9))),
            _ => None,
        }
    }

    /// A fit reads rows half as long as the training's. Documents of the teacher's own are as long: more of them, about more.
    fn fit_row_len(&self) -> usize {
        (self.config.seq_len / 2).max(1)
    }

    /// The text that the teacher writes.
    pub(super) fn written(
        &self,
        student: &Checkpoint,
        teacher: Option<&Checkpoint>,
        context: &StageContext<'_>,
    ) -> Result<Written, StageError> {
        let Some((teaching, teacher)) = self.teaching.as_ref().zip(teacher) else {
            return Ok(Written::default());
        };
        let asked = teaching.asked_to_write(student.spec());
        let write = |file, n_tokens: usize, document_len, seed| {
            let share = SHARE_OF_WRITING * n_tokens as f64 / asked.iter().sum::<usize>() as f64;
            let writing = Writing { file, n_tokens, document_len, seed, at_most: self.at_most(share) };
            (n_tokens > 0).then(|| writing.text(teacher, context)).transpose()
        };
        let [to_learn_from, to_fit_to] = asked;
        let to_learn_from = write("sampled.json", to_learn_from, self.config.seq_len, context.seed)?;
        let next_seed = context.seed.wrapping_add(1);
        let to_fit_to = write("sampled-for-fit.json", to_fit_to, self.fit_row_len(), next_seed)?;
        Ok(Written { to_learn_from: to_learn_from.map(|text| (text, teaching.sampled_share)), to_fit_to })
    }

    /// The student fitted to its teacher, where that is asked for.
    pub(super) fn fitted(
        &self,
        input: &Checkpoint,
        teacher: Option<&Checkpoint>,
        data: &Batches,
        written: &Written,
        context: &StageContext<'_>,
    ) -> Result<Option<Fitted>, StageError> {
        let Some((teaching, teacher)) = self.teaching.as_ref().zip(teacher) else { return Ok(None) };
        if teaching.fit_tokens == 0 {
            return Ok(None);
        }
        let n_tokens = fitted_tokens(teaching.fit_tokens, input.spec());
        let own = written.to_fit_to.as_ref().map_or(&[][..], |text| &text.tokens);
        let sequences = sequences_to_fit(n_tokens, self.fit_row_len(), own, data, teaching.fit_sampled_share);
        // Proved when the stage was made.
        let products = match precision_of(&self.config).unwrap_or_default() {
            Precision::Bf16 => Products::half().unwrap_or_default(),
            Precision::F32 => Products::Single,
        };
        let limits = Limits { at_most: self.at_most(SHARE_OF_FIT), at_least: fitted_tokens(0, input.spec()) };
        fit::fitted(input, teacher, &sequences, products, limits, context).map(Some)
    }

    /// What came before the training and had no time to come to its end.
    pub(super) fn cut_short(
        &self,
        written: &Written,
        fitted: Option<&Fitted>,
        student: &ModelSpec,
    ) -> Vec<String> {
        let Some(teaching) = &self.teaching else { return Vec::new() };
        let [to_learn_from, to_fit_to] = teaching.asked_to_write(student);
        let texts = [
            (written.to_learn_from().map(|(text, _)| text), to_learn_from, "learn from"),
            (written.to_fit_to.as_ref(), to_fit_to, "be fitted to"),
        ];
        let texts = texts.into_iter().filter_map(|(text, asked, what)| {
            let n_tokens = text.map(|text| text.n_tokens).filter(|&n_tokens| n_tokens < asked)?;
            Some(format!(
                "the teacher had time to write {n_tokens} of {asked} tokens for its student to {what}"
            ))
        });
        let asked = fitted_tokens(teaching.fit_tokens, student);
        let fitted = fitted.filter(|fitted| fitted.notes.n_tokens < asked);
        let fitted = fitted.map(|fitted| match fitted.notes.n_tokens {
            0 => "there was no time for a fit that is worth it: the student trains as it is".to_owned(),
            n_tokens => format!("there was time to fit the student to {n_tokens} of {asked} tokens"),
        });
        texts.chain(fitted).collect()
    }
}

/// The teacher's own text by its share, and of the data what the training comes to last; in turn, so that the first of them are
/// of both kinds, too.
fn sequences_to_fit(
    n_tokens: usize,
    row_len: usize,
    own: &[TokenId],
    data: &Batches,
    share: f64,
) -> Vec<Vec<TokenId>> {
    let mut own = own.chunks_exact(row_len).map(<[TokenId]>::to_vec);
    let mut others = (0..).flat_map(|index| {
        let rows = data.batch_from_the_end(index).inputs;
        rows.chunks_exact(row_len).map(<[TokenId]>::to_vec).collect::<Vec<_>>()
    });
    let own_before = |row: usize| (row as f64 * share).floor();
    let rows = (0..n_tokens.div_ceil(row_len)).filter_map(|row| {
        let wants_own = own_before(row + 1) > own_before(row);
        wants_own.then(|| own.next()).flatten().or_else(|| others.next())
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slmc_data::PackedTokens;

    use super::*;

    #[test]
    fn a_fit_reads_its_own_text_by_its_share_and_what_the_training_comes_to_last() {
        // Ten windows of 8 tokens.
        let data = Batches::new(Arc::new(PackedTokens::from_tokens((0..81).collect())), 8, 2, 3).unwrap();
        let own: Vec<TokenId> = (1000..1027).collect();
        let rows = sequences_to_fit(40, 4, &own, &data, 0.75);
        let kinds: Vec<bool> = rows.iter().map(|row| row[0] >= 1000).collect();
        assert_eq!(kinds, [false, true, true, true, false, true, true, true, false, false]);
        // Six whole rows of its own; the last of them is followed by the data's, where a seventh is wanted.
        assert_eq!(rows[7], [1020, 1021, 1022, 1023]);
        let last = data.batch_from_the_end(0).inputs;
        assert_eq!([&rows[0][..], &rows[4]].concat(), last[..8]);
        let first: Vec<TokenId> = (0..3).flat_map(|index| data.batch(index).inputs).collect();
        assert!(rows.iter().all(|row| !first.contains(&row[0])), "the training comes to them later");
    }
}
