//! Chats written out by a model's template, as `transformers`' `apply_chat_template` does.
//!
//! Templates are Jinja with Hugging Face's additions: `raise_exception`, loop controls, blocks trimmed of the
//! newline after them and the indentation before them, a `tojson` that writes JSON as Python does, and Python's
//! methods on strings and maps. `strftime_now` is absent: a text that depends on the day cannot be made again.

use std::ops::Range;

use minijinja::{Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Kwargs};
use slmc_ir::{TokenId, TokenizerFiles};

use crate::{Message, Tokenizer};

/// Longest template, in bytes; the longest in use have about 20 kB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Most instructions that one rendering may take: a template comes from outside and may loop.
const MAX_INSTRUCTIONS: u64 = 50_000_000;

/// A chat that could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template is longer than any.
    #[error("the chat template has {0} bytes, more than the {MAX_TEMPLATE_BYTES} that slmc reads")]
    TooLong(usize),
    /// The template is not Jinja, or refuses these messages.
    #[error("chat template: {0}")]
    Template(String),
    /// What the assistant says cannot be found in the text.
    #[error(
        "the chat template writes message {0} otherwise when more follow, so it cannot be told which tokens the assistant says: give each assistant's turn as a chat of its own that ends with it"
    )]
    NotAPrefix(usize),
}

/// Special tokens by name, for templates that write them: `{{ bos_token }}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTokens {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Stands for what has no token.
    pub unk: Option<String>,
    /// Fills a batch.
    pub pad: Option<String>,
}

impl ChatTokens {
    /// The special tokens of a tokenizer.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let content = |id: Option<TokenId>| id.and_then(|id| tokenizer.token_content(id));
        let special = tokenizer.special();
        Self {
            bos: content(special.bos),
            eos: content(special.eos),
            unk: content(special.unk),
            pad: content(special.pad),
        }
    }
}

/// A model's chat template, ready for use.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: ChatTokens,
}

/// A chat as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoredChat {
    /// The whole chat.
    pub text: String,
    /// Bytes of `text` that the assistant says, its end-of-turn token included.
    pub said: Vec<Range<usize>>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// When it is not one.
    pub fn new(template: &str, tokens: ChatTokens) -> Result<Self, ChatError> {
        if template.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::TooLong(template.len()));
        }
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refused)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, template.to_owned()).map_err(refused)?;
        Ok(Self { environment, tokens })
    }

    /// The template that travels with a model, if there is one.
    ///
    /// # Errors
    /// When it is not a template.
    pub fn from_files(files: &TokenizerFiles, tokenizer: &Tokenizer) -> Result<Option<Self>, ChatError> {
        let read = |template: &String| Self::new(template, ChatTokens::of(tokenizer));
        files.chat_template.as_ref().map(read).transpose()
    }

    /// Writes out a chat; with `add_generation_prompt` the text ends where the assistant is to go on.
    ///
    /// # Errors
    /// When the template refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        let text = |token: &Option<String>| token.clone().unwrap_or_default();
        let turn = |m: &Message| context! { role => m.role.clone(), content => m.content.clone() };
        let turns: Vec<Value> = messages.iter().map(turn).collect();
        let values = context! {
            messages => turns,
            add_generation_prompt => add_generation_prompt,
            bos_token => text(&self.tokens.bos),
            eos_token => text(&self.tokens.eos),
            unk_token => text(&self.tokens.unk),
            pad_token => text(&self.tokens.pad),
        };
        self.environment.get_template(NAME).and_then(|t| t.render(values)).map_err(refused)
    }

    /// Writes out a whole chat, and says which of it the assistant says.
    ///
    /// # Errors
    /// When the template refuses the messages, or rewrites earlier turns once later ones follow.
    pub fn render_scored(&self, messages: &[Message]) -> Result<ScoredChat, ChatError> {
        let text = self.render(messages, false)?;
        let mut said = Vec::new();
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let before = self.render(&messages[..i], true)?;
            let after = self.render(&messages[..=i], false)?;
            if !after.starts_with(&before) || !text.starts_with(&after) {
                return Err(ChatError::NotAPrefix(i));
            }
            said.push(before.len()..after.len());
        }
        Ok(ScoredChat { text, said })
    }
}

/// Writes out a chat by a template in one call.
///
/// # Errors
/// When the template is not one, or refuses the messages.
pub fn render_chat(
    template: &str,
    messages: &[Message],
    tokens: &ChatTokens,
    add_generation_prompt: bool,
) -> Result<String, ChatError> {
    ChatTemplate::new(template, tokens.clone())?.render(messages, add_generation_prompt)
}

fn refused(error: Error) -> ChatError {
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    ChatError::Template(format!("{}{line}", error.detail().unwrap_or(&error.kind().to_string())))
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(64));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(
                value,
                &mut serde_json::Serializer::with_formatter(&mut bytes, pretty),
            )
        }
        None => {
            let python = PythonFormatter;
            serde::Serialize::serialize(
                value,
                &mut serde_json::Serializer::with_formatter(&mut bytes, python),
            )
        }
    };
    let bad = |e: String| Error::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| bad(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| bad(e.to_string()))
}

/// JSON on one line with Python's spaces: `{"a": 1, "b": 2}`.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}
    {% if loop.first and message['role'] == 'nobody' %}
        {{ raise_exception('nobody may not speak') }}
    {% endif %}
{{ '<|im_start|>' + message.role + '\n' + message.content.strip() + '<|im_end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn render(template: &str, messages: &[Message], go_on: bool) -> Result<String, ChatError> {
        let tokens = ChatTokens { bos: Some("<s>".into()), ..ChatTokens::default() };
        render_chat(template, messages, &tokens, go_on)
    }

    #[test]
    fn blocks_leave_no_space_behind() {
        let text = render(CHATML, &[message("user", " hi ")], true).unwrap();
        assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn huggingface_additions_are_there() {
        let messages = [message("user", "a <b> 'c' é\n")];
        let check = |template: &str, expected: &str| {
            assert_eq!(render(template, &messages, false).unwrap(), expected, "{template}");
        };
        check("{{ messages[0].content | tojson }}", r#""a <b> 'c' é\n""#);
        check("{{ {'x': [1, 2], 'y': true} | tojson }}", r#"{"x": [1, 2], "y": true}"#);
        check("{{ [1] | tojson(indent=2) }}", "[\n  1\n]");
        check("{{ bos_token }}{{ eos_token }}", "<s>");
        check("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1");
        check("{% set ns = namespace(n=0) %}{% set ns.n = 4 %}{{ ns.n }}", "4");
        check("{{ messages[0]['content'].split(' ')[0].upper() }}", "A");
    }

    #[test]
    fn a_template_may_refuse() {
        let error = render(CHATML, &[message("nobody", "hi")], false).unwrap_err().to_string();
        assert!(error.contains("nobody may not speak"), "{error}");
        assert!(render("{% if %}", &[], false).is_err());
    }

    #[test]
    fn a_template_may_not_run_for_ever() {
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let error = render(nested, &[], false).unwrap_err().to_string();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn what_the_assistant_says_is_found() {
        let template = ChatTemplate::new(CHATML, ChatTokens::default()).unwrap();
        let messages = [
            message("user", "1+1?"),
            message("assistant", "2"),
            message("user", "sure?"),
            message("assistant", "yes"),
        ];
        let chat = template.render_scored(&messages).unwrap();
        let said: Vec<&str> = chat.said.iter().map(|span| &chat.text[span.clone()]).collect();
        assert_eq!(said, ["2<|im_end|>\n", "yes<|im_end|>\n"]);
    }

    #[test]
    fn a_template_that_rewrites_the_past_is_refused() {
        let last_only = "{{ messages[-1].content if messages else '' }}";
        let template = ChatTemplate::new(last_only, ChatTokens::default()).unwrap();
        let messages = [message("assistant", "a"), message("assistant", "b")];
        assert!(matches!(template.render_scored(&messages), Err(ChatError::NotAPrefix(0))));
    }
}
