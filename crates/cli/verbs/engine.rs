//! Models in the engine.

use slmc_engine::{Engine, EngineError, EngineOptions};
use slmc_ir::Checkpoint;
use slmc_stages::Exactness;

use super::Session;
use crate::failure::Failure;

/// How models are run.
pub fn options(exactness: Exactness, session: &Session<'_>) -> EngineOptions {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    exactness.options(session.global.threads.unwrap_or_else(all))
}

/// Lays a model out.
pub fn load(checkpoint: &Checkpoint, exactness: Exactness, session: &Session<'_>) -> Result<Engine, Failure> {
    Engine::load(checkpoint, options(exactness, session)).map_err(failure)
}

/// How a failure of the engine ends the program.
pub fn failure(error: EngineError) -> Failure {
    use EngineError::{Chat, Context, EmptyPrompt, Setting, Text, Token};
    let is_input =
        matches!(error, Setting { .. } | Context { .. } | Token { .. } | EmptyPrompt | Chat(_) | Text(_));
    if is_input { Failure::Input(error.into()) } else { Failure::Run(error.into()) }
}
