//! Which part of a text the model sees at once, and which of it counts.

use serde::{Deserialize, Serialize};

use crate::EvalError;

/// How a long text is cut for a model with a bounded context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Protocol {
    /// llama.cpp's `llama-perplexity`: chunks of `ctx` tokens side by side, BOS in place of each chunk's first token
    /// where the model adds BOS; positions `ctx / 2 .. ctx - 1` predict, so the chunk's later half is scored with
    /// at least `ctx / 2` tokens of context. What is left over at the end is not scored.
    Llama,
    /// A window that moves on by `stride`: every token but the first is scored once, with as much context as fits.
    Rolling {
        /// Tokens that the window moves on; fewer give more context and take longer. Less than `ctx`.
        stride: usize,
    },
}

/// Size and number of the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windowing {
    /// How the text is cut.
    pub protocol: Protocol,
    /// Tokens that the model sees at once.
    pub ctx: usize,
    /// At most so many windows, from the start of the text; all of them where absent.
    pub chunks: Option<usize>,
}

impl Windowing {
    /// llama.cpp's protocol.
    pub const fn llama(ctx: usize, chunks: Option<usize>) -> Self {
        Self { protocol: Protocol::Llama, ctx, chunks }
    }
}

/// One window: the model sees tokens `start..end`, and the tokens `scored..end` are its predictions to be scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub start: usize,
    pub end: usize,
    /// First token of the text that is scored; more than `start`.
    pub scored: usize,
    /// Whether the first token is replaced by BOS.
    pub begins_with_bos: bool,
}

impl Window {
    /// Tokens that are scored.
    pub fn n_scored(&self) -> usize {
        self.end - self.scored
    }
}

/// The windows over a text of `n_tokens`.
pub(crate) fn windows(
    n_tokens: usize,
    windowing: Windowing,
    context_len: usize,
) -> Result<Vec<Window>, EvalError> {
    let Windowing { protocol, ctx, chunks } = windowing;
    let bad = |what, value, why: String| Err(EvalError::Setting { what, value, why });
    if ctx > context_len {
        return bad("ctx", ctx, format!("the model sees at most {context_len} tokens"));
    }
    let limit = chunks.unwrap_or(usize::MAX);
    if limit == 0 {
        return bad("chunks", 0, "must be at least 1".into());
    }
    match protocol {
        Protocol::Llama if ctx < 4 => bad("ctx", ctx, "must be at least 4".into()),
        Protocol::Llama if n_tokens < ctx => Err(EvalError::TooShort { n_tokens, ctx }),
        Protocol::Llama => {
            let window = |i: usize| Window {
                start: i * ctx,
                end: (i + 1) * ctx,
                scored: i * ctx + ctx / 2 + 1,
                begins_with_bos: true,
            };
            Ok((0..(n_tokens / ctx).min(limit)).map(window).collect())
        }
        Protocol::Rolling { .. } if ctx < 2 => bad("ctx", ctx, "must be at least 2".into()),
        Protocol::Rolling { stride } if stride == 0 || stride >= ctx => {
            bad("stride", stride, format!("must be between 1 and ctx - 1 = {}", ctx - 1))
        }
        Protocol::Rolling { .. } if n_tokens < 2 => Err(EvalError::TooShort { n_tokens, ctx: 2 }),
        Protocol::Rolling { stride } => Ok(rolling(n_tokens, ctx, stride, limit)),
    }
}

fn rolling(n_tokens: usize, ctx: usize, stride: usize, limit: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut scored = 1;
    let mut end = ctx.min(n_tokens);
    while windows.len() < limit {
        windows.push(Window { start: end.saturating_sub(ctx), end, scored, begins_with_bos: false });
        if end == n_tokens {
            break;
        }
        scored = end;
        end = end.saturating_add(stride).min(n_tokens);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(n_tokens: usize, windowing: Windowing) -> Vec<(usize, usize, usize)> {
        let windows = windows(n_tokens, windowing, 1000).unwrap();
        windows.iter().map(|w| (w.start, w.scored, w.end)).collect()
    }

    #[test]
    fn llama_scores_the_later_half() {
        assert_eq!(spans(25, Windowing::llama(8, None)), [(0, 5, 8), (8, 13, 16), (16, 21, 24)]);
        assert_eq!(spans(25, Windowing::llama(8, Some(2))).len(), 2);
    }

    #[test]
    fn rolling_scores_every_token_but_the_first_once() {
        for (n_tokens, ctx, stride) in [(25, 8, 3), (25, 8, 7), (8, 8, 1), (9, 8, 7), (2, 8, 4), (100, 10, 1)]
        {
            let spans =
                spans(n_tokens, Windowing { protocol: Protocol::Rolling { stride }, ctx, chunks: None });
            let mut due = 1;
            for (start, scored, end) in spans {
                assert_eq!(scored, due);
                assert!(start < scored && end - start <= ctx);
                due = end;
            }
            assert_eq!(due, n_tokens);
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |n, protocol, ctx, chunks| windows(n, Windowing { protocol, ctx, chunks }, 64).is_err();
        assert!(refused(100, Protocol::Llama, 65, None));
        assert!(refused(7, Protocol::Llama, 8, None));
        assert!(refused(100, Protocol::Llama, 3, None));
        assert!(refused(100, Protocol::Llama, 8, Some(0)));
        assert!(refused(100, Protocol::Rolling { stride: 8 }, 8, None));
        assert!(refused(100, Protocol::Rolling { stride: 0 }, 8, None));
        assert!(refused(1, Protocol::Rolling { stride: 1 }, 8, None));
    }
}
