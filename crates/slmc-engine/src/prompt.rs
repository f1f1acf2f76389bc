//! From what a user says to tokens.

use slmc_data::{ChatTemplate, Message, Tokenizer};
use slmc_ir::{Checkpoint, TokenId};

use crate::EngineError;

/// A text to go on from, begun with BOS where the model wants that; special tokens written out in it are read as such.
/// A text without any token becomes what texts begin
/// with: BOS, else EOS.
///
/// # Errors
/// When the tokenizer cannot represent it, or nothing begins texts.
pub fn text_prompt(tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>, EngineError> {
    let special = tokenizer.special();
    let mut tokens = tokenizer.encode_chat(text)?;
    if tokens.is_empty() {
        tokens.extend(special.bos.or(special.eos));
    }
    if tokens.is_empty() { Err(EngineError::EmptyPrompt) } else { Ok(tokens) }
}

/// A chat up to where the assistant is to go on.
///
/// # Errors
/// When the template refuses the messages or the tokenizer the text.
pub fn chat_prompt(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<Vec<TokenId>, EngineError> {
    Ok(tokenizer.encode_chat(&template.render(messages, true)?)?)
}

/// Tokens that end a text: EOS, and whatever the model's settings for generation name.
pub fn stop_tokens(checkpoint: &Checkpoint) -> Vec<TokenId> {
    let mut stops: Vec<TokenId> = checkpoint.tokenizer.iter().filter_map(|t| t.special.eos).collect();
    let named = checkpoint.generation.as_ref().and_then(|settings| settings.get("eos_token_id"));
    let ids =
        named.map_or(&[][..], |named| named.as_array().map_or(std::slice::from_ref(named), Vec::as_slice));
    for id in ids.iter().filter_map(|id| id.as_u64().and_then(|id| TokenId::try_from(id).ok())) {
        if !stops.contains(&id) {
            stops.push(id);
        }
    }
    stops
}
