//! Text to tokens and back: Hugging Face's `tokenizers` behind the few calls that slmc needs.
//!
//! What is added around a text comes from [`SpecialTokens`] alone, never from the post-processor of
//! `tokenizer.json`: there is one answer to "does this model begin a text with BOS", and it is the model's.

use std::{collections::BTreeSet, ops::Range, sync::OnceLock};

use rayon::prelude::*;
use slmc_ir::{SpecialTokens, TokenId, TokenizerFiles};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
    models::bpe::BPE,
};

use crate::{cuts, guard::guarded, spelling, word_cache::WordCache};

/// Longest `tokenizer.json` that is read; the largest vocabularies in use take about 35 MB.
const MAX_JSON_BYTES: usize = 512 << 20;
/// Most ids: as many as a model spec may have rows.
const MAX_VOCAB: usize = 1 << 24;
/// Texts are spread over threads in pieces of about this length.
const MIN_PIECE_BYTES: usize = 16 << 10;

/// What becomes of special tokens when a text is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// BOS and EOS are added where the model wants them; `<|im_end|>` written out in the text stays text.
    Add,
    /// Nothing is added; `<|im_end|>` written out in the text stays text.
    Plain,
    /// Nothing is added; special tokens written out in the text, as a chat template writes them, are read as
    /// such. Only for text that slmc or the user made.
    Parse,
}

/// A tokenizer that could not be made or a text that it could not encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// The file is larger than any tokenizer.
    #[error("tokenizer.json has {0} bytes, more than the {MAX_JSON_BYTES} that slmc reads")]
    TooLarge(usize),
    /// The file is not a tokenizer.
    #[error("tokenizer.json: {0}")]
    Json(String),
    /// A special token's id is not in the vocabulary.
    #[error(
        "the {which} token has id {id}, but the vocabulary ends at {vocab_size}: \
         do tokenizer.json and the model's config belong together?"
    )]
    SpecialOutside {
        /// `bos`, `eos`, `unk` or `pad`.
        which: &'static str,
        /// Its id.
        id: TokenId,
        /// Ids in the vocabulary.
        vocab_size: usize,
    },
    /// A text is to begin or end with a token that the model does not have.
    #[error("a text is to get a {0} token, but the tokenizer names none")]
    NothingToAdd(&'static str),
    /// The tokenizer refused the text.
    #[error("the tokenizer refused a text: {0}")]
    Encode(String),
    /// The tokenizer refused the tokens.
    #[error("the tokenizer refused to decode: {0}")]
    Decode(String),
}

/// A model's tokenizer, ready for use. Shared between threads freely.
pub struct Tokenizer {
    /// Reads special tokens written out in a text as tokens.
    parsing: tokenizers::Tokenizer,
    parsing_words: WordCache,
    /// Reads them as text; made when it is asked for, as few programs need both.
    plain: OnceLock<tokenizers::Tokenizer>,
    plain_words: WordCache,
    special: SpecialTokens,
    /// Bytes of text that each id stands for, `[vocab_size]`.
    n_bytes: Vec<u32>,
    /// Control tokens: those that are not text.
    control: BTreeSet<TokenId>,
    /// Whether a text may be cut at spaces and encoded in pieces with the same result.
    cuttable: bool,
}

impl Tokenizer {
    /// Builds the tokenizer that travels with a model.
    ///
    /// # Errors
    /// When `tokenizer.json` is not one, or the special tokens are not in its vocabulary.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self, TokenizeError> {
        if files.json.len() > MAX_JSON_BYTES {
            return Err(TokenizeError::TooLarge(files.json.len()));
        }
        let mut parsing = parse(&files.json)?;
        parsing.with_truncation(None).map_err(|e| TokenizeError::Json(e.to_string()))?;
        parsing.with_padding(None);
        let vocabulary = parsing.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size > MAX_VOCAB {
            return Err(TokenizeError::Json(format!("an id above {MAX_VOCAB} is no row of an embedding")));
        }
        check_special(&files.special, vocab_size)?;
        let added = parsing.get_added_tokens_decoder();
        let control = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let n_bytes = spelling::n_bytes(&parsing, &vocabulary, vocab_size);
        let cuttable = cuts::allowed(&parsing);
        Ok(Self {
            parsing,
            parsing_words: WordCache::new(),
            plain: OnceLock::new(),
            plain_words: WordCache::new(),
            special: files.special.clone(),
            n_bytes,
            control,
            cuttable,
        })
    }

    fn plain(&self) -> &tokenizers::Tokenizer {
        self.plain.get_or_init(|| {
            let mut plain = self.parsing.clone();
            plain.set_encode_special_tokens(true);
            plain
        })
    }

    /// Encodes a text.
    ///
    /// # Errors
    /// When the tokenizer cannot represent it (a vocabulary without bytes and without an unknown token).
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<TokenId>, TokenizeError> {
        match special {
            Special::Plain => self.encode_pieces(self.plain(), &self.plain_words, text),
            Special::Parse => self.encode_pieces(&self.parsing, &self.parsing_words, text),
            Special::Add => {
                let mut tokens = Vec::new();
                if self.special.add_bos {
                    tokens.push(self.special.bos.ok_or(TokenizeError::NothingToAdd("bos"))?);
                }
                tokens.extend(self.encode(text, Special::Plain)?);
                if self.special.add_eos {
                    tokens.push(self.special.eos.ok_or(TokenizeError::NothingToAdd("eos"))?);
                }
                Ok(tokens)
            }
        }
    }

    /// Encodes a raw text file as llama.cpp's tools do (`llama_tokenize` with `add_special`, without
    /// `parse_special`): the same as [`Special::Add`].
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_document(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
        self.encode(text, Special::Add)
    }

    /// Encodes what a chat template wrote: special tokens are read as such, and BOS is put first where the model
    /// wants it and the template did not write it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_chat(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
        let mut tokens = self.encode(text, Special::Parse)?;
        if let Some(bos) = self.missing_bos(tokens.first().copied()) {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// BOS, if a text that begins with `first` should have it and does not.
    pub(crate) fn missing_bos(&self, first: Option<TokenId>) -> Option<TokenId> {
        self.special.bos.filter(|_| self.special.add_bos && first != self.special.bos)
    }

    /// Encodes a text in which special tokens are written out; beside each token, the bytes of the text that it
    /// stands for (`start..end`; tokens of one character share its bytes).
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(TokenId, Range<usize>)>, TokenizeError> {
        let encoding = guarded(|| self.parsing.encode(text, false)).map_err(TokenizeError::Encode)?;
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(spans).collect())
    }

    fn encode_pieces(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        words: &WordCache,
        text: &str,
    ) -> Result<Vec<TokenId>, TokenizeError> {
        let encode = |piece: &str| match guarded(|| tokenizer.encode_fast(piece, false)) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(why) => Err(TokenizeError::Encode(why)),
        };
        if !self.cuttable {
            return encode(text);
        }
        let encode_piece = |piece: &str| {
            let mut tokens = Vec::with_capacity(piece.len() / 3);
            for word in cuts::pieces(piece, 1) {
                words.append(word, &mut tokens, encode)?;
            }
            Ok(tokens)
        };
        if text.len() < 2 * MIN_PIECE_BYTES {
            return encode_piece(text);
        }
        let pieces = cuts::pieces(text, MIN_PIECE_BYTES);
        let tokens: Result<Vec<_>, _> = pieces.into_par_iter().map(encode_piece).collect();
        Ok(tokens?.concat())
    }

    /// The text of the tokens, special tokens written out. Bytes that are not UTF-8 become U+FFFD, and ids outside
    /// the vocabulary stand for nothing.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode(&self, tokens: &[TokenId]) -> Result<String, TokenizeError> {
        guarded(|| self.parsing.decode(tokens, false)).map_err(TokenizeError::Decode)
    }

    /// Decodes token by token, for text that appears while it is made; special tokens are left out.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, tokens: Vec::new(), shown: 0 }
    }

    /// One more than the highest id. The embedding may have more rows (padding), never fewer.
    pub fn vocab_size(&self) -> usize {
        self.n_bytes.len()
    }

    /// Ids with a meaning of their own.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The id of a token by its exact content: `<|im_end|>`.
    pub fn token_id(&self, content: &str) -> Option<TokenId> {
        self.parsing.token_to_id(content)
    }

    /// The content of a token as the vocabulary writes it: `Ġthe`, `▁the`, `<|im_end|>`.
    pub fn token_content(&self, id: TokenId) -> Option<String> {
        self.parsing.id_to_token(id)
    }

    /// Bytes of text that a token stands for; 0 for control tokens and ids outside the vocabulary.
    pub fn n_bytes(&self, id: TokenId) -> u32 {
        self.n_bytes.get(id as usize).copied().unwrap_or(0)
    }

    /// Whether a token is a control token (not text).
    pub fn is_special(&self, id: TokenId) -> bool {
        self.control.contains(&id)
    }
}

/// A tokenizer as `tokenizer.json` has it. BPE is read in one go; through the crate's own entry every model becomes a tree of
/// JSON first, which takes several times as long.
fn parse(json: &str) -> Result<tokenizers::Tokenizer, TokenizeError> {
    type Bpe =
        TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    if let Ok(tokenizer) = guarded(|| Ok(serde_json::from_str::<Bpe>(json)?)) {
        return Ok(tokenizer.into());
    }
    guarded(|| tokenizers::Tokenizer::from_bytes(json.as_bytes())).map_err(TokenizeError::Json)
}

fn check_special(special: &SpecialTokens, vocab_size: usize) -> Result<(), TokenizeError> {
    let named = [("bos", special.bos), ("eos", special.eos), ("unk", special.unk), ("pad", special.pad)];
    for (which, id) in named {
        if let Some(id) = id.filter(|&id| id as usize >= vocab_size) {
            return Err(TokenizeError::SpecialOutside { which, id, vocab_size });
        }
    }
    if special.add_bos && special.bos.is_none() {
        return Err(TokenizeError::NothingToAdd("bos"));
    }
    if special.add_eos && special.eos.is_none() {
        return Err(TokenizeError::NothingToAdd("eos"));
    }
    Ok(())
}

/// Text that appears token by token. A character spread over several tokens appears with its last one.
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Tokens not yet let go: those shown last, which the decoder may need to see, and those still open.
    tokens: Vec<TokenId>,
    /// How many of them are shown.
    shown: usize,
}

impl DecodeStream<'_> {
    /// Takes the next token; the text that it completes, if any.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses it.
    pub fn push(&mut self, token: TokenId) -> Result<Option<String>, TokenizeError> {
        if self.tokenizer.is_special(token) {
            return Ok(None);
        }
        self.tokens.push(token);
        let before = self.tokenizer.decode(&self.tokens[..self.shown])?;
        let now = self.tokenizer.decode(&self.tokens)?;
        // A character cut in the middle decodes to U+FFFD: wait for the rest of it.
        if now.ends_with('\u{FFFD}') || now.len() <= before.len() || !now.is_char_boundary(before.len()) {
            return Ok(None);
        }
        let text = now[before.len()..].to_owned();
        self.tokens.drain(..self.shown);
        self.shown = self.tokens.len();
        Ok(Some(text))
    }
}
