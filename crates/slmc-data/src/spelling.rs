//! How a vocabulary writes bytes: what is needed to know how much text a token stands for.

use std::collections::HashMap;

use tokenizers::{DecoderWrapper, PreTokenizerWrapper, Tokenizer};

/// Bytes of text that each id of a vocabulary stands for, `[vocab_size]`: 0 for control tokens and gaps.
pub(crate) fn n_bytes(
    tokenizer: &Tokenizer,
    vocabulary: &HashMap<String, u32>,
    vocab_size: usize,
) -> Vec<u32> {
    let byte_level = is_byte_level(tokenizer);
    let mut n_bytes = vec![0; vocab_size];
    for (content, &id) in vocabulary {
        let n = if byte_level { content.chars().count() } else { n_bytes_sentencepiece(content) };
        // A damaged vocabulary may have two words of one id.
        n_bytes[id as usize] = n_bytes[id as usize].max(n as u32);
    }
    for (&id, token) in &tokenizer.get_added_tokens_decoder() {
        if let Some(n) = n_bytes.get_mut(id as usize) {
            *n = if token.special { 0 } else { token.content.len() as u32 };
        }
    }
    n_bytes
}

/// GPT-2's way: each character of a token stands for one byte.
fn is_byte_level(tokenizer: &Tokenizer) -> bool {
    let decoder = |d: &DecoderWrapper| matches!(d, DecoderWrapper::ByteLevel(_));
    let by_decoder = tokenizer.get_decoder().is_some_and(|d| match d {
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().any(decoder),
        d => decoder(d),
    });
    let splitter = |p: &PreTokenizerWrapper| matches!(p, PreTokenizerWrapper::ByteLevel(_));
    let by_splitter = tokenizer.get_pre_tokenizer().is_some_and(|p| match p {
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().any(splitter),
        p => splitter(p),
    });
    by_decoder || by_splitter
}

/// SentencePiece's way: `▁` stands for a space, `<0x0A>` for one byte, all else for itself.
fn n_bytes_sentencepiece(content: &str) -> usize {
    let is_byte = content
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok());
    if is_byte { 1 } else { content.chars().map(|c| if c == '▁' { 1 } else { c.len_utf8() }).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentencepiece_writes_spaces_and_bytes_its_own_way() {
        assert_eq!(n_bytes_sentencepiece("▁the"), 4);
        assert_eq!(n_bytes_sentencepiece("<0x0A>"), 1);
        assert_eq!(n_bytes_sentencepiece("<0xZZ>"), 6);
        assert_eq!(n_bytes_sentencepiece("é"), 2);
    }
}
