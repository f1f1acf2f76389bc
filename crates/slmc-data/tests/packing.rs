//! Documents of each kind, packed with a tokenizer of single bytes: what is where, and what is learnt from.

use std::sync::Arc;

use slmc_data::{
    Batches, ChatTemplate, ChatTokens, Content, Document, Message, PackError, PackedTokens, Tokenizer,
    train_bpe,
};
use slmc_ir::{SpecialTokens, TokenizerFiles};

const END: u32 = 0;

/// One token a byte; 0 is `<end>`, which is also BOS.
fn bytes_only(add_bos: bool) -> Tokenizer {
    let files = train_bpe(&mut std::iter::empty(), 257, &["<end>"]).unwrap();
    let special = SpecialTokens { add_bos, ..files.special };
    Tokenizer::from_files(&TokenizerFiles { special, ..files }).unwrap()
}

fn document(content: Content) -> Document {
    Document { id: "d".into(), split: None, content }
}

fn text(text: &str) -> Document {
    document(Content::Text(text.into()))
}

/// The stream as text, `|` for `<end>`; below each byte `^` where it is learnt from.
fn show(packed: &PackedTokens, tokenizer: &Tokenizer) -> (String, String) {
    let letter = |&t: &u32| if t == END { "|".to_owned() } else { tokenizer.decode(&[t]).unwrap() };
    let mask = match packed.scored() {
        None => "^".repeat(packed.tokens().len()),
        Some(scored) => scored.iter().map(|&s| if s { '^' } else { ' ' }).collect(),
    };
    (packed.tokens().iter().map(letter).collect(), mask)
}

fn pack(documents: Vec<Document>, add_bos: bool, template: Option<&ChatTemplate>) -> (String, String) {
    let tokenizer = bytes_only(add_bos);
    let packed = PackedTokens::pack(documents.into_iter().map(Ok), &tokenizer, template).unwrap();
    show(&packed, &tokenizer)
}

#[test]
fn texts_end_with_eos_and_begin_with_bos_where_the_model_does() {
    let (stream, mask) = pack(vec![text("ab"), text("<end>")], false, None);
    assert_eq!(stream, "ab|<end>|", "an end written out in a text stays text");
    assert_eq!(mask, "^^^^^^^^^");
    assert_eq!(pack(vec![text("ab"), text("c")], true, None).0, "|ab||c|");
}

#[test]
fn of_a_completion_only_the_answer_is_learnt() {
    let pair = document(Content::Completion { prompt: "1+1=".into(), completion: "2".into() });
    let (stream, mask) = pack(vec![text("ab"), pair, text("c")], true, None);
    assert_eq!(stream, "|ab||1+1=2||c|");
    assert_eq!(mask, "^^^^     ^^^^^");
}

#[test]
fn of_a_chat_only_the_assistant_is_learnt() {
    let template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<end>{% endfor %}\
                    {% if add_generation_prompt %}a:{% endif %}";
    let template = ChatTemplate::new(template, ChatTokens::default()).unwrap();
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let chat = vec![
        message("user", "é?"),
        message("assistant", "é"),
        message("user", "k"),
        message("assistant", "!"),
    ];
    let tokenizer = bytes_only(false);
    let documents = [Ok(document(Content::Chat(chat)))];
    let packed = PackedTokens::pack(documents, &tokenizer, Some(&template)).unwrap();
    assert_eq!(tokenizer.decode(packed.tokens()).unwrap(), "u:é?<end>a:é<end>u:k<end>a:!<end>");
    let scored = packed.scored().unwrap();
    let learnt: Vec<u32> =
        packed.tokens().iter().zip(scored).filter(|(_, learnt)| **learnt).map(|(&token, _)| token).collect();
    assert_eq!(tokenizer.decode(&learnt).unwrap(), "é<end>!<end>");
}

#[test]
fn a_chat_without_a_template_is_refused() {
    let chat = Content::Chat(vec![Message { role: "user".into(), content: "hi".into() }]);
    let error = PackedTokens::pack([Ok(document(chat))], &bytes_only(false), None).unwrap_err();
    assert!(matches!(error, PackError::NoTemplate(_)), "{error}");
}

#[test]
fn documents_that_cannot_be_told_apart_are_refused() {
    let files = train_bpe(&mut std::iter::empty(), 256, &[]).unwrap();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert!(PackedTokens::pack([Ok(text("a"))], &tokenizer, None).is_ok());
    let error = PackedTokens::pack([Ok(text("a")), Ok(text("b"))], &tokenizer, None).unwrap_err();
    assert!(matches!(error, PackError::NoSeparator), "{error}");
}

#[test]
fn rows_without_anything_to_learn_are_left_out() {
    let pair = |prompt: &str| document(Content::Completion { prompt: prompt.into(), completion: "x".into() });
    let tokenizer = bytes_only(false);
    let documents = [Ok(pair(&"p".repeat(100))), Ok(pair("q"))];
    let packed = Arc::new(PackedTokens::pack(documents, &tokenizer, None).unwrap());
    let batches = Batches::new(packed, 5, 1, 0).unwrap();
    // 105 tokens are 20 whole windows; only the last reaches a completion: its targets are tokens 96 to 100, of which
    // the x at 100 is learnt. The tokens after it fill no window.
    assert_eq!(batches.n_windows(), 1);
    assert_eq!(batches.batch(3).loss_mask, Some(vec![false, false, false, false, true]));
}
