//! A task's file: how an item becomes what a model is asked.

use serde::{Deserialize, Serialize};

use super::TaskError;

/// Longest task file, in bytes.
const MAX_TASK_BYTES: usize = 1 << 20;

/// How answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One context, several continuations (HellaSwag, PIQA, ARC, MMLU).
    MultipleChoice,
    /// Several contexts, one continuation (WinoGrande's partial evaluation).
    MultipleContext,
    /// One context, one continuation: is it what the model would write, and how likely is it (LAMBADA).
    Continuation,
    /// One context: what the model writes after it, and the answer in that (GSM8K).
    Generation,
}

/// Which figure of a task is the one to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of the items whose likeliest continuation is the right one; with `generation`, whose answer is.
    Acc,
    /// The same by likelihood a byte of the continuation (the harness's `acc_bytes`).
    AccNorm,
    /// The same by likelihood a character of the continuation (the harness's own `acc_norm`).
    AccNormChars,
}

impl Metric {
    /// As files write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccNormChars => "acc_norm_chars",
        }
    }
}

/// A task as its file says it. The keys are lm-evaluation-harness's where it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    /// What it is called.
    pub name: String,
    /// How answers are compared.
    pub kind: TaskKind,
    /// The items: a JSONL file, a JSON list, or a dataset manifest; relative to the task's file.
    pub data: String,
    /// Where `data` is a manifest of several files: the path, by the manifest, of the one with the items.
    #[serde(default)]
    pub items: Option<String>,
    /// A file with one label a line, for items that have none: it becomes their field `label`. By the manifest's path
    /// where `data` is a manifest, else relative to the task's file.
    #[serde(default)]
    pub labels: Option<String>,
    /// What stands before the answer: a Jinja template over the item's fields.
    #[serde(default)]
    pub doc_to_text: Option<String>,
    /// The answers to choose from, or with `multiple_context` the contexts: a Jinja expression that gives a list.
    #[serde(default)]
    pub doc_to_choice: Option<String>,
    /// The right answer: a Jinja expression that gives its number from 0 or its text; with `continuation` and `generation`
    /// its text, and with `multiple_context` its number.
    pub doc_to_target: String,
    /// With `multiple_context`: what follows the contexts, a Jinja template.
    #[serde(default)]
    pub continuation: Option<String>,
    /// With `generation`: texts that end what is written, beside the model's own end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub until: Vec<String>,
    /// With `generation`: most tokens to write.
    #[serde(default = "most_written", skip_serializing_if = "is_most_written")]
    pub max_gen_toks: usize,
    /// With `generation`: finds the answer in what was written, by the pattern's first group that took part, or all of it;
    /// without a pattern, the answer is the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex_pattern: Option<String>,
    /// With `generation`: which of the pattern's matches is the answer, from 0; -1 is the last.
    #[serde(default, skip_serializing_if = "is_first")]
    pub group_select: i64,
    /// With `generation`: patterns that are taken out of the answer and the right one before they are compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regexes_to_ignore: Vec<String>,
    /// Stands between context and continuation.
    #[serde(default = "one_space")]
    pub target_delimiter: String,
    /// The figure that gates and summaries use.
    #[serde(default = "acc")]
    pub metric: Metric,
    /// Where the task comes from.
    #[serde(default)]
    pub source: Option<String>,
}

fn one_space() -> String {
    " ".to_owned()
}

/// As the harness has it.
fn most_written() -> usize {
    256
}

// A task's hash is that of its keys that say something: those that came later change no lock file.

fn is_most_written(n: &usize) -> bool {
    *n == most_written()
}

fn is_first(n: &i64) -> bool {
    *n == 0
}

fn acc() -> Metric {
    Metric::Acc
}

/// Keys of a task, and whether each is there.
type Fields<'a> = &'a [(&'a str, bool)];

impl TaskFile {
    /// Reads a task from its text; `place` names it in messages.
    ///
    /// # Errors
    /// When it is not TOML, has unknown keys, or lacks what its kind needs.
    pub fn parse(text: &str, place: &str) -> Result<Self, TaskError> {
        let bad = |message: String| TaskError::Definition { task: place.to_owned(), message };
        if text.len() > MAX_TASK_BYTES {
            return Err(bad(format!("{} bytes is too long for a task", text.len())));
        }
        let task: Self = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
        let (needs, forbids): (Fields<'_>, Fields<'_>) = match task.kind {
            TaskKind::MultipleChoice => (
                &[
                    ("doc_to_text", task.doc_to_text.is_some()),
                    ("doc_to_choice", task.doc_to_choice.is_some()),
                ],
                &[("continuation", task.continuation.is_some())],
            ),
            TaskKind::MultipleContext => (
                &[
                    ("doc_to_choice", task.doc_to_choice.is_some()),
                    ("continuation", task.continuation.is_some()),
                ],
                &[("doc_to_text", task.doc_to_text.is_some())],
            ),
            TaskKind::Continuation => (
                &[("doc_to_text", task.doc_to_text.is_some())],
                &[
                    ("doc_to_choice", task.doc_to_choice.is_some()),
                    ("continuation", task.continuation.is_some()),
                ],
            ),
            TaskKind::Generation => (
                &[("doc_to_text", task.doc_to_text.is_some())],
                &[
                    ("doc_to_choice", task.doc_to_choice.is_some()),
                    ("continuation", task.continuation.is_some()),
                    ("metric", task.metric != Metric::Acc),
                ],
            ),
        };
        let of_writing: Fields<'_> = &[
            ("until", !task.until.is_empty()),
            ("regex_pattern", task.regex_pattern.is_some()),
            ("group_select", task.group_select != 0),
            ("regexes_to_ignore", !task.regexes_to_ignore.is_empty()),
            ("max_gen_toks", task.max_gen_toks != most_written()),
        ];
        let of_writing = if task.kind == TaskKind::Generation { &[] } else { of_writing };
        if task.max_gen_toks == 0 || task.until.iter().any(String::is_empty) {
            return Err(bad(
                "nothing would be written: `max_gen_toks` is 0 or a text in `until` is empty".into()
            ));
        }
        if let Some((key, _)) = needs.iter().find(|(_, there)| !there) {
            return Err(bad(format!("`{key}` is missing: its kind needs it")));
        }
        if let Some((key, _)) = forbids.iter().chain(of_writing).find(|(_, there)| *there) {
            return Err(bad(format!("`{key}` has no meaning for its kind: take it out")));
        }
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "name = 'x'\nkind = 'multiple_choice'\ndata = 'x.jsonl'\ndoc_to_text = 'Q'\n\
        doc_to_choice = 'choices'\ndoc_to_target = 'label'\n";

    #[test]
    fn what_a_kind_needs_must_be_there() {
        assert_eq!(TaskFile::parse(TASK, "x").unwrap().target_delimiter, " ");
        let refused = |text: &str, expected: &str| {
            let message = TaskFile::parse(text, "x.toml").unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("x.toml"), "{message}");
        };
        refused(&TASK.replace("doc_to_text = 'Q'\n", ""), "doc_to_text");
        refused(&format!("{TASK}continuation = 'y'\n"), "continuation");
        refused(&format!("{TASK}doc_to_txt = 'y'\n"), "doc_to_txt");
        refused("name = ", "TOML");
        refused(&format!("{TASK}until = ['y']\n"), "until");
        let written = TASK.replace("multiple_choice", "generation");
        refused(&written, "doc_to_choice");
        let written = written.replace("doc_to_choice = 'choices'\n", "");
        assert_eq!(TaskFile::parse(&written, "x").unwrap().max_gen_toks, 256);
        refused(&format!("{written}until = ['']\n"), "until");
        refused(&format!("{written}metric = 'acc_norm'\n"), "metric");
    }
}
