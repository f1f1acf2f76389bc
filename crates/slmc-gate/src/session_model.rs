//! The engine as evaluation knows a model, keeping what it computed for the beginning of the sequence before.

use slmc_engine::{Engine, EngineError, Session};
use slmc_ir::{ForwardError, LanguageModel, Role, SourceError, TensorKey, TokenId};

/// A session that evaluations can ask. Sequences that begin alike, as the choices of a question do, cost what they share once.
#[derive(Debug)]
pub struct SessionModel<'e> {
    session: Session<'e>,
}

impl<'e> SessionModel<'e> {
    /// With room for `capacity` tokens.
    ///
    /// # Errors
    /// When the model sees fewer.
    pub fn new(engine: &'e Engine, capacity: usize) -> Result<Self, EngineError> {
        Ok(Self { session: engine.session(capacity)? })
    }
}

impl LanguageModel for SessionModel<'_> {
    fn vocab_size(&self) -> usize {
        self.session.engine().spec().vocab_size
    }

    fn context_len(&self) -> usize {
        self.session.capacity()
    }

    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        // The rows that are asked for must be computed again.
        let kept = self.session.keep_prefix(&tokens[..tokens.len().min(first + 1)]);
        self.session
            .read_each(&tokens[kept..], first - kept, &mut |position, rows| visit(kept + position, rows))
            .map_err(forward_error)
    }
}

fn forward_error(error: EngineError) -> ForwardError {
    match error {
        EngineError::Token { token, vocab_size } => ForwardError::Token { token, vocab_size },
        EngineError::Context { n_tokens, held, capacity } => {
            ForwardError::Context { n_tokens: held + n_tokens, context_len: capacity }
        }
        EngineError::NotFinite { position } => ForwardError::NotFinite { position },
        EngineError::Source(source) => source.into(),
        other => SourceError::Other { key: TensorKey::model(Role::Head), message: other.to_string() }.into(),
    }
}
