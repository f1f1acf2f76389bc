//! Documents put end to end as one stream of tokens, from which batches are cut.
//!
//! Each document begins with BOS where the model begins texts so, and ends with EOS where the model has one:
//! packing without padding, as in GPT-3 (Brown et al. 2020, section 2.3). Attention may look across a border.

use std::ops::Range;

use slmc_ir::TokenId;

use crate::{
    Content, DataError, Document, Special, TokenizeError, Tokenizer,
    chat::{ChatError, ChatTemplate},
};

/// Documents that could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The documents could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A document could not be tokenized.
    #[error("document {id}: {source}")]
    Tokenize {
        /// The document.
        id: String,
        /// Why.
        source: TokenizeError,
    },
    /// A chat could not be written out.
    #[error("document {id}: {source}")]
    Chat {
        /// The document.
        id: String,
        /// Why.
        source: ChatError,
    },
    /// A chat, and the model has no template for it.
    #[error(
        "document {0} is a chat, but the model has no chat template: use a model that has one, or give the data as prompt and completion"
    )]
    NoTemplate(String),
    /// Several documents, and no token to put between them.
    #[error(
        "the tokenizer names neither BOS nor EOS, so documents cannot be told apart: give it one, or give the data as one document"
    )]
    NoSeparator,
}

/// A stream of tokens and what of it is learnt from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedTokens {
    tokens: Vec<TokenId>,
    /// Whether each token is a target; `None` where all are.
    scored: Option<Vec<bool>>,
    n_documents: u64,
    n_bytes: u64,
}

impl PackedTokens {
    /// Puts documents end to end. `template` writes out chats.
    ///
    /// # Errors
    /// At the first document that cannot be read, written out or tokenized.
    pub fn pack(
        documents: impl IntoIterator<Item = Result<Document, DataError>>,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PackError> {
        let mut packed = Self { tokens: Vec::new(), scored: None, n_documents: 0, n_bytes: 0 };
        for document in documents {
            packed.push(&document?, tokenizer, template)?;
        }
        Ok(packed)
    }

    /// A stream that is tokens already, all of them learnt from.
    pub fn from_tokens(tokens: Vec<TokenId>) -> Self {
        Self { tokens, scored: None, n_documents: 1, n_bytes: 0 }
    }

    /// A stream of which some tokens are learnt from.
    pub(crate) fn from_scored(tokens: Vec<TokenId>, scored: Vec<bool>) -> Self {
        Self { tokens, scored: Some(scored), n_documents: 1, n_bytes: 0 }
    }

    /// Puts in the only document: it needs no separator.
    ///
    /// # Errors
    /// When it cannot be written out or tokenized.
    pub(crate) fn push_alone(
        &mut self,
        document: &Document,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<(), PackError> {
        self.n_documents = 0;
        self.push(document, tokenizer, template)
    }

    /// Puts one more document at the end.
    ///
    /// # Errors
    /// When it cannot be written out or tokenized.
    pub fn push(
        &mut self,
        document: &Document,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<(), PackError> {
        let special = tokenizer.special();
        let bos = special.bos.filter(|_| special.add_bos);
        if self.n_documents > 0 && bos.is_none() && special.eos.is_none() {
            return Err(PackError::NoSeparator);
        }
        let refused = |source| PackError::Tokenize { id: document.id.clone(), source };
        match &document.content {
            Content::Text(text) => {
                self.extend(bos, true);
                self.extend(tokenizer.encode(text, Special::Plain).map_err(refused)?, true);
                self.extend(special.eos, true);
                self.n_bytes += text.len() as u64;
            }
            // Encoded apart, as the two are when the model is used: the prompt is given, the completion made.
            Content::Completion { prompt, completion } => {
                self.extend(bos, false);
                self.extend(tokenizer.encode(prompt, Special::Plain).map_err(refused)?, false);
                self.extend(tokenizer.encode(completion, Special::Plain).map_err(refused)?, true);
                self.extend(special.eos, true);
                self.n_bytes += (prompt.len() + completion.len()) as u64;
            }
            Content::Chat(messages) => {
                let template = template.ok_or_else(|| PackError::NoTemplate(document.id.clone()))?;
                let chat = template
                    .render_scored(messages)
                    .map_err(|source| PackError::Chat { id: document.id.clone(), source })?;
                let tokens = tokenizer.encode_with_offsets(&chat.text).map_err(refused)?;
                self.extend(tokenizer.missing_bos(tokens.first().map(|first| first.0)), false);
                for (token, bytes) in tokens {
                    let said = |span: &Range<usize>| span.start <= bytes.start && bytes.end <= span.end;
                    self.extend([token], chat.said.iter().any(said));
                }
                self.n_bytes += chat.text.len() as u64;
            }
        }
        self.n_documents += 1;
        Ok(())
    }

    fn extend(&mut self, tokens: impl IntoIterator<Item = TokenId>, scored: bool) {
        let n_before = self.tokens.len();
        self.tokens.extend(tokens);
        if !scored && self.scored.is_none() {
            self.scored = Some(vec![true; n_before]);
        }
        if let Some(mask) = &mut self.scored {
            mask.resize(self.tokens.len(), scored);
        }
    }

    /// The stream.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Whether each token of the stream is learnt from; `None` where all are.
    pub fn scored(&self) -> Option<&[bool]> {
        self.scored.as_deref()
    }

    /// Documents in the stream.
    pub fn n_documents(&self) -> u64 {
        self.n_documents
    }

    /// Bytes of text that the stream was made from; 0 where that is not known.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The highest token: must lie below the model's vocabulary.
    pub fn max_token(&self) -> Option<TokenId> {
        self.tokens.iter().copied().max()
    }
}
