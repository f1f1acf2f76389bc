//! Training a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv:1508.07909; byte-level as in GPT-2,
//! Radford et al. 2019, section 2.2).
//!
//! Words are split off with GPT-2's expression, which llama.cpp knows as `gpt-2`. Each step merges the most frequent
//! pair of tokens; between equals, the pair with the lower ids. Counts are exact and nothing depends on hashing order or
//! threads: the same texts in any order give the same tokenizer.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, hash_map::DefaultHasher},
    hash::BuildHasherDefault,
};

use rayon::prelude::*;
use slmc_ir::{SpecialTokens, TokenId, TokenizerFiles};
use tokenizers::utils::SysRegex;

use crate::{bpe_json, cuts};

/// Longer runs without a split (rules of dashes, encoded data) teach nothing and are left out.
const MAX_WORD_BYTES: usize = 128;
/// A pair seen less often is not worth a token.
const MIN_PAIR_COUNT: i64 = 2;
/// Largest vocabulary: as many rows as a model spec may have.
const MAX_VOCAB: usize = 1 << 24;
/// Texts are counted in pieces of about this length, in parallel.
const PIECE_BYTES: usize = 1 << 16;

/// A hash map whose hashes are the same in every run.
type StableMap<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;
type Pair = (TokenId, TokenId);

/// A tokenizer that could not be trained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrainBpeError {
    /// The vocabulary has no room for the 256 bytes and the special tokens, or is larger than a model may have.
    #[error(
        "vocab_size = {vocab_size}: must be between {least} (256 bytes and the special tokens) and {MAX_VOCAB}"
    )]
    VocabSize {
        /// What was asked for.
        vocab_size: usize,
        /// The least that is possible.
        least: usize,
    },
    /// A special token that is empty, named twice, or a byte's own token.
    #[error("special token `{0}` is empty, named twice, or a single byte's token")]
    Special(String),
    /// The texts do not hold enough pairs.
    #[error(
        "the text yields {reached} tokens, not {vocab_size}: it has no more pairs seen twice; use more text or a smaller vocabulary"
    )]
    TooLittleText {
        /// Tokens that the text yields.
        reached: usize,
        /// Tokens asked for.
        vocab_size: usize,
    },
    /// The splitting expression failed on a text.
    #[error("a text could not be split into words at its byte {0}")]
    Split(usize),
}

/// Trains a tokenizer with exactly `vocab_size` tokens: the special ones first, then the 256 bytes, then the merges
/// in order. The first special token becomes BOS, EOS and padding; none is added to texts.
///
/// # Errors
/// When the vocabulary is too small or too large, or the texts are too short for it.
pub fn train_bpe(
    texts: &mut dyn Iterator<Item = String>,
    vocab_size: usize,
    special: &[&str],
) -> Result<TokenizerFiles, TrainBpeError> {
    let alphabet = bpe_json::byte_chars();
    check(vocab_size, special, &alphabet)?;
    let mut counts = StableMap::<String, i64>::default();
    for text in texts {
        count_words(&text, &mut counts)?;
    }
    let mut trainer = Trainer::new(counts, special, &alphabet);
    while trainer.content.len() < vocab_size {
        if !trainer.merge_next() {
            return Err(TrainBpeError::TooLittleText { reached: trainer.content.len(), vocab_size });
        }
    }
    let first = (!special.is_empty()).then_some(0);
    Ok(TokenizerFiles {
        json: bpe_json::write(&trainer.content, &trainer.merges, special.len()),
        special: SpecialTokens { bos: first, eos: first, pad: first, ..SpecialTokens::default() },
        chat_template: None,
    })
}

fn check(vocab_size: usize, special: &[&str], alphabet: &[char; 256]) -> Result<(), TrainBpeError> {
    let least = 256 + special.len();
    if vocab_size < least || vocab_size > MAX_VOCAB {
        return Err(TrainBpeError::VocabSize { vocab_size, least });
    }
    let mut seen: BTreeSet<String> = alphabet.iter().map(char::to_string).collect();
    seen.insert(String::new());
    for token in special {
        if !seen.insert((*token).to_owned()) {
            return Err(TrainBpeError::Special((*token).to_owned()));
        }
    }
    Ok(())
}

/// Adds the words of a text to the counts.
fn count_words(text: &str, counts: &mut StableMap<String, i64>) -> Result<(), TrainBpeError> {
    let pieces = cuts::pieces(text, PIECE_BYTES);
    let of_piece = |piece: &&str| {
        let mut words = StableMap::<String, i64>::default();
        let mut due = 0;
        let splitter = SysRegex::new(cuts::GPT2_PATTERN).map_err(|_| TrainBpeError::Split(0))?;
        for (start, end) in splitter.find_iter(piece) {
            if start != due {
                return Err(TrainBpeError::Split(due));
            }
            due = end;
            if end - start <= MAX_WORD_BYTES {
                match words.get_mut(&piece[start..end]) {
                    Some(n) => *n += 1,
                    None => drop(words.insert(piece[start..end].to_owned(), 1)),
                }
            }
        }
        if due == piece.len() { Ok(words) } else { Err(TrainBpeError::Split(due)) }
    };
    let all: Vec<_> = pieces.par_iter().map(of_piece).collect::<Result<_, _>>()?;
    for (word, n) in all.into_iter().flatten() {
        *counts.entry(word).or_insert(0) += n;
    }
    Ok(())
}

struct Word {
    tokens: Vec<TokenId>,
    count: i64,
}

struct Trainer {
    words: Vec<Word>,
    /// How often each pair occurs now.
    pair_counts: StableMap<Pair, i64>,
    /// Words in which a pair occurs, or did once.
    places: StableMap<Pair, Vec<u32>>,
    /// Pairs by count; a count may be out of date, and is then put right when it comes to the top.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
    /// Each token as the vocabulary writes it.
    content: Vec<String>,
    ids: StableMap<String, TokenId>,
    merges: Vec<Pair>,
    merged: StableMap<Pair, TokenId>,
}

impl Trainer {
    fn new(counts: StableMap<String, i64>, special: &[&str], alphabet: &[char; 256]) -> Self {
        let mut content: Vec<String> = special.iter().map(|&token| token.to_owned()).collect();
        let mut chars = alphabet.to_vec();
        chars.sort_unstable();
        content.extend(chars.iter().map(char::to_string));
        let ids: StableMap<String, TokenId> =
            content.iter().enumerate().map(|(id, c)| (c.clone(), id as TokenId)).collect();
        let of_byte: Vec<TokenId> = alphabet.iter().map(|c| ids[&c.to_string()]).collect();
        let mut counts: Vec<(String, i64)> = counts.into_iter().collect();
        counts.sort_unstable();
        let word = |(text, count): (String, i64)| Word {
            tokens: text.bytes().map(|byte| of_byte[usize::from(byte)]).collect(),
            count,
        };
        let mut trainer = Self {
            words: counts.into_iter().map(word).collect(),
            pair_counts: StableMap::default(),
            places: StableMap::default(),
            queue: BinaryHeap::new(),
            content,
            ids,
            merges: Vec::new(),
            merged: StableMap::default(),
        };
        trainer.count_all();
        trainer
    }

    fn count_all(&mut self) {
        for (at, word) in self.words.iter().enumerate() {
            for pair in pairs(&word.tokens) {
                *self.pair_counts.entry(pair).or_insert(0) += word.count;
                push_place(&mut self.places, pair, at as u32);
            }
        }
        self.queue = self.pair_counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
    }

    /// Merges the most frequent pair everywhere; `false` when no pair is left that occurs often enough.
    fn merge_next(&mut self) -> bool {
        let Some((count, Reverse(pair))) = self.queue.pop() else { return false };
        let now = self.pair_counts.get(&pair).copied().unwrap_or(0);
        if now != count {
            if now > 0 {
                self.queue.push((now, Reverse(pair)));
            }
            return true;
        }
        if count < MIN_PAIR_COUNT {
            return false;
        }
        let token = self.token_of(pair);
        let places = self.places.remove(&pair).unwrap_or_default();
        let mut grown = BTreeSet::new();
        for at in places {
            self.merge_in_word(at, pair, token, &mut grown);
        }
        self.pair_counts.remove(&pair);
        for pair in grown {
            if let Some(&count) = self.pair_counts.get(&pair) {
                self.queue.push((count, Reverse(pair)));
            }
        }
        true
    }

    /// The token that a pair becomes: a new one, unless another pair made the same text before.
    fn token_of(&mut self, pair: Pair) -> TokenId {
        if let Some(&token) = self.merged.get(&pair) {
            return token;
        }
        let text = format!("{}{}", self.content[pair.0 as usize], self.content[pair.1 as usize]);
        let next = self.content.len() as TokenId;
        let token = *self.ids.entry(text.clone()).or_insert(next);
        if token == next {
            self.content.push(text);
        }
        self.merges.push(pair);
        self.merged.insert(pair, token);
        token
    }

    fn merge_in_word(&mut self, at: u32, pair: Pair, token: TokenId, grown: &mut BTreeSet<Pair>) {
        let word = &mut self.words[at as usize];
        let merged = merge(&word.tokens, pair, token);
        if merged.len() == word.tokens.len() {
            return;
        }
        for old in pairs(&word.tokens) {
            if let Some(n) = self.pair_counts.get_mut(&old) {
                *n -= word.count;
            }
        }
        for new in pairs(&merged) {
            *self.pair_counts.entry(new).or_insert(0) += word.count;
            if new.0 == token || new.1 == token {
                push_place(&mut self.places, new, at);
                grown.insert(new);
            }
        }
        word.tokens = merged;
    }
}

fn pairs(tokens: &[TokenId]) -> impl Iterator<Item = Pair> + '_ {
    tokens.windows(2).map(|pair| (pair[0], pair[1]))
}

fn push_place(places: &mut StableMap<Pair, Vec<u32>>, pair: Pair, at: u32) {
    let places = places.entry(pair).or_default();
    if places.last() != Some(&at) {
        places.push(at);
    }
}

/// The tokens with each occurrence of the pair, from the left, made one.
fn merge(tokens: &[TokenId], pair: Pair, token: TokenId) -> Vec<TokenId> {
    let mut merged = Vec::with_capacity(tokens.len());
    let mut rest = tokens;
    while let [first, tail @ ..] = rest {
        if *first == pair.0 && tail.first() == Some(&pair.1) {
            merged.push(token);
            rest = &tail[1..];
        } else {
            merged.push(*first);
            rest = tail;
        }
    }
    merged
}
