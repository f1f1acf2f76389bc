//! Looking at a model.

use std::path::Path;

use serde::Serialize;
use serde_json::json;
use slmc_data::Tokenizer;
use slmc_ir::{Checkpoint, Format, TokenId, TokenizerFiles};
use slmc_stages::outline_of;

use super::{
    Session,
    model::{open, size_on_disk},
};
use crate::{
    args::InspectArgs,
    failure::{Failure, OrFail, input_error},
    output::{self, count, megabytes, table},
};

/// Says what a model is.
pub fn inspect(args: &InspectArgs, session: &Session<'_>) -> Result<(), Failure> {
    let checkpoint = open(&args.model)?;
    let spec = checkpoint.spec();
    let mut tensors = Vec::new();
    let mut rows = vec![["tensor", "shape", "format", "bytes"].map(str::to_owned).to_vec()];
    let mut n_bytes = 0;
    for &key in checkpoint.weights.keys() {
        let weight = checkpoint.weights.read(key).map_err(|e| input_error(e.to_string()))?;
        let size = weight.bytes().len() as u64;
        n_bytes += size;
        tensors.push(json!({"name": key.to_string(), "shape": weight.shape(), "format": weight.format().name(), "bytes": size}));
        let shape = weight.shape().iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
        rows.push(vec![key.to_string(), shape, weight.format().to_string(), size.to_string()]);
    }
    let n_parameters = spec.n_parameters();
    let bits_per_weight = n_bytes as f64 * 8.0 / n_parameters as f64;
    let file_bytes = size_on_disk(Path::new(&args.model));
    let tokenizer = checkpoint.tokenizer.as_ref().map(TokenizerFacts::of).transpose()?;
    let family = serde_json::to_value(spec.family).unwrap_or_default();
    let document = json!({
        "architecture": family,
        "parameters": n_parameters,
        "file_bytes": file_bytes,
        "bits_per_weight": bits_per_weight,
        "spec": spec,
        "tokenizer": tokenizer,
        "lineage": checkpoint.lineage,
        "tensors": tensors,
    });
    let facts = [
        ("architecture", family.as_str().unwrap_or("?").to_owned()),
        ("parameters", count(n_parameters)),
        ("size", megabytes(file_bytes)),
        ("bits per weight", format!("{bits_per_weight:.3}")),
        ("layers", spec.n_layers.to_string()),
        ("d_model, d_ff", format!("{}, {}", spec.d_model, spec.d_ff)),
        ("heads, kv heads, d_head", format!("{}, {}, {}", spec.n_heads, spec.n_kv_heads, spec.d_head)),
        ("vocabulary", spec.vocab_size.to_string()),
        ("context", spec.context_len.to_string()),
        ("head", if spec.tied_head { "tied to the embedding".to_owned() } else { "its own".to_owned() }),
        ("formats", formats(&checkpoint)?),
        ("tokenizer", tokenizer.map_or_else(|| "none".to_owned(), |facts| facts.to_string())),
        (
            "steps behind it",
            checkpoint.lineage.steps.iter().map(|s| s.stage.as_str()).collect::<Vec<_>>().join(" → "),
        ),
    ];
    let mut text = String::new();
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name:<24} {value}\n"));
    }
    if args.tensors {
        text.push_str(&format!("\n{}\n", table(&rows)));
    }
    output::print(session.global.json, &document, &text)
}

/// Which formats, and how many tensors have each.
fn formats(checkpoint: &Checkpoint) -> Result<String, Failure> {
    let outline = outline_of(checkpoint).map_err(input_error)?;
    let number = |format: Format| outline.formats.iter().filter(|&&(_, f)| f == format).count();
    let there = Format::ALL.into_iter().map(|f| (f, number(f))).filter(|&(_, n)| n > 0);
    Ok(there.map(|(format, n)| format!("{format} × {n}")).collect::<Vec<_>>().join(", "))
}

/// What is worth knowing of a tokenizer.
#[derive(Debug, Serialize)]
struct TokenizerFacts {
    /// `BPE`, `Unigram`, …: the kind that tokenizer.json names.
    kind: String,
    n_tokens: usize,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    unk: Option<SpecialToken>,
    pad: Option<SpecialToken>,
    /// Whether a text is begun with `bos`, and ended with `eos`.
    add_bos: bool,
    add_eos: bool,
    has_chat_template: bool,
}

#[derive(Debug, Serialize)]
struct SpecialToken {
    id: TokenId,
    text: String,
}

impl TokenizerFacts {
    fn of(files: &TokenizerFiles) -> Result<Self, Failure> {
        let tokenizer = Tokenizer::from_files(files).or_input()?;
        let json: serde_json::Value = serde_json::from_str(&files.json).or_input()?;
        let special = |id: Option<TokenId>| {
            id.map(|id| SpecialToken { id, text: tokenizer.token_content(id).unwrap_or_default() })
        };
        let ids = &files.special;
        Ok(Self {
            kind: json["model"]["type"].as_str().unwrap_or("unknown").to_owned(),
            n_tokens: tokenizer.vocab_size(),
            bos: special(ids.bos),
            eos: special(ids.eos),
            unk: special(ids.unk),
            pad: special(ids.pad),
            add_bos: ids.add_bos,
            add_eos: ids.add_eos,
            has_chat_template: files.chat_template.is_some(),
        })
    }
}

impl std::fmt::Display for TokenizerFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} tokens", self.kind, self.n_tokens)?;
        let special = [("bos", &self.bos), ("eos", &self.eos), ("unk", &self.unk), ("pad", &self.pad)];
        for (name, token) in special {
            if let Some(SpecialToken { id, text }) = token {
                write!(f, ", {name} {text} ({id})")?;
            }
        }
        f.write_str(if self.has_chat_template { ", chat template" } else { ", no chat template" })
    }
}
