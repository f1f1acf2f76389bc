//! Where a long text may be cut so that its pieces, encoded apart, give the tokens of the whole.
//!
//! The regular expressions that byte-level tokenizers split with never join a space to the character before it:
//! a space either begins a word, or lies in a run of whitespace. They look ahead only inside such a run
//! (`\s+(?!\S)`) and never behind. So between a character that is not whitespace and a space there is always a
//! boundary, and what lies on one side does not change the other.

use tokenizers::{
    ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer, pre_tokenizers::split::SplitPattern,
};

/// How GPT-2 splits words off (`encoder.py`).
pub(crate) const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Splitting expressions for which the above was checked; any other is encoded whole.
const KNOWN_PATTERNS: [&str; 4] = [
    GPT2_PATTERN,
    // Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Qwen 2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // digits in threes, before the GPT-2 expression
    r"\p{N}{1,3}",
];

/// Whether texts may be cut for this tokenizer.
pub(crate) fn allowed(tokenizer: &Tokenizer) -> bool {
    let normalizer = match tokenizer.get_normalizer() {
        None => true,
        // Composition never reaches over a space.
        Some(NormalizerWrapper::NFC(_)) => true,
        Some(_) => false,
    };
    let model = match tokenizer.get_model() {
        ModelWrapper::BPE(bpe) => bpe.dropout.is_none(),
        _ => false,
    };
    let added = tokenizer.get_added_tokens_decoder();
    let added_apart =
        added.values().all(|t| !t.lstrip && !t.rstrip && !t.single_word && !t.content.contains(' '));
    normalizer && model && added_apart && tokenizer.get_pre_tokenizer().is_some_and(splits_at_spaces)
}

fn splits_at_spaces(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(bytes) => bytes.use_regex && !bytes.add_prefix_space,
        PreTokenizerWrapper::Sequence(steps) => {
            let keeps_boundaries = |step: &PreTokenizerWrapper| match step {
                PreTokenizerWrapper::ByteLevel(bytes) => !bytes.add_prefix_space,
                PreTokenizerWrapper::Digits(_) => true,
                PreTokenizerWrapper::Split(_) => splits_at_spaces(step),
                _ => false,
            };
            let splits = |step: &PreTokenizerWrapper| match step {
                PreTokenizerWrapper::ByteLevel(bytes) => bytes.use_regex,
                PreTokenizerWrapper::Split(split) => !is_digits_only(&split.pattern),
                _ => false,
            };
            steps.as_ref().iter().all(keeps_boundaries) && steps.as_ref().iter().any(splits)
        }
        PreTokenizerWrapper::Split(split) => match &split.pattern {
            SplitPattern::Regex(regex) => !split.invert && KNOWN_PATTERNS.contains(&regex.as_str()),
            SplitPattern::String(_) => false,
        },
        _ => false,
    }
}

fn is_digits_only(pattern: &SplitPattern) -> bool {
    matches!(pattern, SplitPattern::Regex(regex) if regex == KNOWN_PATTERNS[3])
}

/// Cuts a text into pieces of at least `min_bytes` (the last may be shorter), each cut between a character that
/// is not whitespace and a space. The pieces depend on the text alone, never on the number of threads.
pub(crate) fn pieces(text: &str, min_bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::with_capacity(text.len() / min_bytes.max(1) + 1);
    let mut rest = text;
    while let Some(at) = next_cut(rest, min_bytes) {
        let (piece, tail) = rest.split_at(at);
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}

/// The first cut at or after `from`.
fn next_cut(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = from.max(1);
    while at < bytes.len() {
        at += bytes[at..].iter().position(|&b| b == b' ')?;
        // A space is one byte, so `at` begins a character and the one before it is whole.
        let before = text[..at].chars().next_back()?;
        if !before.is_whitespace() {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_text_and_begin_with_one_space() {
        let text = "one  two\n three\u{A0} four five   six";
        let cut = pieces(text, 2);
        assert_eq!(cut.concat(), text);
        assert_eq!(cut, ["one", "  two\n three\u{A0} four", " five", "   six"]);
    }

    #[test]
    fn a_text_without_spaces_stays_whole() {
        assert_eq!(pieces("abcdef\nghi", 2), ["abcdef\nghi"]);
        assert_eq!(pieces("", 2), [""]);
    }
}
