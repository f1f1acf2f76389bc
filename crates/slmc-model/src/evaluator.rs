//! The decoder as evaluation sees it: tokens in, rows of logits out.

use burn::tensor::{Device, Int, Tensor, TensorData};
use slmc_ir::{ForwardError, LanguageModel, TokenId};

use crate::{decoder::Decoder, load::read_back, loss::flat};

/// Rows of logits computed at once: bounds the memory to `64 × vocab_size`.
const LOGIT_ROWS: usize = 64;

/// A decoder without autodiff: no graph is built.
#[derive(Clone, Debug)]
pub struct Evaluator {
    decoder: Decoder,
}

impl Evaluator {
    /// Takes the decoder as it is, without its autodiff.
    pub fn new(decoder: &Decoder) -> Self {
        Self { decoder: decoder.for_evaluation() }
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}

/// Token ids as a tensor `[batch, seq]`.
///
/// # Panics
/// When there are not `batch * seq` tokens.
pub(crate) fn token_tensor(tokens: &[TokenId], batch: usize, seq: usize, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&id| id.cast_signed()).collect();
    Tensor::from_data(TensorData::new(ids, [batch, seq]), device)
}

impl LanguageModel for Evaluator {
    fn vocab_size(&self) -> usize {
        self.decoder.spec.vocab_size
    }

    fn context_len(&self) -> usize {
        self.decoder.spec.context_len
    }

    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        let (vocab_size, context_len) = (self.vocab_size(), self.context_len());
        if tokens.len() > context_len {
            return Err(ForwardError::Context { n_tokens: tokens.len(), context_len });
        }
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(ForwardError::Token { token, vocab_size });
        }
        if first >= tokens.len() {
            return Ok(());
        }
        let ids = token_tensor(tokens, 1, tokens.len(), &self.decoder.device());
        let hidden = self.decoder.hidden(ids);
        let head = self.decoder.head();
        for start in (first..tokens.len()).step_by(LOGIT_ROWS) {
            let n_rows = LOGIT_ROWS.min(tokens.len() - start);
            let logits = logits(&hidden, &head, start, n_rows);
            for (position, row) in (start..).zip(logits.chunks_exact(vocab_size)) {
                if row.iter().any(|x| !x.is_finite()) {
                    return Err(ForwardError::NotFinite { position });
                }
                visit(position, row);
            }
        }
        Ok(())
    }
}

/// Rows `start..start + n` of the logits, in row order.
fn logits(hidden: &Tensor<3>, head: &Tensor<2>, start: usize, n: usize) -> Vec<f32> {
    #[cfg(feature = "flex")]
    if let Some(logits) = crate::fused::logits(hidden, head, start, n) {
        return logits;
    }
    let rows = flat(hidden.clone()).narrow(0, start, n);
    read_back(rows.matmul(head.clone().transpose()))
}
