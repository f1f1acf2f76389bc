//! JSONL data: one document a line, in one of the forms that are in use; or the same as one JSON list.
//!
//! `{"text": …}`, `{"messages": [{"role": …, "content": …}, …]}`, `{"prompt": …, "completion": …}`, and by
//! the same names `{"question": …, "answer": …}` and `{"instruction": …, "input": …, "output" | "response": …}`.
//! Fields beside these are ignored; a line that is none of them is an error, never skipped.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{Content, DataError, Message};

/// Longest line, in bytes.
const MAX_LINE_BYTES: usize = 64 << 20;
/// Longest file that is one JSON list, in bytes: it is held whole.
const MAX_LIST_BYTES: u64 = 256 << 20;

/// Reads a JSONL file line by line. Empty lines are passed over.
pub(crate) struct JsonLines {
    path: PathBuf,
    reader: BufReader<File>,
    line: u64,
    done: bool,
}

impl JsonLines {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), line: 0, done: false })
    }

    fn next_line(&mut self) -> Result<Option<Content>, DataError> {
        loop {
            let mut bytes = Vec::new();
            let limit = MAX_LINE_BYTES as u64 + 1;
            let n = (&mut self.reader)
                .take(limit)
                .read_until(b'\n', &mut bytes)
                .map_err(|source| DataError::Read { path: self.path.clone(), source })?;
            if n == 0 {
                return Ok(None);
            }
            self.line += 1;
            let bad = |message| DataError::Line { path: self.path.clone(), line: self.line, message };
            if n > MAX_LINE_BYTES {
                // What follows is the middle of a line: nothing after it can be numbered.
                self.done = true;
                return Err(bad(format!("is longer than {MAX_LINE_BYTES} bytes")));
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not JSON: {e}")))?;
            return content(value).map(Some).map_err(bad);
        }
    }
}

impl Iterator for JsonLines {
    /// The line's number, from 1, and what it says.
    type Item = Result<(u64, Content), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_line().transpose()?;
        // A line that says nothing leaves those after it as they are: all bad lines can be told at once.
        self.done |= matches!(next, Err(DataError::Read { .. }));
        Some(next.map(|content| (self.line, content)))
    }
}

/// Reads a file that is one JSON list: the number of each entry, from 1, and what it says.
pub(crate) fn read_list(path: &Path) -> Result<Vec<(u64, Content)>, DataError> {
    let read = |source| DataError::Read { path: path.to_owned(), source };
    let bad = |message| DataError::Line { path: path.to_owned(), line: 1, message };
    let n_bytes = std::fs::metadata(path).map_err(read)?.len();
    if n_bytes > MAX_LIST_BYTES {
        return Err(bad(format!(
            "has {n_bytes} bytes, more than the {MAX_LIST_BYTES} of a list: write it as .jsonl"
        )));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    let list: Vec<Value> =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not a JSON list: {e}")))?;
    let entry = |(i, value)| {
        let number = i as u64 + 1;
        match content(value) {
            Ok(content) => Ok((number, content)),
            Err(why) => Err(bad(format!("entry {number} {why}"))),
        }
    };
    list.into_iter().enumerate().map(entry).collect()
}

/// What one line says, or why it says nothing.
fn content(value: Value) -> Result<Content, String> {
    let Value::Object(fields) = value else { return Err("is not a JSON object".into()) };
    if fields.contains_key("messages") {
        return messages(&fields).map(Content::Chat);
    }
    for (prompt, completion) in [("prompt", "completion"), ("question", "answer")] {
        if fields.contains_key(prompt) {
            let prompt = text(&fields, prompt)?;
            return Ok(Content::Completion { prompt, completion: text(&fields, completion)? });
        }
    }
    if fields.contains_key("instruction") {
        return instruction(&fields);
    }
    if fields.contains_key("text") {
        return text(&fields, "text").map(Content::Text);
    }
    Err("has none of the fields `text`, `messages`, `prompt`, `question`, `instruction`".into())
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("field `{name}` is not a string")),
        None => Err(format!("has no field `{name}`")),
    }
}

fn messages(fields: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let Some(Value::Array(turns)) = fields.get("messages") else {
        return Err("field `messages` is not a list".into());
    };
    let turn = |(i, turn): (usize, &Value)| {
        let Value::Object(turn) = turn else { return Err(format!("message {i} is not an object")) };
        let part = |name| text(turn, name).map_err(|why| format!("message {i}: {why}"));
        Ok(Message { role: part("role")?, content: part("content")? })
    };
    let turns = turns.iter().enumerate().map(turn).collect::<Result<Vec<_>, _>>()?;
    if turns.is_empty() { Err("field `messages` is empty".into()) } else { Ok(turns) }
}

/// The form of Alpaca (Taori et al. 2023): an instruction, its input if any, the response.
fn instruction(fields: &Map<String, Value>) -> Result<Content, String> {
    let mut prompt = text(fields, "instruction")?;
    let input = if fields.contains_key("input") { text(fields, "input")? } else { String::new() };
    if !input.is_empty() {
        prompt = format!("{prompt}\n\n{input}");
    }
    // The seed tasks of Self-Instruct (Wang et al. 2022) keep input and output one level down.
    if let Some(instances) = fields.get("instances") {
        let Some([Value::Object(instance)]) = instances.as_array().map(Vec::as_slice) else {
            return Err("field `instances` is not a list of one object".into());
        };
        let input = text(instance, "input")?;
        let prompt = if input.is_empty() { prompt } else { format!("{prompt}\n\n{input}") };
        return Ok(Content::Completion { prompt, completion: text(instance, "output")? });
    }
    let answer = if fields.contains_key("response") { "response" } else { "output" };
    Ok(Content::Completion { prompt, completion: text(fields, answer)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Content, String> {
        content(serde_json::from_str(line).unwrap())
    }

    #[test]
    fn each_form_is_read() {
        assert_eq!(parse(r#"{"text": "a", "id": 1}"#), Ok(Content::Text("a".into())));
        let turn = Message { role: "user".into(), content: "hi".into() };
        assert_eq!(
            parse(r#"{"messages": [{"role": "user", "content": "hi"}]}"#),
            Ok(Content::Chat(vec![turn]))
        );
        let pair = |prompt: &str| Content::Completion { prompt: prompt.into(), completion: "c".into() };
        assert_eq!(parse(r#"{"prompt": "p", "completion": "c"}"#), Ok(pair("p")));
        assert_eq!(parse(r#"{"question": "p", "answer": "c"}"#), Ok(pair("p")));
        assert_eq!(parse(r#"{"instruction": "p", "input": "i", "output": "c"}"#), Ok(pair("p\n\ni")));
        assert_eq!(parse(r#"{"instruction": "p", "response": "c"}"#), Ok(pair("p")));
    }

    #[test]
    fn each_error_names_the_field() {
        let cases = [
            (r#"[]"#, "is not a JSON object"),
            (r#"{"txt": "a"}"#, "has none of the fields"),
            (r#"{"text": 3}"#, "field `text` is not a string"),
            (r#"{"prompt": "p"}"#, "has no field `completion`"),
            (r#"{"messages": []}"#, "is empty"),
            (r#"{"messages": [{"role": "user"}]}"#, "message 0: has no field `content`"),
            (r#"{"messages": [1]}"#, "message 0 is not an object"),
        ];
        for (line, expected) in cases {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn a_bad_line_is_named_and_those_after_it_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        std::fs::write(&path, "{\"text\": \"a\"}\n\n{oops\n{\"text\": \"b\"}\n{}\n").unwrap();
        let mut lines = JsonLines::open(&path).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), (1, Content::Text("a".into())));
        let error = lines.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("d.jsonl:3: is not JSON"), "{error}");
        assert_eq!(lines.next().unwrap().unwrap(), (4, Content::Text("b".into())));
        let error = lines.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("d.jsonl:5: has none of the fields"), "{error}");
        assert!(lines.next().is_none());
    }
}
