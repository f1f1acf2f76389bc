//! A task's items: read from JSONL or a JSON list, and turned into what a model is asked.

use std::{fs, path::Path};

use minijinja::Value;

use super::{
    TaskError, TaskFile, TaskKind,
    template::{environment, evaluate, render, to_value},
};

/// Longest file of items, in bytes: it is held whole.
const MAX_ITEMS_BYTES: u64 = 512 << 20;
/// Most answers to choose from.
const MAX_CHOICES: usize = 256;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its place in the file, from 0.
    pub index: usize,
    /// Context and continuation of each choice; where the model is to write, the context and the right answer.
    pub choices: Vec<(String, String)>,
    /// The text whose length normalizes each choice: the choice without the delimiter.
    pub lengths_of: Vec<String>,
    /// The right choice.
    pub label: usize,
}

/// Reads a task's items, at most `limit` of them, from the start of the file.
///
/// # Errors
/// When a file cannot be read, is not JSON, or an item lacks what the task's templates ask for.
pub fn read_items(
    task: &TaskFile,
    items: &Path,
    labels: Option<&Path>,
    limit: Option<usize>,
) -> Result<Vec<Item>, TaskError> {
    let documents = read_documents(items, limit)?;
    let labels = labels.map(read_labels).transpose()?;
    let environment = environment();
    let mut found = Vec::with_capacity(documents.len());
    for (index, mut document) in documents.into_iter().enumerate() {
        let at = |message: String| TaskError::Item { path: items.to_owned(), number: index + 1, message };
        if let Some(labels) = &labels {
            let label = labels.get(index).ok_or_else(|| at("has no line in the file of labels".into()))?;
            let object = document.as_object_mut().ok_or_else(|| at("is not an object".into()))?;
            object.insert("label".to_owned(), label.clone());
        }
        let item = to_value(&document);
        found.push(ask(task, &environment, index, &item).map_err(at)?);
    }
    if found.is_empty() {
        let message = format!("{} has no items", items.display());
        return Err(TaskError::Definition { task: task.name.clone(), message });
    }
    Ok(found)
}

fn read_text(path: &Path) -> Result<String, TaskError> {
    let read = |source| TaskError::Read { path: path.to_owned(), source };
    let n_bytes = fs::metadata(path).map_err(read)?.len();
    if n_bytes > MAX_ITEMS_BYTES {
        let why = format!("{n_bytes} bytes, more than the {MAX_ITEMS_BYTES} that slmc reads of a task");
        return Err(read(std::io::Error::other(why)));
    }
    fs::read_to_string(path).map_err(read)
}

fn read_documents(path: &Path, limit: Option<usize>) -> Result<Vec<serde_json::Value>, TaskError> {
    let text = read_text(path)?;
    let limit = limit.unwrap_or(usize::MAX);
    let bad = |number, e: serde_json::Error| TaskError::Item {
        path: path.to_owned(),
        number,
        message: format!("is not JSON: {e}"),
    };
    if text.trim_start().starts_with('[') {
        let mut list: Vec<serde_json::Value> = serde_json::from_str(&text).map_err(|e| bad(1, e))?;
        list.truncate(limit);
        return Ok(list);
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty()).take(limit);
    lines.enumerate().map(|(i, line)| serde_json::from_str(line).map_err(|e| bad(i + 1, e))).collect()
}

/// One label a line: a number, else text.
fn read_labels(path: &Path) -> Result<Vec<serde_json::Value>, TaskError> {
    let label = |line: &str| match line.trim().parse::<i64>() {
        Ok(number) => number.into(),
        Err(_) => line.trim().into(),
    };
    Ok(read_text(path)?.lines().map(label).collect())
}

fn ask(
    task: &TaskFile,
    environment: &minijinja::Environment<'_>,
    index: usize,
    item: &Value,
) -> Result<Item, String> {
    let text = |template: &Option<String>| match template {
        Some(template) => render(environment, template, item),
        None => Ok(String::new()),
    };
    let target = evaluate(environment, &task.doc_to_target, item)?;
    let delimiter = &task.target_delimiter;
    if task.kind == TaskKind::Generation {
        let answer = target.to_string();
        let choices = vec![(text(&task.doc_to_text)?, answer.clone())];
        return Ok(Item { index, choices, lengths_of: vec![answer], label: 0 });
    }
    if task.kind == TaskKind::Continuation {
        let (context, answer) = (text(&task.doc_to_text)?, target.to_string());
        let choices = vec![(context, format!("{delimiter}{answer}"))];
        return Ok(Item { index, choices, lengths_of: vec![answer], label: 0 });
    }
    let expression = task.doc_to_choice.as_deref().unwrap_or_default();
    let list = evaluate(environment, expression, item)?;
    let list: Vec<String> = list.try_iter().map_err(|e| e.to_string())?.map(|v| v.to_string()).collect();
    if list.len() < 2 || list.len() > MAX_CHOICES {
        return Err(format!("`doc_to_choice` gives {} choices: 2 to {MAX_CHOICES} are needed", list.len()));
    }
    let label = label_of(&target, &list)?;
    let choices = if task.kind == TaskKind::MultipleContext {
        let continuation = format!("{delimiter}{}", text(&task.continuation)?);
        list.iter().map(|context| (context.clone(), continuation.clone())).collect()
    } else {
        let context = text(&task.doc_to_text)?;
        list.iter().map(|choice| (context.clone(), format!("{delimiter}{choice}"))).collect()
    };
    Ok(Item { index, choices, lengths_of: list, label })
}

fn label_of(target: &Value, choices: &[String]) -> Result<usize, String> {
    let number = i64::try_from(target.clone()).ok();
    let found = match number {
        Some(number) => usize::try_from(number).ok().filter(|&label| label < choices.len()),
        None => choices.iter().position(|choice| *choice == target.to_string()),
    };
    found.ok_or_else(|| {
        format!("`doc_to_target` gives `{target}`, which is none of {} choices", choices.len())
    })
}
