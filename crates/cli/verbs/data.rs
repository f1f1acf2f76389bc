//! Looking at datasets.

use std::path::Path;

use serde_json::json;
use slmc_data::{Documents, Special, Tokenizer};

use super::{Session, model};
use crate::{
    args::DataVerb,
    failure::{Failure, OrFail, input_error},
    output,
};

/// Runs a verb on a dataset.
pub fn data(verb: &DataVerb, session: &Session<'_>) -> Result<(), Failure> {
    let DataVerb::Inspect { data, model } = verb;
    let documents = Documents::open(Path::new(data), session.surroundings.data_root.as_deref()).or_input()?;
    let tokenizer = model.as_deref().map(tokenizer_of).transpose()?;
    let (mut n_documents, mut n_held_out, mut n_bytes, mut n_tokens) = (0_u64, 0_u64, 0_u64, 0_u64);
    for document in documents.all() {
        n_documents += 1;
        n_bytes += document.text.len() as u64;
        if let Some(tokenizer) = &tokenizer {
            n_tokens += tokenizer.encode(&document.text, Special::Plain).or_run()?.len() as u64;
        }
    }
    n_held_out += documents.held_out().count() as u64;
    let tokens = tokenizer.is_some().then_some(n_tokens);
    let document = json!({"documents": n_documents, "held_out_documents": n_held_out, "bytes": n_bytes, "tokens": tokens});
    let counted = tokens.map_or(String::new(), |n| format!(", {n} tokens"));
    let text = format!("{data}: {n_documents} documents ({n_held_out} held out), {n_bytes} bytes{counted}");
    output::print(session.global.json, &document, &text)
}

fn tokenizer_of(path: &str) -> Result<Tokenizer, Failure> {
    let checkpoint = model::open(path)?;
    let files = checkpoint.tokenizer.ok_or_else(|| input_error(format!("{path} has no tokenizer")))?;
    Tokenizer::from_files(&files).or_input()
}
