//! The BPE trainer against the one of Hugging Face's `tokenizers`, and what a trained tokenizer can do.

use slmc_data::{Special, Tokenizer, TrainBpeError, train_bpe};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

/// A text of made-up words, with numbers, contractions, runs of spaces and characters of several bytes.
fn text() -> String {
    let syllables = [
        "the", "re", "an", "ing", "ca", "fé", "naï", "ve", "12", "2024", "—", "über", "s", "日本", "'s", "to",
    ];
    let mut state = 1_u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut text = String::new();
    for _ in 0..4000 {
        for _ in 0..=draw(3) {
            text.push_str(syllables[draw(syllables.len())]);
        }
        text.push_str([" ", " ", " ", "  ", ".\n\n"][draw(5)]);
    }
    text
}

const SPECIAL: [&str; 2] = ["<|endoftext|>", "<|im_end|>"];

#[test]
fn merges_are_those_of_huggingface() {
    let n_vocab = 500;
    let ours = train_bpe(&mut [text()].into_iter(), n_vocab, &SPECIAL).unwrap();
    let mut trainer = TrainerWrapper::BpeTrainer(
        BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(n_vocab)
            .special_tokens(SPECIAL.iter().map(|&t| AddedToken::from(t, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    let bytes = ByteLevel::new(false, true, true);
    let built = TokenizerBuilder::<
        tokenizers::ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default().into())
    .with_pre_tokenizer(Some(bytes.into()))
    .with_decoder(Some(bytes.into()))
    .build();
    let mut theirs = built.unwrap();
    theirs.train(&mut trainer, [text()].into_iter()).unwrap();
    let ours: tokenizers::Tokenizer = ours.json.parse().unwrap();
    let sorted = |vocab: std::collections::HashMap<String, u32>| {
        let mut vocab: Vec<_> = vocab.into_iter().map(|(content, id)| (id, content)).collect();
        vocab.sort();
        vocab
    };
    assert_eq!(sorted(ours.get_vocab(true)), sorted(theirs.get_vocab(true)));
}

#[test]
fn a_trained_tokenizer_gives_back_every_text() {
    let files = train_bpe(&mut [text()].into_iter(), 400, &SPECIAL).unwrap();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert_eq!(tokenizer.vocab_size(), 400);
    assert_eq!((tokenizer.special().bos, tokenizer.special().eos), (Some(0), Some(0)));
    let strange = "Ünseen wörds, \u{1F600}\u{0}\r\n\t<|endoftext|> x";
    let plain = tokenizer.encode(strange, Special::Plain).unwrap();
    assert_eq!(tokenizer.decode(&plain).unwrap(), strange);
    assert!(!plain.contains(&0), "special tokens written out stay text");
    assert_eq!(tokenizer.encode("a<|im_end|>", Special::Parse).unwrap().last(), Some(&1));
    let n_bytes: u32 = plain.iter().map(|&token| tokenizer.n_bytes(token)).sum();
    assert_eq!(n_bytes as usize, strange.len());
    let known = tokenizer.encode("the ing", Special::Plain).unwrap();
    assert_eq!(known.len(), 2, "frequent words are one token");
}

#[test]
fn text_appears_only_in_whole_characters() {
    let files = train_bpe(&mut [text()].into_iter(), 270, &SPECIAL).unwrap();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    let text = "so \u{1F600} é!";
    let mut stream = tokenizer.decode_stream();
    let mut shown = Vec::new();
    for token in tokenizer.encode(text, Special::Plain).unwrap() {
        shown.extend(stream.push(token).unwrap());
    }
    assert_eq!(shown.concat(), text);
    assert!(shown.iter().all(|part| !part.contains('\u{FFFD}')));
    assert_eq!(stream.push(0).unwrap(), None, "special tokens are not shown");
}

#[test]
fn the_same_texts_give_the_same_bytes_in_any_order_and_on_any_number_of_threads() {
    let halves = || {
        let text = text();
        let middle = text[..text.len() / 2].rfind(" the").unwrap();
        let (a, b) = text.split_at(middle);
        [a.to_owned(), b.to_owned()]
    };
    let train = |n_threads: usize, reversed: bool| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut texts = halves();
        if reversed {
            texts.reverse();
        }
        pool.install(|| train_bpe(&mut texts.into_iter(), 350, &SPECIAL)).unwrap().json
    };
    let first = train(1, false);
    assert_eq!(train(3, false), first);
    assert_eq!(train(2, true), first);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let train =
        |n, special: &[&str]| train_bpe(&mut ["ab ab".to_owned()].into_iter(), n, special).unwrap_err();
    assert_eq!(train(257, &SPECIAL), TrainBpeError::VocabSize { vocab_size: 257, least: 258 });
    assert_eq!(train(usize::MAX, &[]), TrainBpeError::VocabSize { vocab_size: usize::MAX, least: 256 });
    assert_eq!(train(300, &["x1", "x1"]), TrainBpeError::Special("x1".into()));
    assert_eq!(train(300, &[""]), TrainBpeError::Special(String::new()));
    assert_eq!(train(300, &["A"]), TrainBpeError::Special("A".into()));
    assert_eq!(train(300, &[]), TrainBpeError::TooLittleText { reached: 257, vocab_size: 300 });
}
