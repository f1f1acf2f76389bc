//! Text from a model, token by token; with a draft model, several tokens a step.

use slmc_data::Tokenizer;
use slmc_ir::TokenId;

use crate::{
    EngineError, Session,
    input::Pass,
    sampling::{Distribution, Sampler, Sampling},
    stops::StopStrings,
};

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tokens to go on from; what of them the session already holds is not run again.
    pub prompt: &'a [TokenId],
    /// Most tokens to write.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the text; they are not part of it.
    pub stop_tokens: &'a [TokenId],
    /// Strings that end the text; they are not part of it.
    pub stop_strings: &'a [String],
    /// Tokens that a draft model proposes at once.
    pub n_draft: usize,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model wrote a token that ends texts.
    StopToken,
    /// A stop string came up.
    StopString,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    Context,
    /// Whoever was shown the text had enough.
    Asked,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The text, up to a stop string.
    pub text: String,
    /// The tokens, up to and without a stop token.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub reason: StopReason,
    /// Tokens of the prompt that had to be run.
    pub n_prompt_run: usize,
    /// Tokens that the draft proposed.
    pub n_drafted: usize,
    /// Those of them that were taken.
    pub n_accepted: usize,
}

/// Goes on from a prompt. `show` is handed each piece of text as soon as it is sure, whole characters only, and
/// says whether to go on; it is called with an empty text once the prompt has been read.
///
/// With a draft (a session of a smaller model with the same tokenizer) each step verifies the tokens that it
/// proposes: greedy texts are those without a draft (to rounding of the logits, see [`Session`]), sampled ones have
/// the same distribution (Leviathan et al., arXiv:2211.17192, algorithm 1). The same seed gives other texts with a
/// draft than without.
///
/// # Errors
/// When the prompt is empty or does not fit, a setting makes no sense, or the model fails.
pub fn generate(
    session: &mut Session<'_>,
    mut draft: Option<&mut Session<'_>>,
    tokenizer: &Tokenizer,
    request: &Request<'_>,
    show: &mut dyn FnMut(&str) -> bool,
) -> Result<Generated, EngineError> {
    if request.prompt.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    let mut sampler = Sampler::new(request.sampling)?;
    let mut writer = Writer::new(tokenizer, request, show);
    let mut context = request.prompt.to_vec();
    let n_prompt_run = context.len() - session.keep_prefix(&context);
    if let Some(draft) = draft.as_mut().filter(|draft| context.len() <= draft.capacity()) {
        let kept = draft.keep_prefix(&context);
        draft.add(&context[kept..], Pass::of_prompt(context.len() - kept))?;
    }
    let mut is_first = true;
    while writer.reason.is_none() {
        let left = request.max_tokens - writer.tokens.len();
        if left == 0 {
            writer.reason = Some(StopReason::MaxTokens);
            break;
        }
        if !is_first && context.len() > session.capacity() {
            writer.reason = Some(StopReason::Context);
            break;
        }
        // A step writes one token more than it drafts.
        let room = (left - 1).min(session.capacity().saturating_sub(context.len())).min(request.n_draft);
        let proposal = match &mut draft {
            // The prompt is read on its own: what is written then does not depend on whether there is a draft.
            Some(draft) if room > 0 && !is_first => propose(draft, &mut sampler, &context, room)?,
            _ => Proposal::default(),
        };
        let pass = if is_first { Pass::of_prompt(n_prompt_run) } else { Pass::Write };
        let step = verify(session, &mut sampler, &context, &proposal, pass)?;
        writer.n_drafted += proposal.tokens.len();
        writer.n_accepted += step.len() - 1;
        if is_first && !(writer.show)("") {
            writer.reason = Some(StopReason::Asked);
        }
        is_first = false;
        context.extend_from_slice(&step);
        for token in step {
            writer.take(token)?;
        }
    }
    Ok(writer.finish(n_prompt_run))
}

/// What a draft model would write.
#[derive(Default)]
struct Proposal {
    tokens: Vec<TokenId>,
    /// What each was drawn from.
    from: Vec<Distribution>,
}

/// Lets the draft write up to `n` tokens; fewer when its context ends.
fn propose(
    draft: &mut Session<'_>,
    sampler: &mut Sampler,
    context: &[TokenId],
    n: usize,
) -> Result<Proposal, EngineError> {
    let mut proposal = Proposal::default();
    let mut context = context.to_vec();
    for _ in 0..n.min((draft.capacity() + 1).saturating_sub(context.len())) {
        let kept = draft.keep_prefix(&context);
        let from = sampler.distribution(draft.append(&context[kept..])?, &context);
        let token = sampler.draw(&from);
        context.push(token);
        proposal.tokens.push(token);
        proposal.from.push(from);
    }
    Ok(proposal)
}

/// The proposed tokens that the model takes, and one more of its own. The session then holds all of them but the last.
fn verify(
    session: &mut Session<'_>,
    sampler: &mut Sampler,
    context: &[TokenId],
    proposal: &Proposal,
    pass: Pass,
) -> Result<Vec<TokenId>, EngineError> {
    let kept = session.keep_prefix(context);
    let mut tokens = [&context[kept..], &proposal.tokens].concat();
    // What the draft knows and the model does not is never taken, nor is what follows it.
    let vocab_size = session.engine().spec().vocab_size;
    let known = proposal.tokens.iter().take_while(|&&token| (token as usize) < vocab_size).count();
    tokens.truncate(context.len() - kept + known);
    let seen = [context, &proposal.tokens[..known]].concat();
    let first = context.len() - kept - 1;
    let mut targets = Vec::with_capacity(known + 1);
    session.add_each(&tokens, first, pass, &mut |row, logits| {
        for (row, logits) in (row..).zip(logits.chunks_exact(vocab_size)) {
            targets.push(sampler.distribution(logits, &seen[..kept + row + 1]));
        }
    })?;
    let mut step = Vec::with_capacity(known + 1);
    for ((target, &token), from) in targets.iter().zip(&proposal.tokens[..known]).zip(&proposal.from) {
        match sampler.verify(target, from, token) {
            Ok(()) => step.push(token),
            Err(instead) => {
                session.truncate(context.len() + step.len());
                step.push(instead);
                return Ok(step);
            }
        }
    }
    step.push(match proposal.tokens.get(known) {
        Some(&unknown) => {
            let outcome = sampler.verify(&targets[known], &proposal.from[known], unknown);
            outcome.err().unwrap_or_else(|| sampler.draw(&targets[known]))
        }
        None => sampler.draw(&targets[known]),
    });
    Ok(step)
}

/// Turns tokens into the text that is shown.
struct Writer<'a> {
    stream: slmc_data::DecodeStream<'a>,
    stops: StopStrings<'a>,
    stop_tokens: &'a [TokenId],
    show: &'a mut dyn FnMut(&str) -> bool,
    text: String,
    tokens: Vec<TokenId>,
    reason: Option<StopReason>,
    n_drafted: usize,
    n_accepted: usize,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a Tokenizer, request: &Request<'a>, show: &'a mut dyn FnMut(&str) -> bool) -> Self {
        Self {
            stream: tokenizer.decode_stream(),
            stops: StopStrings::new(request.stop_strings),
            stop_tokens: request.stop_tokens,
            show,
            text: String::new(),
            tokens: Vec::new(),
            reason: None,
            n_drafted: 0,
            n_accepted: 0,
        }
    }

    /// The next token; nothing once the text has ended.
    fn take(&mut self, token: TokenId) -> Result<(), EngineError> {
        if self.reason.is_some() {
            return Ok(());
        }
        if self.stop_tokens.contains(&token) {
            self.reason = Some(StopReason::StopToken);
            return Ok(());
        }
        self.tokens.push(token);
        let Some(text) = self.stream.push(token)? else { return Ok(()) };
        let (text, stopped) = self.stops.push(&text);
        if stopped {
            self.reason = Some(StopReason::StopString);
        }
        self.write(&text);
        Ok(())
    }

    fn write(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.text.push_str(text);
        if !(self.show)(text) {
            self.reason.get_or_insert(StopReason::Asked);
        }
    }

    fn finish(mut self, n_prompt_run: usize) -> Generated {
        let reason = self.reason.unwrap_or(StopReason::MaxTokens);
        if reason != StopReason::StopString {
            let rest = std::mem::replace(&mut self.stops, StopStrings::new(&[])).finish();
            self.write(&rest);
        }
        let Self { text, tokens, n_drafted, n_accepted, .. } = self;
        Generated { text, tokens, reason, n_prompt_run, n_drafted, n_accepted }
    }
}
