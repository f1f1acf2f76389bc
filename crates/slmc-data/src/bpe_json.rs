//! `tokenizer.json` of a byte-level BPE tokenizer, in the layout of Hugging Face's `tokenizers`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use slmc_ir::TokenId;

/// The character that stands for each byte in a byte-level vocabulary, `[256]` (GPT-2's `bytes_to_unicode`): printable
/// Latin-1 stands for itself, the rest for the characters from U+0100 on, in order.
pub(crate) fn byte_chars() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u8 {
        printable @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(printable),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    })
}

/// Writes the file. The first `n_special` tokens are control tokens; merges are pairs of ids.
pub(crate) fn write(content: &[String], merges: &[(TokenId, TokenId)], n_special: usize) -> String {
    let byte_level =
        ByteLevel { r#type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
    let added = |(id, content)| AddedToken {
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
    };
    let text = |id: TokenId| content[id as usize].as_str();
    let file = File {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: content[..n_special].iter().enumerate().map(added).collect(),
        normalizer: None,
        pre_tokenizer: byte_level,
        post_processor: None,
        decoder: byte_level,
        model: Model {
            r#type: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab: Vocab(content),
            // One string a merge: the form that every reader knows. No token of a byte-level vocabulary holds a space.
            merges: merges.iter().map(|&(a, b)| format!("{} {}", text(a), text(b))).collect(),
        },
    };
    // Strings, numbers and nulls only: nothing in it can fail to be written.
    serde_json::to_string_pretty(&file).unwrap_or_default()
}

type Null = Option<()>;

#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    truncation: Null,
    padding: Null,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Null,
    pre_tokenizer: ByteLevel,
    post_processor: Null,
    decoder: ByteLevel,
    model: Model<'a>,
}

#[derive(Serialize)]
struct AddedToken<'a> {
    id: usize,
    content: &'a String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Clone, Copy, Serialize)]
struct ByteLevel {
    r#type: &'static str,
    add_prefix_space: bool,
    trim_offsets: bool,
    use_regex: bool,
}

#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    dropout: Null,
    unk_token: Null,
    continuing_subword_prefix: Null,
    end_of_word_suffix: Null,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Vocab<'a>,
    merges: Vec<String>,
}

/// Token to id, in the order of the ids.
struct Vocab<'a>(&'a [String]);

impl Serialize for Vocab<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, content) in self.0.iter().enumerate() {
            map.serialize_entry(content, &id)?;
        }
        map.end()
    }
}
