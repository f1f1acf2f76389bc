//! Many sequences that grow side by side: a step reads the weights once for all of them.

use slmc_ir::TokenId;

use crate::{
    Engine, EngineError,
    input::Pass,
    session::finite,
    state::{Places, State},
};

/// Sequences, each with a cache of its own. The logits of each are those that a [`Session`](crate::Session) of its
/// own gives when tokens come one at a time, bit for bit.
#[derive(Debug)]
pub struct Crowd<'e> {
    engine: &'e Engine,
    state: State,
    /// Tokens that each sequence holds.
    lens: Vec<usize>,
}

impl<'e> Crowd<'e> {
    pub(crate) fn new(engine: &'e Engine, n_sequences: usize, capacity: usize) -> Result<Self, EngineError> {
        let context_len = engine.spec().context_len;
        if capacity == 0 || capacity > context_len {
            return Err(EngineError::Setting {
                what: "context",
                value: capacity.to_string(),
                why: format!("the model sees between 1 and {context_len} tokens"),
            });
        }
        if n_sequences == 0 {
            let why = "at least one is needed".to_owned();
            return Err(EngineError::Setting { what: "sequences", value: "0".to_owned(), why });
        }
        Ok(Self { engine, state: State::new(engine, n_sequences, capacity), lens: vec![0; n_sequences] })
    }

    /// Tokens that each sequence holds.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Forgets a sequence: it begins anew.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn clear(&mut self, sequence: usize) {
        self.lens[sequence] = 0;
    }

    /// Adds a token to each sequence; the logits after them, `[n_sequences, vocab_size]`.
    ///
    /// # Errors
    /// When there is not one token for each sequence, a sequence is full, a token is outside the vocabulary, or the
    /// logits are not finite. Only in the last case are they added.
    pub fn step(&mut self, tokens: &[TokenId]) -> Result<&[f32], EngineError> {
        let vocab_size = self.engine.spec().vocab_size;
        let (n_sequences, capacity) = (self.lens.len(), self.state.capacity());
        if tokens.len() != n_sequences {
            let why = format!("there are {n_sequences} sequences");
            return Err(EngineError::Setting {
                what: "tokens of a step",
                value: tokens.len().to_string(),
                why,
            });
        }
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(EngineError::Token { token, vocab_size });
        }
        if let Some(&held) = self.lens.iter().find(|&&len| len == capacity) {
            return Err(EngineError::Context { n_tokens: 1, held, capacity });
        }
        self.state.run(self.engine, tokens, 0, Places::Apart(&self.lens), Pass::Write)?;
        let logits = self.state.logits(self.engine, 0, n_sequences);
        for (len, logits) in self.lens.iter_mut().zip(logits.chunks_exact(vocab_size)) {
            finite(logits, *len)?;
            *len += 1;
        }
        Ok(logits)
    }
}
