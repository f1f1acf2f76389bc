//! Words already encoded: a text has few different ones, and looking one up is far cheaper than encoding it.
//!
//! Filled by many threads in whatever order; a word's tokens are the same whoever put them there, so what is found
//! here never changes a result.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{PoisonError, RwLock},
};

use slmc_ir::TokenId;

/// Longer words are rare enough to be encoded each time.
const MAX_WORD_BYTES: usize = 48;
/// Parts with a lock each.
const N_SHARDS: usize = 32;
/// Most words of a part; with all parts full, about 100 MB.
const MAX_SHARD_WORDS: usize = 1 << 14;

type Shard = RwLock<HashMap<Box<str>, Box<[TokenId]>, BuildHasherDefault<DefaultHasher>>>;

/// Tokens by word.
pub(crate) struct WordCache {
    shards: Vec<Shard>,
}

impl WordCache {
    pub(crate) fn new() -> Self {
        Self { shards: (0..N_SHARDS).map(|_| Shard::default()).collect() }
    }

    /// Appends the tokens of a word: those known, else those that `encode` gives.
    pub(crate) fn append<E>(
        &self,
        word: &str,
        tokens: &mut Vec<TokenId>,
        encode: impl FnOnce(&str) -> Result<Vec<TokenId>, E>,
    ) -> Result<(), E> {
        if word.len() > MAX_WORD_BYTES {
            tokens.extend(encode(word)?);
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        word.hash(&mut hasher);
        let shard = &self.shards[hasher.finish() as usize % N_SHARDS];
        if let Some(known) = shard.read().unwrap_or_else(PoisonError::into_inner).get(word) {
            tokens.extend_from_slice(known);
            return Ok(());
        }
        let new = encode(word)?;
        tokens.extend_from_slice(&new);
        let mut words = shard.write().unwrap_or_else(PoisonError::into_inner);
        if words.len() < MAX_SHARD_WORDS {
            words.insert(word.into(), new.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_encoded_once() {
        let cache = WordCache::new();
        let mut tokens = Vec::new();
        let encode = |word: &str| Ok::<_, ()>(vec![word.len() as TokenId, 7]);
        cache.append(" abc", &mut tokens, encode).unwrap();
        cache.append(" abc", &mut tokens, |_| Err(())).unwrap();
        assert_eq!(tokens, [4, 7, 4, 7]);
        assert_eq!(cache.append(" new", &mut tokens, |_| Err(())), Err(()));
    }

    #[test]
    fn long_words_are_not_kept() {
        let (cache, word) = (WordCache::new(), "x".repeat(MAX_WORD_BYTES + 1));
        let mut tokens = Vec::new();
        cache.append(&word, &mut tokens, |_| Ok::<_, ()>(vec![1])).unwrap();
        assert_eq!(cache.append(&word, &mut tokens, |_| Err(())), Err(()));
    }
}
