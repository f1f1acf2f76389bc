//! Jinja over an item's fields, as lm-evaluation-harness's task files use it.
//!
//! Python's methods on strings and lists work. Beside Jinja's own filters there are `hellaswag` (the harness's cleaning of
//! WikiHow's brackets: strip, ` [title]` to `. `, no `[…]`, two spaces to one) and `after(sep)` (what follows the first
//! `sep`, or all of it).

use minijinja::{Environment, Error, Value};

/// Most instructions that one item may take: a task comes from outside and may loop.
const MAX_INSTRUCTIONS: u64 = 1_000_000;

/// An environment for a task's templates.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("hellaswag", |text: String| hellaswag(&text));
    environment.add_filter("after", after);
    environment
}

/// What a template writes for an item.
pub(crate) fn render(environment: &Environment<'_>, template: &str, item: &Value) -> Result<String, String> {
    environment.render_str(template, item.clone()).map_err(said)
}

/// What an expression gives for an item.
pub(crate) fn evaluate(
    environment: &Environment<'_>,
    expression: &str,
    item: &Value,
) -> Result<Value, String> {
    environment.compile_expression(expression).and_then(|compiled| compiled.eval(item.clone())).map_err(said)
}

/// JSON as templates see it.
pub(crate) fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(bool) => Value::from(*bool),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::from(whole),
            None => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(list) => list.iter().map(to_value).collect(),
        serde_json::Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| (key.clone(), to_value(value)));
            Value::from(pairs.collect::<std::collections::BTreeMap<String, Value>>())
        }
    }
}

fn said(error: Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// What follows the first separator, or all of the text.
fn after(text: String, separator: String) -> String {
    text.split_once(&separator).map(|(_, after)| after.to_owned()).unwrap_or(text)
}

/// The harness's preprocessing of HellaSwag (`lm_eval/tasks/hellaswag/utils.py`).
fn hellaswag(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        // As the pattern `\[.*?\]` has it: the nearest bracket that closes, on the same line.
        let inside = &rest[open..];
        let line = inside.split('\n').next().unwrap_or(inside);
        match line.find(']') {
            Some(close) => {
                cleaned.push_str(&rest[..open]);
                rest = &inside[close + 1..];
            }
            None => {
                cleaned.push_str(&rest[..=open]);
                rest = &inside[1..];
            }
        }
    }
    cleaned.push_str(rest);
    cleaned.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_go() {
        assert_eq!(
            hellaswag(" How to sew [title] Cut [step] the cloth [substeps] "),
            "How to sew. Cut the cloth "
        );
        assert_eq!(hellaswag("a [b\nc] d [e"), "a [b\nc] d [e");
    }

    #[test]
    fn pythons_methods_work_and_loops_end() {
        let environment = environment();
        let item = to_value(&serde_json::json!({"a": "x y z", "list": ["p", "q"]}));
        let find = |expression: &str| evaluate(&environment, expression, &item);
        assert_eq!(find("a.split(' ')[:-1] | join(' ')").unwrap().to_string(), "x y");
        assert_eq!(find("a.rsplit(' ', 1)[0]").unwrap().to_string(), "x y");
        assert_eq!(
            find("['1: p', '2: q'] | map('after', ': ') | list").unwrap().to_string(),
            "[\"p\", \"q\"]"
        );
        assert_eq!(find("a.upper()").unwrap().to_string(), "X Y Z");
        assert!(find("missing").is_err() || find("missing").unwrap().is_undefined());
        let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
        assert!(render(&environment, endless, &item).is_err());
    }
}
