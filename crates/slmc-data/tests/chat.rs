//! Chats are written out as Jinja2 writes them; `golden/chat.py` made the expected texts.

use slmc_data::{ChatTokens, Message, render_chat};

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
}

#[test]
fn texts_are_those_of_jinja2() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/chat.json")).unwrap();
    assert_eq!(cases.len(), 8);
    let tokens = ChatTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), ..ChatTokens::default() };
    for case in cases {
        let text = render_chat(&case.template, &case.messages, &tokens, case.add_generation_prompt).unwrap();
        assert_eq!(text, case.text, "{}", case.template);
    }
}
