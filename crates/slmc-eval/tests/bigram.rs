//! Perplexity and KL divergence of a model small enough to do by hand: a table of bigram logits.

use std::sync::atomic::{AtomicU64, Ordering};

use slmc_eval::{Divergence, EvalError, EvalText, Journal, Perplexity, Protocol, Windowing};
use slmc_ir::{ForwardError, Host, LanguageModel, SilentHost, TokenId};

/// Logits of the next token by the last one alone, `[4, 4]`; and the sequences it was asked for.
struct Bigram {
    table: [[f32; 4]; 4],
    asked: Vec<(Vec<TokenId>, usize)>,
}

impl Bigram {
    /// Logits are logarithms of these weights, plus a constant a row that must not matter.
    fn new(weights: [[f32; 4]; 4]) -> Self {
        let mut table = weights.map(|row| row.map(f32::ln));
        table[1] = table[1].map(|x| x + 300.0);
        table[2] = table[2].map(|x| x - 300.0);
        Self { table, asked: Vec::new() }
    }
}

impl LanguageModel for Bigram {
    fn vocab_size(&self) -> usize {
        4
    }
    fn context_len(&self) -> usize {
        64
    }
    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        self.asked.push((tokens.to_vec(), first));
        let row = |&token: &TokenId| {
            self.table.get(token as usize).ok_or(ForwardError::Token { token, vocab_size: 4 })
        };
        let rows: Vec<&[f32; 4]> = tokens.iter().skip(first).map(row).collect::<Result<_, _>>()?;
        // Two at a time, and one at the end where they are odd.
        for (number, rows) in rows.chunks(2).enumerate() {
            let rows: Vec<f32> = rows.iter().flat_map(|row| row.iter().copied()).collect();
            visit(first + 2 * number, &rows);
        }
        Ok(())
    }
}

/// Rows sum to 1: the probability of `next` after `last` is `P[last][next]`.
const P: [[f32; 4]; 4] = [
    [0.5, 0.25, 0.125, 0.125],
    [0.25, 0.25, 0.25, 0.25],
    [0.125, 0.5, 0.125, 0.25],
    [0.5, 0.125, 0.25, 0.125],
];
const Q: [[f32; 4]; 4] = [
    [0.25, 0.5, 0.125, 0.125],
    [0.25, 0.25, 0.25, 0.25],
    [0.125, 0.5, 0.25, 0.125],
    [0.5, 0.125, 0.25, 0.125],
];

fn perplexity(
    model: &mut dyn LanguageModel,
    text: &EvalText,
    windowing: Windowing,
    host: &dyn Host,
) -> Result<Perplexity, EvalError> {
    slmc_eval::perplexity(model, text, windowing, &mut Journal::none(), host)
}

fn kl_divergence(
    model: &mut dyn LanguageModel,
    baseline: &mut dyn LanguageModel,
    text: &EvalText,
    windowing: Windowing,
    host: &dyn Host,
) -> Result<Divergence, EvalError> {
    slmc_eval::kl_divergence(model, baseline, text, windowing, &mut Journal::none(), host)
}

fn text(bos: Option<TokenId>) -> EvalText {
    let tokens = vec![0, 1, 2, 3, 0, 0, 2, 1, 3, 3, 1];
    let n_bytes = vec![2; tokens.len()];
    EvalText::from_tokens(tokens, n_bytes, bos)
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found} is not {expected}");
}

#[test]
fn llama_protocol_by_hand() {
    let mut model = Bigram::new(P);
    let found = perplexity(&mut model, &text(None), Windowing::llama(4, None), &SilentHost).unwrap();
    // Chunks 0 1 2 3 | 0 0 2 1; position 2 predicts the last token of each: P(3|2) = 1/4, P(1|2) = 1/2.
    assert_eq!(model.asked, [(vec![0, 1, 2, 3], 2), (vec![0, 0, 2, 1], 2)]);
    assert_eq!(found.tokens, 2);
    close(found.nll_sum, 3.0 * 2.0_f64.ln());
    close(found.ppl, 2.0_f64.powf(1.5));
    // Three bits over the four bytes of two tokens.
    close(found.bits_per_byte.unwrap(), 0.75);
    // Values ln 4 and ln 2 about their mean: population variance (ln 2 / 2)^2, over n - 1 = 1.
    close(found.standard_error, found.ppl * 2.0_f64.ln() / 2.0);
    assert_eq!(found.per_chunk.len(), 2);
    close(found.per_chunk[0].nll_sum, 4.0_f64.ln());
    assert_eq!(found.nlls.len(), 2);
}

#[test]
fn bos_takes_the_place_of_the_first_token() {
    let mut model = Bigram::new(P);
    perplexity(&mut model, &text(Some(3)), Windowing::llama(4, Some(2)), &SilentHost).unwrap();
    assert_eq!(model.asked, [(vec![3, 1, 2, 3], 2), (vec![3, 0, 2, 1], 2)]);
}

#[test]
fn rolling_scores_all_but_the_first_whatever_the_stride() {
    // ln 2 times: P(1|0)=2 P(2|1)=2 P(3|2)=2 P(0|3)=1 P(0|0)=1 P(2|0)=3 P(1|2)=1 P(3|1)=2 P(3|3)=3 P(1|3)=3 bits.
    let bits = 20.0;
    for stride in 1..6 {
        let windowing = Windowing { protocol: Protocol::Rolling { stride }, ctx: 6, chunks: None };
        let found = perplexity(&mut Bigram::new(P), &text(None), windowing, &SilentHost).unwrap();
        assert_eq!(found.tokens, 10);
        close(found.nll_sum, bits * 2.0_f64.ln());
        close(found.bits_per_byte.unwrap(), bits / 20.0);
    }
}

#[test]
fn divergence_by_hand() {
    let (mut model, mut base) = (Bigram::new(Q), Bigram::new(P));
    let found =
        kl_divergence(&mut model, &mut base, &text(None), Windowing::llama(5, None), &SilentHost).unwrap();
    // Chunks 0 1 2 3 0 | 0 2 1 3 3 of 5: positions 2 and 3 predict: after 2, 3 | 1, 3.
    // KL(P[2] || Q[2]) = 1/8 ln(1/2) + 1/4 ln 2 = ln 2 / 8; the other rows are equal.
    let ln2 = 2.0_f64.ln();
    assert_eq!(found.tokens, 4);
    close(found.kld, ln2 / 8.0 / 4.0);
    close(found.kld_max, ln2 / 8.0);
    close(found.kld_median, 0.0);
    close(found.same_top, 1.0);
    // Base: P(3|2) P(0|3) P(3|1) P(3|3) = 2 + 1 + 2 + 3 bits; the model gives 3 after 2 one bit more.
    close(found.ppl_base, 2.0_f64.powf(8.0 / 4.0));
    close(found.ppl, 2.0_f64.powf(9.0 / 4.0));
}

#[test]
fn another_top_token_is_seen() {
    let text = EvalText::from_tokens(vec![0; 8], vec![1; 8], None);
    let windowing = Windowing::llama(8, None);
    let found =
        kl_divergence(&mut Bigram::new(Q), &mut Bigram::new(P), &text, windowing, &SilentHost).unwrap();
    assert_eq!(found.same_top, 0.0);
    // KL(P[0] || Q[0]) = 1/2 ln 2 + 1/4 ln(1/2).
    close(found.kld, 2.0_f64.ln() / 4.0);
    let itself =
        kl_divergence(&mut Bigram::new(P), &mut Bigram::new(P), &text, windowing, &SilentHost).unwrap();
    assert_eq!((itself.kld, itself.same_top, itself.kld_max), (0.0, 1.0, 0.0));
}

#[test]
fn damaged_models_are_named() {
    let mut model = Bigram::new(P);
    model.table[2][1] = f32::NAN;
    let error = perplexity(&mut model, &text(None), Windowing::llama(4, None), &SilentHost).unwrap_err();
    assert!(matches!(error, EvalError::NotFinite { token_index: 3 }), "{error}");

    let strange = EvalText::from_tokens(vec![0, 1, 2, 9], vec![1; 4], None);
    let error =
        perplexity(&mut Bigram::new(P), &strange, Windowing::llama(4, None), &SilentHost).unwrap_err();
    assert!(matches!(error, EvalError::Forward(ForwardError::Token { token: 9, .. })), "{error}");
}

/// A model that hands over one row fewer than it should.
struct Short(Bigram);

impl LanguageModel for Short {
    fn vocab_size(&self) -> usize {
        4
    }
    fn context_len(&self) -> usize {
        64
    }
    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        self.0.forward(&tokens[..tokens.len() - 2], first, visit)
    }
}

#[test]
fn a_model_that_leaves_rows_out_is_refused() {
    let error = perplexity(&mut Short(Bigram::new(P)), &text(None), Windowing::llama(8, None), &SilentHost);
    assert!(matches!(error, Err(EvalError::Row { .. })));
}

/// Asks to stop once two chunks are done.
#[derive(Default)]
struct Impatient(AtomicU64);

impl Host for Impatient {
    fn begin(&self, _: &str, _: u64, _: &str) {}
    fn advance_to(&self, done: u64, _: &str) {
        self.0.store(done, Ordering::Relaxed);
    }
    fn end(&self) {}
    fn warn(&self, _: &str) {}
    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
    fn stop_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 2
    }
}

#[test]
fn the_user_may_stop_it() {
    let windowing = Windowing { protocol: Protocol::Rolling { stride: 1 }, ctx: 4, chunks: None };
    let error = perplexity(&mut Bigram::new(P), &text(None), windowing, &Impatient::default()).unwrap_err();
    assert!(matches!(error, EvalError::Stopped { done: 2, total: 8, kept: false, .. }), "{error}");
}

/// Windows of one scored token each.
const STEPS: Windowing = Windowing { protocol: Protocol::Rolling { stride: 1 }, ctx: 4, chunks: None };

#[test]
fn whoever_is_stopped_goes_on_and_ends_with_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("made when needed");
    let open = |part: &str| Journal::open(&kept, &["perplexity", part]).unwrap();
    let run = |journal: &mut Journal, host: &dyn Host| {
        let mut model = Bigram::new(P);
        let found = slmc_eval::perplexity(&mut model, &text(None), STEPS, journal, host);
        (found, model.asked.len())
    };
    let (whole, _) = run(&mut Journal::none(), &SilentHost);
    let (error, asked) = run(&mut open("text"), &Impatient::default());
    assert!(matches!(error, Err(EvalError::Stopped { done: 2, total: 8, kept: true, .. })));
    assert_eq!(asked, 2);
    // What another evaluation follows from is another's.
    assert_eq!((open("text").n_kept(), open("other").n_kept()), (2, 0));
    let mut journal = open("text");
    let (found, asked) = run(&mut journal, &SilentHost);
    assert_eq!((found.as_ref().unwrap(), asked), (whole.as_ref().unwrap(), 6));
    assert_eq!(found.unwrap().nlls, whole.unwrap().nlls);
    journal.finish();
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 0, "nothing is left once it is done");
}

#[test]
fn what_was_kept_is_taken_as_far_as_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Journal::open(folder.path(), &["x"]).unwrap();
    let run = |journal: &mut Journal| {
        let mut model = Bigram::new(P);
        let found = slmc_eval::perplexity(&mut model, &text(None), STEPS, journal, &SilentHost).unwrap();
        (found, model.asked.len())
    };
    let (whole, _) = run(&mut Journal::none());
    let stopped =
        slmc_eval::perplexity(&mut Bigram::new(P), &text(None), STEPS, &mut open(), &Impatient::default());
    assert!(stopped.is_err());
    let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let lines = std::fs::read_to_string(&path).unwrap();
    let line: Vec<&str> = lines.lines().collect();
    // Two are kept; a torn line, one of another length, one that is none, another's name, no name, and what is no text.
    for (content, n_asked) in [
        (lines.clone(), 6),
        (lines.trim_end().to_owned(), 7),
        (format!("{}\n{}\n[1.0, 2.0]\n{}\n", line[0], line[1], line[2]), 7),
        (format!("{}\n{{}}\n{}\n", line[0], line[2]), 8),
        (lines.replace(line[0], "name"), 8),
        (String::new(), 8),
        ("\n\n\n".to_owned(), 8),
    ] {
        std::fs::write(&path, &content).unwrap();
        let mut journal = open();
        let (found, asked) = run(&mut journal);
        assert_eq!((found, asked), (whole.clone(), n_asked), "{content:?}");
        // What it wrote itself is whole again.
        assert!(journal.keep(&SilentHost));
        drop(journal);
        assert_eq!(open().n_kept(), 8, "{content:?}");
    }
    std::fs::write(&path, [0xff; 100]).unwrap();
    assert_eq!(open().n_kept(), 0);
}

#[test]
fn two_do_not_write_to_one_journal() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Journal::open(folder.path(), &["x"]);
    let mut first = open().unwrap();
    let stopped =
        slmc_eval::perplexity(&mut Bigram::new(P), &text(None), STEPS, &mut first, &Impatient::default());
    assert!(stopped.is_err());
    let error = open().unwrap_err().to_string();
    assert!(error.contains("run already"), "{error}");
    drop(first);
    assert_eq!(open().unwrap().n_kept(), 2);
}

#[test]
fn what_cannot_be_kept_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let mut journal = Journal::open(&kept, &["x"]).unwrap();
    // A file comes to stand where the folder should.
    std::fs::write(&kept, "").unwrap();
    let mut model = Bigram::new(P);
    let error = slmc_eval::perplexity(&mut model, &text(None), STEPS, &mut journal, &Impatient::default());
    assert!(matches!(error, Err(EvalError::Stopped { done: 2, kept: false, .. })));
}

/// A clock that moves on by two seconds whenever it is read.
#[derive(Default)]
struct Slow(AtomicU64);

impl Host for Slow {
    fn begin(&self, _: &str, _: u64, _: &str) {}
    fn advance_to(&self, _: u64, _: &str) {}
    fn end(&self) {}
    fn warn(&self, _: &str) {}
    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0.fetch_add(2, Ordering::Relaxed))
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

#[test]
fn what_takes_long_is_kept_without_being_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), &["x"]).unwrap();
    slmc_eval::perplexity(&mut Bigram::new(P), &text(None), STEPS, &mut journal, &SilentHost).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "what takes no time is not");
    let mut journal = Journal::open(folder.path(), &["x"]).unwrap();
    slmc_eval::perplexity(&mut Bigram::new(P), &text(None), STEPS, &mut journal, &Slow::default()).unwrap();
    drop(journal);
    assert_eq!(Journal::open(folder.path(), &["x"]).unwrap().n_kept(), 8);
}

#[test]
fn the_fields_have_the_names_others_read() {
    let ppl = perplexity(&mut Bigram::new(P), &text(None), Windowing::llama(4, None), &SilentHost).unwrap();
    let json = serde_json::to_value(&ppl).unwrap();
    for field in ["ppl", "tokens", "bits_per_byte"] {
        assert!(json[field].is_number(), "{field}");
    }
    let kld = kl_divergence(
        &mut Bigram::new(P),
        &mut Bigram::new(Q),
        &text(None),
        Windowing::llama(4, None),
        &SilentHost,
    );
    let json = serde_json::to_value(kld.unwrap()).unwrap();
    for field in ["kld", "same_top", "ppl", "ppl_base", "tokens"] {
        assert!(json[field].is_number(), "{field}");
    }
}
