//! What a model writes when it is asked, and whether it is any good.
//!
//! Text is written greedily, as lm-evaluation-harness's `generate_until` does by default: until a string of the task's
//! comes up, the model ends its text, or it has written as much as it may. The answer in it is found by a pattern (the
//! harness's `regex` filter) and compared with the right one as text. How a text fails says more about a damaged model than
//! that it is wrong: it goes round in circles, says nothing that can be read, or does not end.

use regex::{Captures, Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use slmc_data::Special;
use slmc_ir::TokenId;

use super::{Asked, TaskError, TaskFile};
use crate::{EvalError, log_softmax::argmax};

/// Times that the same piece has to stand at a text's end, one after the other, for the text to go round in circles.
const ROUNDS: usize = 4;
/// Tokens that those pieces have to come to: `1, 1, 1, 1` may be an answer.
const LEAST_CIRCLE: usize = 24;
/// A compiled pattern's most bytes: a task comes from outside.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// What a model has written for an item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenAnswer {
    /// The text, up to where it was to end.
    pub text: String,
    /// The answer in it, where there is one.
    pub answer: Option<String>,
    /// Whether that is the right one.
    pub right: bool,
    /// Tokens of the text.
    pub n_tokens: usize,
    /// Whether it came to an end by itself.
    pub ended: bool,
    /// Whether it ends in the same piece again and again.
    pub repeats: bool,
    /// Whether there is nothing in it to read: no letter and no digit, or bytes that are no characters.
    pub unreadable: bool,
}

/// How the texts of a task fail, as shares of the items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WritingFigures {
    /// Texts that go round in circles.
    pub repetition: f64,
    /// Texts with nothing in them to read.
    pub unreadable: f64,
    /// Texts that did not end by themselves.
    pub endless: f64,
    /// Texts without an answer.
    pub no_answer: f64,
    /// Tokens of a text, on average.
    pub mean_tokens: f64,
}

impl WritingFigures {
    pub(super) fn of<'a>(texts: impl Iterator<Item = &'a WrittenAnswer> + Clone) -> Self {
        let n = texts.clone().count().max(1) as f64;
        let share =
            |has: fn(&WrittenAnswer) -> bool| texts.clone().filter(|text| has(text)).count() as f64 / n;
        Self {
            repetition: share(|text| text.repeats),
            unreadable: share(|text| text.unreadable),
            endless: share(|text| !text.ended),
            no_answer: share(|text| text.answer.is_none()),
            mean_tokens: texts.map(|text| text.n_tokens as f64).sum::<f64>() / n,
        }
    }
}

/// How a task's answers are found in what was written, and compared.
pub(super) struct Answers {
    pattern: Option<Regex>,
    /// The match that counts, from 0; from the end when negative.
    which: i64,
    ignored: Vec<Regex>,
}

impl Answers {
    pub fn of(task: &TaskFile) -> Result<Self, TaskError> {
        let compile = |pattern: &String| {
            RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build().map_err(|e| {
                TaskError::Definition {
                    task: task.name.clone(),
                    message: format!("the pattern `{pattern}` cannot be used: {e}"),
                }
            })
        };
        Ok(Self {
            pattern: task.regex_pattern.as_ref().map(compile).transpose()?,
            which: task.group_select,
            ignored: task.regexes_to_ignore.iter().map(compile).collect::<Result<_, _>>()?,
        })
    }

    /// The answer in a text: the first group of the match that counts, or all of it; the whole text without a pattern.
    fn find(&self, text: &str) -> Option<String> {
        let Some(pattern) = &self.pattern else { return Some(text.trim().to_owned()) };
        let of_match = |found: Captures<'_>| {
            let group = found.iter().skip(1).flatten().next().or(found.get(0));
            group.map(|group| group.as_str().trim().to_owned())
        };
        let mut found: Vec<Captures<'_>> = pattern.captures_iter(text).collect();
        let index = match usize::try_from(self.which) {
            Ok(index) => index,
            Err(_) => found.len().checked_sub(usize::try_from(self.which.unsigned_abs()).ok()?)?,
        };
        (index < found.len()).then(|| found.swap_remove(index)).and_then(of_match)
    }

    fn equal(&self, answer: &str, target: &str) -> bool {
        let bare = |text: &str| {
            let text = self
                .ignored
                .iter()
                .fold(text.to_owned(), |text, ignored| ignored.replace_all(&text, "").into_owned());
            text.trim().to_owned()
        };
        bare(answer) == bare(target)
    }
}

/// Asks a model to go on from a context.
pub(super) fn write_answer(
    task: &TaskFile,
    answers: &Answers,
    context: &str,
    target: &str,
    asked: &mut Asked<'_>,
) -> Result<WrittenAnswer, EvalError> {
    let Written { tokens, text, ended } = write(task, context, asked)?;
    let answer = answers.find(&text).filter(|answer| !answer.is_empty());
    Ok(WrittenAnswer {
        right: answer.as_ref().is_some_and(|answer| answers.equal(answer, target)),
        answer,
        n_tokens: tokens.len(),
        ended,
        repeats: goes_in_circles(&tokens),
        unreadable: !text.chars().any(char::is_alphanumeric) || text.contains(char::REPLACEMENT_CHARACTER),
        text,
    })
}

struct Written {
    tokens: Vec<TokenId>,
    text: String,
    ended: bool,
}

fn write(task: &TaskFile, context: &str, asked: &mut Asked<'_>) -> Result<Written, EvalError> {
    let Asked { model, tokenizer, ends } = asked;
    let special = tokenizer.special();
    let mut sequence: Vec<TokenId> = special.bos.into_iter().filter(|_| special.add_bos).collect();
    sequence.extend(tokenizer.encode(context, Special::Plain)?);
    if sequence.is_empty() {
        sequence.extend(special.bos.or(special.eos));
    }
    // As the harness has it: what is to be written has its room, and a longer context loses its beginning.
    let room = model.context_len().saturating_sub(task.max_gen_toks).max(1);
    sequence.drain(..sequence.len().saturating_sub(room));
    let n_context = sequence.len();
    let (mut text, mut ended) = (String::new(), false);
    while sequence.len() - n_context < task.max_gen_toks && sequence.len() < model.context_len() {
        let last = sequence.len() - 1;
        let mut next = None;
        model.forward(&sequence, last, &mut |_, row| {
            next = row.iter().all(|logit| logit.is_finite()).then(|| argmax(row) as TokenId);
        })?;
        let next = next.ok_or(EvalError::NotFinite { token_index: last })?;
        if ends.contains(&next) {
            ended = true;
            break;
        }
        sequence.push(next);
        text = tokenizer.decode(&sequence[n_context..])?;
        if let Some(end) = task.until.iter().filter_map(|until| text.find(until.as_str())).min() {
            text.truncate(end);
            ended = true;
            break;
        }
    }
    Ok(Written { tokens: sequence.split_off(n_context), text, ended })
}

/// Whether the tokens end in one piece, again and again.
fn goes_in_circles(tokens: &[TokenId]) -> bool {
    (1..=tokens.len() / ROUNDS).any(|n| {
        let n_tokens = (n * ROUNDS).max(LEAST_CIRCLE);
        tokens.len().checked_sub(n_tokens).is_some_and(|first| {
            let end = &tokens[first..];
            end.iter().zip(&end[n..]).all(|(a, b)| a == b)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(keys: &str) -> Answers {
        let text = format!(
            "name = 'x'\nkind = 'generation'\ndata = 'x'\ndoc_to_text = 'Q'\ndoc_to_target = 'a'\n{keys}"
        );
        Answers::of(&TaskFile::parse(&text, "x").unwrap()).unwrap()
    }

    #[test]
    fn an_answer_is_the_match_that_counts() {
        let last = answers("regex_pattern = '(-?[$0-9.,]{2,})|(-?[0-9]+)'\ngroup_select = -1");
        assert_eq!(last.find("3 apples and 4, so $1,250.").as_deref(), Some("$1,250."));
        assert_eq!(last.find("7").as_deref(), Some("7"));
        assert_eq!(last.find("none"), None);
        let strict = answers("regex_pattern = '#### (\\-?[0-9.,]+)'");
        assert_eq!(strict.find("1 #### 42 and #### 43").as_deref(), Some("42"));
        let third = answers("regex_pattern = '[0-9]'\ngroup_select = -3");
        assert_eq!(third.find("1 2"), None);
        assert_eq!(third.find("1 2 3 4").as_deref(), Some("2"));
        assert_eq!(answers("").find(" whole \n").as_deref(), Some("whole"));
    }

    #[test]
    fn what_is_ignored_makes_no_difference() {
        let answers = answers("regexes_to_ignore = [',', '\\$', '\\.$']");
        assert!(answers.equal("$1,250.", "1250"));
        assert!(!answers.equal("12.50", "1250"));
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_named() {
        let text = "name = 'x'\nkind = 'generation'\ndata = 'x'\ndoc_to_text = 'Q'\ndoc_to_target = 'a'\n";
        for pattern in ["(", "(a{1000}){1000}"] {
            let task = TaskFile::parse(&format!("{text}regex_pattern = '{pattern}'"), "x").unwrap();
            let message = Answers::of(&task).err().unwrap().to_string();
            assert!(message.contains(pattern), "{message}");
        }
    }

    #[test]
    fn circles_are_pieces_that_come_again_at_the_end() {
        let piece = [5, 6, 7, 8, 9, 10, 11];
        let mut tokens = vec![1, 2, 3];
        tokens.extend(piece.repeat(3));
        assert!(!goes_in_circles(&tokens));
        tokens.extend(piece);
        assert!(goes_in_circles(&tokens));
        tokens.push(12);
        assert!(!goes_in_circles(&tokens));
        assert!(goes_in_circles(&[9; 24]));
        assert!(!goes_in_circles(&[9; 23]));
        assert!(!goes_in_circles(&[]));
    }
}
