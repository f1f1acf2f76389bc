//! Models in the engine.

use slmc_engine::{Engine, EngineError, EngineOptions};

use super::Session;
use crate::failure::Failure;

/// How models are run: fast, or with everything but the weights in f32.
pub fn options(exact: bool, session: &Session<'_>) -> EngineOptions {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = session.global.threads.unwrap_or_else(all);
    if exact { EngineOptions::exact(n_threads) } else { EngineOptions::fast(n_threads) }
}

/// Lays a model out.
pub fn load(checkpoint: &slmc_ir::Checkpoint, exact: bool, session: &Session<'_>) -> Result<Engine, Failure> {
    Engine::load(checkpoint, options(exact, session)).map_err(failure)
}

/// How a failure of the engine ends the program.
pub fn failure(error: EngineError) -> Failure {
    use EngineError::{Chat, Context, EmptyPrompt, Setting, Text, Token};
    let is_input =
        matches!(error, Setting { .. } | Context { .. } | Token { .. } | EmptyPrompt | Chat(_) | Text(_));
    if is_input { Failure::Input(error.into()) } else { Failure::Run(error.into()) }
}
