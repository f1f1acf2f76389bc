//! From logits to the next token.
//!
//! In llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature. Ties go to the lower token, so the
//! result depends on the logits, the context and the seed alone.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use slmc_ir::TokenId;

use crate::EngineError;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Above 1 softens, below 1 sharpens the distribution; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only so many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability (arXiv:1904.09751); 1 for all.
    pub top_p: f64,
    /// Only tokens at least this many times as likely as the likeliest (arXiv:2407.01082); 0 for all.
    pub min_p: f64,
    /// Logits of tokens seen lately are divided by this when positive, else multiplied (arXiv:1909.05858); 1 for none.
    pub repeat_penalty: f64,
    /// How many tokens are lately.
    pub repeat_window: usize,
    /// Seed of the choices.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token each time.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_window: 64,
        seed: 0,
    };

    fn validate(&self) -> Result<(), EngineError> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let fields = [
            ("temperature", self.temperature, self.temperature >= 0.0, "must be 0 or more"),
            ("top_p", self.top_p, share(self.top_p) && self.top_p > 0.0, "must be above 0 and at most 1"),
            ("min_p", self.min_p, share(self.min_p), "must be between 0 and 1"),
            ("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "must be above 0"),
        ];
        for (what, value, is_good, why) in fields {
            if !(is_good && value.is_finite()) {
                return Err(EngineError::Setting { what, value: value.to_string(), why: why.to_owned() });
            }
        }
        Ok(())
    }
}

/// The tokens that may come next, with their probabilities.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Each token once; the probabilities add up to 1.
    pub choices: Vec<(TokenId, f64)>,
}

/// Chooses tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    candidates: Vec<(TokenId, f64)>,
    recent: Vec<TokenId>,
}

impl Sampler {
    /// A sampler at the beginning of its seed's stream.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn new(sampling: Sampling) -> Result<Self, EngineError> {
        sampling.validate()?;
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, random, candidates: Vec::new(), recent: Vec::new() })
    }

    /// What may follow `context`, by the logits after it.
    pub fn distribution(&mut self, logits: &[f32], context: &[TokenId]) -> Distribution {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        if temperature == 0.0 && self.sampling.repeat_penalty == 1.0 {
            // The first of the largest, as below, without a copy of the vocabulary.
            let mut choices = Vec::new();
            choices.extend(likeliest(logits).map(|token| (token, 1.0)));
            return Distribution { choices };
        }
        self.penalized(logits, context);
        let candidates = &mut self.candidates;
        let order = |a: &(TokenId, f64), b: &(TokenId, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let likeliest = candidates.iter().copied().min_by(order);
        let Some((top, largest)) = likeliest else { return Distribution::default() };
        if temperature == 0.0 {
            return Distribution { choices: vec![(top, 1.0)] };
        }
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            candidates.sort_unstable_by(order);
            let total: f64 = candidates.iter().map(|c| (c.1 - largest).exp()).sum();
            let mut left = top_p * total;
            let short = candidates.iter().position(|c| {
                left -= (c.1 - largest).exp();
                left <= 0.0
            });
            candidates.truncate(short.map_or(candidates.len(), |last| last + 1));
        }
        if min_p > 0.0 {
            candidates.retain(|c| (c.1 - largest).exp() >= min_p);
        }
        // Partial selection leaves an order that is the library's own; sums must not depend on it.
        candidates.sort_unstable_by_key(|c| c.0);
        let weight = |logit: f64| ((logit - largest) / temperature).exp();
        let total: f64 = candidates.iter().map(|c| weight(c.1)).sum();
        Distribution { choices: candidates.iter().map(|c| (c.0, weight(c.1) / total)).collect() }
    }

    /// Fills the candidates with all tokens and their logits, those of recent tokens lowered.
    fn penalized(&mut self, logits: &[f32], context: &[TokenId]) {
        let Sampling { repeat_penalty, repeat_window, .. } = self.sampling;
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits.iter().map(|&x| f64::from(x))));
        if repeat_penalty == 1.0 {
            return;
        }
        self.recent.clear();
        self.recent.extend_from_slice(&context[context.len().saturating_sub(repeat_window)..]);
        self.recent.sort_unstable();
        self.recent.dedup();
        for &token in &self.recent {
            if let Some((_, logit)) = self.candidates.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
            }
        }
    }

    /// A token, as often as it is likely.
    pub fn draw(&mut self, from: &Distribution) -> TokenId {
        let total = from.choices.iter().map(|c| c.1).sum();
        self.draw_weighted(&from.choices, total)
    }

    fn draw_weighted(&mut self, choices: &[(TokenId, f64)], total: f64) -> TokenId {
        let mut left = self.uniform() * total;
        for &(token, weight) in choices {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        choices.last().map_or(0, |c| c.0)
    }

    /// A number in `0..1`.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Whether a token drawn from `draft` may stand for one drawn from `target`; if not, the token that takes its
    /// place (Leviathan et al., arXiv:2211.17192, algorithm 1). Either way the outcome is distributed as `target`.
    pub(crate) fn verify(
        &mut self,
        target: &Distribution,
        draft: &Distribution,
        drafted: TokenId,
    ) -> Result<(), TokenId> {
        let (wanted, offered) = (target.probability(drafted), draft.probability(drafted));
        if self.uniform() * offered < wanted {
            return Ok(());
        }
        // Both are in the order of their tokens.
        let mut offers = draft.choices.iter().peekable();
        let mut missing = Vec::with_capacity(target.choices.len());
        for &(token, p) in &target.choices {
            while offers.next_if(|offer| offer.0 < token).is_some() {}
            let q = offers.next_if(|offer| offer.0 == token).map_or(0.0, |offer| offer.1);
            missing.push((token, (p - q).max(0.0)));
        }
        let total: f64 = missing.iter().map(|c| c.1).sum();
        // Nothing is missing only where the two agree to rounding.
        Err(if total > 0.0 { self.draw_weighted(&missing, total) } else { self.draw(target) })
    }
}

/// The first of the largest logits in the order of all numbers (NaN above infinity); nothing of none.
fn likeliest(logits: &[f32]) -> Option<TokenId> {
    // A key whose order is that of `total_cmp`: looking for the largest vectorizes.
    let key = |x: f32| {
        let bits = x.to_bits().cast_signed();
        bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
    };
    let largest = logits.iter().fold(i32::MIN, |most, &x| most.max(key(x)));
    logits.iter().position(|&x| key(x) == largest).map(|at| at as TokenId)
}

impl Distribution {
    /// How likely a token is.
    pub fn probability(&self, token: TokenId) -> f64 {
        self.choices.binary_search_by_key(&token, |c| c.0).map_or(0.0, |at| self.choices[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    fn distribution(sampling: Sampling, p: &[f64], context: &[TokenId]) -> Vec<(TokenId, f64)> {
        let logits: Vec<f32> = p.iter().map(|p| p.ln() as f32).collect();
        Sampler::new(sampling).unwrap().distribution(&logits, context).choices
    }

    #[track_caller]
    fn check(sampling: Sampling, p: &[f64], expected: &[(TokenId, f64)]) {
        let found = distribution(sampling, p, &[]);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn each_setting_keeps_what_it_says() {
        let p = [0.1, 0.4, 0.2, 0.3];
        check(PLAIN, &p, &[(0, 0.1), (1, 0.4), (2, 0.2), (3, 0.3)]);
        check(Sampling { temperature: 0.0, ..PLAIN }, &p, &[(1, 1.0)]);
        check(Sampling { top_k: 2, ..PLAIN }, &p, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]);
        check(Sampling { top_p: 0.6, ..PLAIN }, &p, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]);
        check(Sampling { top_p: 0.8, ..PLAIN }, &p, &[(1, 4.0 / 9.0), (2, 2.0 / 9.0), (3, 3.0 / 9.0)]);
        check(Sampling { min_p: 0.6, ..PLAIN }, &p, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]);
        let squares = 0.01 + 0.16 + 0.04 + 0.09;
        let sharp = [(0, 0.01 / squares), (1, 0.16 / squares), (2, 0.04 / squares), (3, 0.09 / squares)];
        check(Sampling { temperature: 0.5, ..PLAIN }, &p, &sharp);
        // top-p counts what top-k left: 4/7 of two tokens is enough for 0.5.
        check(Sampling { top_k: 2, top_p: 0.5, ..PLAIN }, &p, &[(1, 1.0)]);
        check(Sampling { top_k: 1, ..PLAIN }, &[0.25; 4], &[(0, 1.0)]);
    }

    #[test]
    fn the_likeliest_is_the_first_of_the_largest() {
        for (logits, expected) in [
            (&[][..], None),
            (&[-2.0], Some(0)),
            (&[-2.0, -1.0, -1.0, -3.0], Some(1)),
            (&[-0.0, 0.0, 0.0], Some(1)),
            (&[f32::NEG_INFINITY, -1e30], Some(1)),
            (&[1.0, 7.5, f32::INFINITY, 7.5], Some(2)),
        ] {
            assert_eq!(likeliest(logits), expected, "{logits:?}");
            let choices = Sampler::new(Sampling::GREEDY).unwrap().distribution(logits, &[]).choices;
            // The way of all other settings: a penalty that no token gets.
            let other = Sampling { repeat_penalty: 2.0, ..Sampling::GREEDY };
            assert_eq!(Sampler::new(other).unwrap().distribution(logits, &[]).choices, choices);
        }
    }

    #[test]
    fn recent_tokens_are_penalized_once() {
        let sampling = Sampling { repeat_penalty: 2.0, repeat_window: 3, ..PLAIN };
        let mut sampler = Sampler::new(sampling).unwrap();
        let found = sampler.distribution(&[2.0, -1.0, 2.0, 0.0], &[2, 0, 1, 0]).choices;
        let weights = [1.0_f64, -2.0, 2.0, 0.0].map(f64::exp);
        let total: f64 = weights.iter().sum();
        for (found, weight) in found.iter().zip(weights) {
            assert!((found.1 - weight / total).abs() < 1e-12, "{found:?}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for sampling in [
            Sampling { temperature: -1.0, ..PLAIN },
            Sampling { temperature: f64::NAN, ..PLAIN },
            Sampling { top_p: 0.0, ..PLAIN },
            Sampling { min_p: 1.1, ..PLAIN },
            Sampling { repeat_penalty: 0.0, ..PLAIN },
        ] {
            assert!(matches!(Sampler::new(sampling), Err(EngineError::Setting { .. })), "{sampling:?}");
        }
    }

    /// Pearson's statistic of counts against probabilities.
    fn chi_squared(counts: &[f64], p: &[f64]) -> f64 {
        let n: f64 = counts.iter().sum();
        counts.iter().zip(p).map(|(c, p)| (c - n * p) * (c - n * p) / (n * p)).sum()
    }

    #[test]
    fn verified_drafts_are_distributed_as_the_target() {
        let (p, q) = ([0.5, 0.05, 0.25, 0.2], [0.1, 0.6, 0.0, 0.3]);
        let of =
            |p: [f64; 4]| Distribution { choices: (0..).zip(p).filter(|choice| choice.1 > 0.0).collect() };
        let (target, draft) = (of(p), of(q));
        let mut sampler = Sampler::new(PLAIN).unwrap();
        let (mut counts, mut drafts, mut n_accepted) = ([0.0; 4], [0.0; 4], 0.0);
        for _ in 0..40_000 {
            let drafted = sampler.draw(&draft);
            drafts[drafted as usize] += 1.0;
            let verified = sampler.verify(&target, &draft, drafted);
            n_accepted += f64::from(verified.is_ok());
            counts[verified.err().unwrap_or(drafted) as usize] += 1.0;
        }
        // With 3 degrees of freedom, 21.1 is passed once in 10 000 draws of other seeds.
        assert!(chi_squared(&counts, &p) < 21.1, "{counts:?}");
        assert!(chi_squared(&drafts, &p) > 1000.0, "the test tells the draft from the target");
        // Σ min(p, q) are accepted; the standard error is 0.0024.
        assert!((n_accepted / 40_000.0 - 0.35_f64).abs() < 0.01, "{n_accepted}");
    }
}
