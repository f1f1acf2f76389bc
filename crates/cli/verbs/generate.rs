//! Text from a model: in one go, or in a chat.

use std::{io::Write, sync::Arc, time::Duration};

use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::json;
use slmc_data::{ChatTemplate, Message, Tokenizer};
use slmc_engine::{
    Engine, EngineError, Generated, Request, Sampling, StopReason, chat_prompt, generate as write,
    stop_tokens, text_prompt,
};
use slmc_ir::{Checkpoint, Host, TokenId};
use slmc_stages::{same_vocabulary, tokenizer_of};

use super::{Session, engine, eval::stage_failure, model};
use crate::{
    args::{ChatArgs, GenerateArgs, SamplingArgs},
    failure::{Failure, OrFail, input_error},
    output,
};

/// A model that writes, and perhaps another that writes ahead.
struct Writer<'a> {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    engine: Engine,
    draft: Option<Engine>,
    stops: Vec<TokenId>,
    args: &'a SamplingArgs,
    session: &'a Session<'a>,
}

/// Room for tokens in the model, and in its draft.
struct Contexts<'e> {
    model: slmc_engine::Session<'e>,
    draft: Option<slmc_engine::Session<'e>>,
}

/// What came of it, and how long it took.
struct Written {
    generated: Generated,
    reading: Duration,
    writing: Duration,
}

impl Written {
    fn tokens_per_s(&self) -> f64 {
        self.generated.tokens.len() as f64 / self.writing.as_secs_f64().max(1e-9)
    }
}

impl<'a> Writer<'a> {
    fn open(path: &str, args: &'a SamplingArgs, session: &'a Session<'a>) -> Result<Self, Failure> {
        let checkpoint = model::open_to_run(path)?;
        let options = engine::options(args.how.exactness(), session);
        let (tokenizer, engine) =
            rayon::join(|| tokenizer_of(&checkpoint), || Engine::load(&checkpoint, options));
        let (tokenizer, engine) = (tokenizer.map_err(stage_failure)?, engine.map_err(engine::failure)?);
        let stops = stop_tokens(&checkpoint);
        let mut writer = Self { checkpoint, tokenizer, engine, draft: None, stops, args, session };
        if let Some(path) = &args.draft {
            writer.draft = Some(writer.open_draft(path)?);
        }
        Ok(writer)
    }

    fn open_draft(&self, path: &str) -> Result<Engine, Failure> {
        let checkpoint = model::open_to_run(path)?;
        if !same_vocabulary(&self.tokenizer, &tokenizer_of(&checkpoint).map_err(stage_failure)?) {
            return Err(input_error(format!("--draft {path}: it has another tokenizer than the model")));
        }
        Engine::load_with(&checkpoint, self.engine.options(), Arc::clone(self.engine.team()))
            .map_err(engine::failure)
    }

    fn contexts(&self, n_tokens: usize) -> Result<Contexts<'_>, Failure> {
        let model = self.engine.session(n_tokens).map_err(engine::failure)?;
        let draft = self.draft.as_ref();
        let draft = draft.map(|draft| draft.session(n_tokens.min(draft.spec().context_len)));
        Ok(Contexts { model, draft: draft.transpose().map_err(engine::failure)? })
    }

    /// Goes on from a prompt; the text is shown as it comes.
    fn write(
        &self,
        contexts: &mut Contexts<'_>,
        prompt: &[TokenId],
        show: &mut dyn FnMut(&str),
    ) -> Result<Written, EngineError> {
        let (args, terminal) = (self.args, self.session.terminal);
        let sampling = Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_penalty: args.repeat_penalty,
            seed: self.session.global.seed.unwrap_or(0),
            ..Sampling::GREEDY
        };
        let request = Request {
            prompt,
            max_tokens: args.max_tokens,
            sampling,
            stop_tokens: &self.stops,
            stop_strings: &args.stop,
            n_draft: args.draft_tokens,
        };
        let began = terminal.elapsed();
        let mut read = None;
        let generated =
            write(&mut contexts.model, contexts.draft.as_mut(), &self.tokenizer, &request, &mut |text| {
                read.get_or_insert_with(|| terminal.elapsed());
                show(text);
                !terminal.stop_requested()
            })?;
        let read = read.unwrap_or(began);
        Ok(Written { generated, reading: read - began, writing: terminal.elapsed() - read })
    }
}

/// Shows a piece of text at once; a reader that has seen enough is no failure.
fn show_on_stdout(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Goes on from a text.
pub fn generate(args: &GenerateArgs, session: &Session<'_>) -> Result<(), Failure> {
    let writer = Writer::open(&args.model, &args.sampling, session)?;
    let prompt = text_prompt(&writer.tokenizer, &args.prompt).map_err(engine::failure)?;
    let needed = (prompt.len() + args.sampling.max_tokens).min(writer.checkpoint.spec().context_len);
    let mut contexts = writer.contexts(args.sampling.ctx.unwrap_or(needed))?;
    let json = session.global.json;
    let mut show = |text: &str| {
        if !json {
            show_on_stdout(text);
        }
    };
    let written = writer.write(&mut contexts, &prompt, &mut show).map_err(engine::failure)?;
    let found = &written.generated;
    if found.reason == StopReason::Asked {
        show("\n");
        return Err(Failure::Interrupted(format!("after {} tokens", found.tokens.len())));
    }
    warn_of_full_context(found.reason, contexts.model.capacity(), session);
    session.terminal.say(&format!(
        "{} tokens of prompt in {:.2} s, {} tokens written at {:.1} a second{}",
        found.n_prompt_run,
        written.reading.as_secs_f64(),
        found.tokens.len(),
        written.tokens_per_s(),
        draft_share(found),
    ));
    let document = json!({
        "text": found.text,
        "tokens": found.tokens.len(),
        "prompt_tokens": prompt.len(),
        "stopped_by": stopped_by(found.reason),
        "prompt_seconds": written.reading.as_secs_f64(),
        "tokens_per_s": written.tokens_per_s(),
        "drafted": found.n_drafted,
        "accepted": found.n_accepted,
    });
    output::print(json, &document, "")?;
    // The process ends here: taking the tokenizer's hundred thousand words apart first would be felt.
    drop(contexts);
    std::mem::forget(writer);
    Ok(())
}

/// Says why a text ends in the middle.
fn warn_of_full_context(reason: StopReason, capacity: usize, session: &Session<'_>) {
    if reason == StopReason::Context {
        let warning =
            format!("the context of {capacity} tokens is full: the text ends here; --ctx sets its length");
        session.terminal.warn(&warning);
    }
}

fn stopped_by(reason: StopReason) -> &'static str {
    match reason {
        StopReason::StopToken => "stop token",
        StopReason::StopString => "stop string",
        StopReason::MaxTokens => "max tokens",
        StopReason::Context => "context",
        StopReason::Asked => "interrupt",
    }
}

fn draft_share(found: &Generated) -> String {
    match found.n_drafted {
        0 => String::new(),
        n => format!(", {} of {n} drafted tokens taken", found.n_accepted),
    }
}

/// Talks, turn by turn, until the user has said enough.
pub fn chat(args: &ChatArgs, session: &Session<'_>) -> Result<(), Failure> {
    if session.global.json {
        return Err(input_error("--json: a chat is no document; use `slmc generate`"));
    }
    let writer = Writer::open(&args.model, &args.sampling, session)?;
    let files = writer.checkpoint.tokenizer.as_ref();
    let template = files.map(|files| ChatTemplate::from_files(files, &writer.tokenizer)).transpose();
    let template = template.or_input()?.flatten().ok_or_else(|| {
        input_error(format!("{}: the model has no chat template: use `slmc generate`", args.model))
    })?;
    let n_tokens = args.sampling.ctx.unwrap_or(writer.checkpoint.spec().context_len);
    let mut contexts = writer.contexts(n_tokens)?;
    let mut editor = DefaultEditor::new().or_run()?;
    let begin = || -> Vec<Message> { args.system.iter().map(|text| message("system", text)).collect() };
    let mut messages = begin();
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(Failure::Run(error.into())),
        };
        match line.trim() {
            "" => continue,
            "/exit" => return Ok(()),
            "/new" => {
                messages = begin();
                continue;
            }
            _ => {}
        }
        // History is a convenience: a line that cannot be kept is no reason to stop.
        let _ = editor.add_history_entry(&line);
        messages.push(message("user", &line));
        let prompt = chat_prompt(&writer.tokenizer, &template, &messages).map_err(engine::failure)?;
        let written = match writer.write(&mut contexts, &prompt, &mut |text| show_on_stdout(text)) {
            Ok(written) => written,
            Err(error @ EngineError::Context { .. }) => {
                session.terminal.warn(&format!("{error}; /new begins again"));
                messages.pop();
                continue;
            }
            Err(error) => return Err(engine::failure(error)),
        };
        show_on_stdout("\n");
        if written.generated.reason == StopReason::Asked {
            return Err(Failure::Interrupted("the chat is not kept".to_owned()));
        }
        warn_of_full_context(written.generated.reason, contexts.model.capacity(), session);
        let n = written.generated.tokens.len();
        let share = draft_share(&written.generated);
        session.terminal.say(&format!("[{n} tokens, {:.1} a second{share}]", written.tokens_per_s()));
        messages.push(message("assistant", &written.generated.text));
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}
