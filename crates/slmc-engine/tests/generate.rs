//! Texts: stops, streams, seeds, drafts.

mod common;

use common::{checkpoint, tiny};
use slmc_data::{ChatTemplate, Message, Tokenizer};
use slmc_engine::{
    Engine, EngineError, EngineOptions, Generated, Request, Sampler, Sampling, StopReason, chat_prompt,
    generate, stop_tokens, text_prompt,
};
use slmc_ir::{Family, Format, ModelSpec, TokenId};

const PROMPT: [TokenId; 3] = [5, 17, 200];

fn spec() -> ModelSpec {
    ModelSpec { context_len: 64, ..tiny::spec(Family::Llama) }
}

fn engine(seed: u64, format: Format, n_threads: usize) -> Engine {
    Engine::load(&checkpoint(&spec(), seed, format), EngineOptions::exact(n_threads)).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_files(&tiny::bpe()).unwrap()
}

fn request(sampling: Sampling, max_tokens: usize) -> Request<'static> {
    Request { prompt: &PROMPT, max_tokens, sampling, stop_tokens: &[], stop_strings: &[], n_draft: 3 }
}

fn write(engine: &Engine, draft: Option<&Engine>, request: &Request<'_>) -> (Generated, Vec<String>) {
    let mut session = engine.session(64).unwrap();
    let mut draft = draft.map(|draft| draft.session(64).unwrap());
    let mut shown = Vec::new();
    let written = generate(&mut session, draft.as_mut(), &tokenizer(), request, &mut |text| {
        shown.push(text.to_owned());
        true
    });
    (written.unwrap(), shown)
}

const WARM: Sampling = Sampling { temperature: 1.0, top_k: 40, seed: 3, ..Sampling::GREEDY };

#[test]
fn greedy_takes_the_likeliest_token_each_time() {
    let engine = engine(1, Format::F32, 1);
    let (written, _) = write(&engine, None, &request(Sampling::GREEDY, 12));
    let mut tokens = PROMPT.to_vec();
    for _ in 0..12 {
        let mut fresh = engine.session(64).unwrap();
        let logits = fresh.append(&tokens).unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        tokens.push(best as TokenId);
    }
    assert_eq!(written.tokens, tokens[3..]);
    assert_eq!((written.reason, written.n_prompt_run), (StopReason::MaxTokens, 3));
}

#[test]
fn a_seed_gives_one_text_on_any_number_of_threads() {
    let one = write(&engine(1, Format::Q4_0, 1), None, &request(WARM, 30)).0;
    assert_eq!(one, write(&engine(1, Format::Q4_0, 2), None, &request(WARM, 30)).0);
    let other = Sampling { seed: 4, ..WARM };
    assert_ne!(one.tokens, write(&engine(1, Format::Q4_0, 1), None, &request(other, 30)).0.tokens);
}

#[test]
fn what_is_shown_is_the_text_in_whole_characters() {
    // Random bytes: most are no character on their own.
    let engine = engine(2, Format::F32, 1);
    let (written, shown) = write(&engine, None, &request(WARM, 50));
    assert_eq!(shown[0], "", "the prompt has been read");
    assert_eq!(shown.concat(), written.text);
    assert!(shown.len() > 2, "it comes in pieces: {shown:?}");
}

#[test]
fn texts_end_where_they_are_told_to() {
    let engine = engine(2, Format::F32, 1);
    let full = write(&engine, None, &request(WARM, 40)).0;
    let end = full.tokens[6];
    let at = full.tokens.iter().position(|&t| t == end).unwrap();
    let (written, _) = write(&engine, None, &Request { stop_tokens: &[end], ..request(WARM, 40) });
    assert_eq!((written.reason, &written.tokens[..]), (StopReason::StopToken, &full.tokens[..at]));

    let middle = full.text.char_indices().nth(full.text.chars().count() / 2).unwrap().0;
    let stop: String = full.text[middle..].chars().take(2).collect();
    let stops = [stop.clone()];
    let (written, shown) = write(&engine, None, &Request { stop_strings: &stops, ..request(WARM, 40) });
    assert_eq!(written.reason, StopReason::StopString);
    assert_eq!(written.text, full.text[..full.text.find(&stop).unwrap()]);
    assert_eq!(shown.concat(), written.text);

    let (written, _) = write(&engine, None, &request(WARM, 1000));
    assert_eq!((written.reason, written.tokens.len()), (StopReason::Context, 64 + 1 - 3));
    let mut session = engine.session(64).unwrap();
    let asked = generate(&mut session, None, &tokenizer(), &request(WARM, 40), &mut |_| false).unwrap();
    assert_eq!(asked.reason, StopReason::Asked);
}

#[test]
fn what_cannot_be_gone_on_from_is_refused() {
    let engine = engine(2, Format::F32, 1);
    let mut session = engine.session(2).unwrap();
    let mut run = |request| generate(&mut session, None, &tokenizer(), &request, &mut |_| true).unwrap_err();
    assert!(matches!(run(request(WARM, 9)), EngineError::Context { n_tokens: 3, held: 0, capacity: 2 }));
    assert!(matches!(run(Request { prompt: &[], ..request(WARM, 9) }), EngineError::EmptyPrompt));
    let bad = Sampling { top_p: 2.0, ..WARM };
    assert!(matches!(run(request(bad, 9)), EngineError::Setting { what: "top_p", .. }));
}

#[test]
fn a_chat_goes_on_from_the_cache_of_the_turn_before() {
    let engine = engine(2, Format::F32, 1);
    let mut session = engine.session(64).unwrap();
    let first = generate(&mut session, None, &tokenizer(), &request(WARM, 5), &mut |_| true).unwrap();
    let prompt = [&PROMPT[..], &first.tokens, &[9, 9]].concat();
    let second = Request { prompt: &prompt, ..request(WARM, 5) };
    let again = generate(&mut session, None, &tokenizer(), &second, &mut |_| true).unwrap();
    assert_eq!(again.n_prompt_run, 3, "the last token written was never run");
    assert_eq!(again.tokens, write(&engine, None, &second).0.tokens);
}

#[test]
fn prompts_and_stops_come_from_the_model() {
    let mut model = checkpoint(&spec(), 1, Format::F32);
    let mut files = tiny::bpe();
    files.special.add_bos = true;
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    let plain = text_prompt(&tokenizer, "plain").unwrap();
    assert_eq!(plain, [0, 260]);
    assert_eq!(text_prompt(&tokenizer, "<|bos|>plain").unwrap(), plain);
    assert_eq!(text_prompt(&self::tokenizer(), "").unwrap(), [0]);
    let template = ChatTemplate::from_files(&files, &tokenizer).unwrap().unwrap();
    let message = Message { role: "user".to_owned(), content: "plain".to_owned() };
    assert_eq!(chat_prompt(&tokenizer, &template, &[message]).unwrap(), plain);
    model.tokenizer = Some(files);
    assert_eq!(stop_tokens(&model), [1]);
    model.generation = Some(serde_json::json!({ "eos_token_id": [7, 1] }));
    assert_eq!(stop_tokens(&model), [1, 7]);
    model.generation = Some(serde_json::json!({ "eos_token_id": 9 }));
    assert_eq!(stop_tokens(&model), [1, 9]);
}

#[test]
fn a_draft_does_not_change_a_greedy_text() {
    let target = engine(1, Format::F32, 1);
    let (alone, _) = write(&target, None, &request(Sampling::GREEDY, 40));
    let mut accepted = Vec::new();
    // Itself, something like it, and something else.
    for draft in [engine(1, Format::F32, 1), engine(1, Format::Q4_0, 1), engine(9, Format::F32, 1)] {
        for max_tokens in [1, 2, 17, 40] {
            let (written, _) = write(&target, Some(&draft), &request(Sampling::GREEDY, max_tokens));
            assert_eq!(written.tokens, alone.tokens[..max_tokens]);
            accepted.push((written.n_accepted, written.n_drafted));
        }
    }
    assert_eq!(
        accepted[3],
        (29, 29),
        "all of its own drafts are taken, three a step of four after the first token"
    );
    assert!(accepted[7].0 > accepted[11].0, "a likely draft helps more: {accepted:?}");
    // Weights of levels, which a CPU may read in bf16 and write in int8.
    let packed = checkpoint(&spec(), 1, Format::Q4_0);
    let packed = Engine::load(&packed, EngineOptions::fast(2)).unwrap();
    let (alone, _) = write(&packed, None, &request(Sampling::GREEDY, 40));
    let (written, _) = write(&packed, Some(&packed), &request(Sampling::GREEDY, 40));
    assert_eq!((written.tokens, written.n_accepted), (alone.tokens, 29));
    let (full, _) = write(&target, Some(&target), &request(Sampling::GREEDY, 1000));
    assert_eq!((full.reason, full.tokens.len()), (StopReason::Context, 64 + 1 - 3));
}

/// Pearson's statistic of pairs of tokens, and its degrees of freedom; rare pairs count as one.
fn chi_squared(found: &[(TokenId, TokenId)], expected: &[((TokenId, TokenId), f64)]) -> (f64, f64) {
    let n = found.len() as f64;
    let (mut statistic, mut cells, mut rare, mut rare_found) = (0.0, 0.0, 0.0, n);
    for &(pair, p) in expected {
        let count = found.iter().filter(|&&f| f == pair).count() as f64;
        if n * p >= 5.0 {
            statistic += (count - n * p).powi(2) / (n * p);
            rare_found -= count;
            cells += 1.0;
        } else {
            rare += n * p;
        }
    }
    // Whatever is not among the common pairs, pairs that should never come included.
    let rare = rare.max(1e-3);
    (statistic + (rare_found - rare).powi(2) / rare, cells)
}

#[test]
fn drafts_do_not_change_the_distribution_of_sampled_texts() {
    const N: u64 = 3000;
    let (target, draft) = (engine(1, Format::F32, 1), engine(1, Format::Q4_0, 1));
    let sampling = Sampling { temperature: 1.5, top_k: 5, ..Sampling::GREEDY };
    let mut sampler = Sampler::new(sampling).unwrap();
    let mut expected = Vec::new();
    let mut session = target.session(64).unwrap();
    let firsts = sampler.distribution(session.append(&PROMPT).unwrap(), &PROMPT);
    for (first, p) in firsts.choices {
        session.truncate(3);
        let seconds = sampler.distribution(session.append(&[first]).unwrap(), &[]);
        expected.extend(seconds.choices.into_iter().map(|(second, q)| ((first, second), p * q)));
    }
    let (tokenizer, mut n_drafted, mut n_accepted) = (tokenizer(), 0, 0);
    let mut pairs = |target: &Engine, draft: Option<&Engine>| {
        let mut session = target.session(64).unwrap();
        let mut draft = draft.map(|draft| draft.session(64).unwrap());
        let pair = |seed| {
            // Three tokens, so that the first two are drafted together.
            let request = Request { n_draft: 2, ..request(Sampling { seed, ..sampling }, 3) };
            let written =
                generate(&mut session, draft.as_mut(), &tokenizer, &request, &mut |_| true).unwrap();
            (n_drafted, n_accepted) = (n_drafted + written.n_drafted, n_accepted + written.n_accepted);
            (written.tokens[0], written.tokens[1])
        };
        (0..N).map(pair).collect::<Vec<_>>()
    };
    let drafted = pairs(&target, Some(&draft));
    let of_draft = pairs(&draft, None);
    let (statistic, freedom) = chi_squared(&drafted, &expected);
    // Four standard deviations above the mean: passed about once in 10 000 draws of other seeds.
    let limit = freedom + 4.0 * (2.0 * freedom).sqrt();
    assert!(freedom > 5.0 && statistic < limit, "{statistic}, {freedom} degrees of freedom");
    let (statistic, _) = chi_squared(&of_draft, &expected);
    assert!(statistic > 2.0 * limit, "the test tells the draft from the target: {statistic}");
    let share = n_accepted as f64 / n_drafted as f64;
    assert!(share > 0.05 && share < 0.999, "some drafts are taken, some are not: {share}");
}
