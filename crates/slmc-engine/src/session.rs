//! A context that grows token by token.

use std::sync::atomic::{AtomicUsize, Ordering};

use slmc_ir::TokenId;
use slmc_kernels::Team;

use crate::{
    Engine, EngineError,
    input::Pass,
    state::{Places, State},
};

/// Tokens that are run at once: bounds the buffers, and is enough to keep the kernels busy.
pub const BATCH_ROWS: usize = 512;
/// Numbers of logits that are made at once, about: bounds the memory to 16 MiB.
const LOGITS: usize = 1 << 22;
/// Rows of logits that are made at once: no fewer, so that unpacking the head is little beside using it.
const LOGIT_ROWS: std::ops::RangeInclusive<usize> = 16..=128;

/// Tokens and their keys and values. Once a step of one token has run, further ones allocate nothing.
///
/// Tokens are read, where a text is there, or written, where one follows from the other: on a CPU that multiplies bf16 in tiles
/// what is read is computed with bf16 activations, what is written with int8 everywhere. The same bits come out whatever the
/// number of threads, and whether tokens come one at a time or in a batch.
#[derive(Debug)]
pub struct Session<'e> {
    engine: &'e Engine,
    state: State,
    tokens: Vec<TokenId>,
}

impl<'e> Session<'e> {
    pub(crate) fn new(engine: &'e Engine, capacity: usize) -> Result<Self, EngineError> {
        let context_len = engine.spec().context_len;
        if capacity == 0 || capacity > context_len {
            return Err(EngineError::Setting {
                what: "context",
                value: capacity.to_string(),
                why: format!("the model sees between 1 and {context_len} tokens"),
            });
        }
        Ok(Self::with_state(engine, State::new(engine, 1, capacity)))
    }

    pub(crate) fn with_state(engine: &'e Engine, state: State) -> Self {
        let tokens = Vec::with_capacity(state.capacity());
        Self { engine, state, tokens }
    }

    pub(crate) fn into_state(self) -> State {
        self.state
    }

    /// The model.
    pub fn engine(&self) -> &'e Engine {
        self.engine
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Tokens that fit in all.
    pub fn capacity(&self) -> usize {
        self.state.capacity()
    }

    /// Forgets all but the first `n` tokens.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
    }

    /// Keeps the tokens that begin `prompt` too, forgets the others, and says how many it kept: what is left to
    /// append is `prompt[kept..]`. At least the last of the prompt is left, so that its logits can be had.
    pub fn keep_prefix(&mut self, prompt: &[TokenId]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len().saturating_sub(1));
        self.tokens.truncate(kept);
        kept
    }

    /// Reads tokens: a prompt, or what it goes on with. The logits after the last one, `[vocab_size]`.
    ///
    /// # Errors
    /// When there are none, they do not fit, one is outside the vocabulary, or the logits are not finite. Only in
    /// the last case are they added.
    pub fn read(&mut self, tokens: &[TokenId]) -> Result<&[f32], EngineError> {
        self.add(tokens, Pass::Read)
    }

    /// Adds tokens that were written, one or several; the logits after the last one, `[vocab_size]`.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn append(&mut self, tokens: &[TokenId]) -> Result<&[f32], EngineError> {
        self.add(tokens, Pass::Write)
    }

    pub(crate) fn add(&mut self, tokens: &[TokenId], pass: Pass) -> Result<&[f32], EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        self.check(tokens)?;
        let n_batches = tokens.len().div_ceil(BATCH_ROWS);
        for (number, batch) in tokens.chunks(BATCH_ROWS).enumerate() {
            let is_last = number + 1 == n_batches;
            self.run(batch, batch.len() - usize::from(is_last), pass)?;
        }
        let position = self.tokens.len() - 1;
        let logits = self.state.logits(self.engine, 0, 1);
        finite(logits, position)?;
        Ok(logits)
    }

    /// Reads tokens and hands over the logits after each of them from number `first` on, in order, some rows at a time:
    /// `visit(i, rows)`, rows of `vocab_size`, the first of them after `tokens[i]`.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn read_each(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.add_each(tokens, first, Pass::Read, visit)
    }

    /// As [`Session::read_each`], of tokens that were written.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn append_each(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.add_each(tokens, first, Pass::Write, visit)
    }

    pub(crate) fn add_each(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        pass: Pass,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check(tokens)?;
        let vocab_size = self.engine.spec().vocab_size;
        // Whole sixteens: what the kernels multiply at once.
        let n_at_once = (LOGITS / vocab_size.max(1) / 16 * 16).clamp(*LOGIT_ROWS.start(), *LOGIT_ROWS.end());
        for (number, batch) in tokens.chunks(BATCH_ROWS).enumerate() {
            let begin = number * BATCH_ROWS;
            if first >= tokens.len() {
                break;
            }
            let first_wanted = first.saturating_sub(begin).min(batch.len());
            self.run(batch, first_wanted, pass)?;
            let mut row = first_wanted;
            while row < batch.len() {
                let n = n_at_once.min(batch.len() - row);
                let logits = self.state.logits(self.engine, row - first_wanted, n);
                all_finite(logits, vocab_size, begin + row, self.engine.team())?;
                visit(begin + row, logits);
                row += n;
            }
        }
        Ok(())
    }

    /// Reads tokens; what the head would multiply after each of them comes at the end of `hidden`, `[n_tokens, d_model]`:
    /// for whoever compares all of a distribution and has a head of its own.
    ///
    /// # Errors
    /// As [`Session::read`]; there may be nothing to add.
    pub fn read_hidden(&mut self, tokens: &[TokenId], hidden: &mut Vec<f32>) -> Result<(), EngineError> {
        self.check(tokens)?;
        for batch in tokens.chunks(BATCH_ROWS) {
            let (first, begin) = (self.tokens.len(), hidden.len());
            self.run(batch, 0, Pass::Read)?;
            self.state.hidden(self.engine, batch.len(), hidden);
            let rows = hidden[begin..].chunks_exact(self.engine.spec().d_model);
            rows.enumerate().try_for_each(|(row, numbers)| finite(numbers, first + row))?;
        }
        Ok(())
    }

    fn check(&self, tokens: &[TokenId]) -> Result<(), EngineError> {
        let vocab_size = self.engine.spec().vocab_size;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(EngineError::Token { token, vocab_size });
        }
        let (n_tokens, held, capacity) = (tokens.len(), self.tokens.len(), self.capacity());
        if n_tokens > capacity - held {
            return Err(EngineError::Context { n_tokens, held, capacity });
        }
        Ok(())
    }

    /// Runs a batch; what comes after the blocks is made for its tokens from number `first_wanted` on.
    fn run(&mut self, batch: &[TokenId], first_wanted: usize, pass: Pass) -> Result<(), EngineError> {
        self.state.run(self.engine, batch, first_wanted, Places::From(self.tokens.len()), pass)?;
        self.tokens.extend_from_slice(batch);
        Ok(())
    }
}

/// That rows of logits are finite, of tokens from `position` on.
fn all_finite(logits: &[f32], vocab_size: usize, position: usize, team: &Team) -> Result<(), EngineError> {
    let first = AtomicUsize::new(usize::MAX);
    team.run(logits.len() / vocab_size, &|row| {
        if !slmc_kernels::all_finite(&logits[row * vocab_size..(row + 1) * vocab_size]) {
            first.fetch_min(position + row, Ordering::Relaxed);
        }
    });
    match first.into_inner() {
        usize::MAX => Ok(()),
        position => Err(EngineError::NotFinite { position }),
    }
}

pub(crate) fn finite(logits: &[f32], position: usize) -> Result<(), EngineError> {
    if slmc_kernels::all_finite(logits) { Ok(()) } else { Err(EngineError::NotFinite { position }) }
}
