//! Looking at datasets, and making one.

use std::io::Write;

use serde_json::json;
use slmc_formats::AtomicFile;
use slmc_stages::{SampleSettings, sample_documents, survey};

use super::{Session, eval::stage_failure, model};
use crate::{
    args::{DataVerb, SampleArgs},
    failure::{Failure, OrFail},
    output,
};

/// Runs a verb on a dataset.
pub fn data(verb: &DataVerb, session: &Session<'_>) -> Result<(), Failure> {
    match verb {
        DataVerb::Inspect { data, model } => inspect(data, model.as_deref(), session),
        DataVerb::Sample(args) => sample(args, session),
    }
}

fn inspect(data: &str, model: Option<&str>, session: &Session<'_>) -> Result<(), Failure> {
    let checkpoint = model.map(model::open).transpose()?;
    let found = survey(data, checkpoint.as_ref(), &session.surroundings).map_err(stage_failure)?;
    let tokens = found.tokens.map_or(String::new(), |n| format!(", {n} tokens"));
    let text = format!(
        "{data}: {} documents ({} train, {} valid, {} test), {} bytes{tokens}",
        found.documents, found.train, found.valid, found.test, found.bytes
    );
    output::print(session.global.json, &serde_json::to_value(&found).or_run()?, &text)
}

fn sample(args: &SampleArgs, session: &Session<'_>) -> Result<(), Failure> {
    let checkpoint = model::open(&args.model)?;
    let settings = SampleSettings {
        n_tokens: args.tokens,
        document_len: args.document_len,
        temperature: args.temperature,
        seed: session.global.seed.unwrap_or(0),
        at_most: None,
    };
    let documents = sample_documents(&checkpoint, settings, session.terminal);
    let documents = documents.map_err(stage_failure)?.documents;
    let mut file = AtomicFile::create(&args.out).or_run()?;
    for document in &documents {
        writeln!(file, "{}", json!({"text": document})).or_run()?;
    }
    file.commit().or_run()?;
    let n_bytes: usize = documents.iter().map(String::len).sum();
    let document = json!({"out": args.out, "documents": documents.len(), "bytes": n_bytes});
    let text = format!("{}: {} documents, {n_bytes} bytes of text", args.out.display(), documents.len());
    output::print(session.global.json, &document, &text)
}
