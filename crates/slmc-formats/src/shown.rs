//! Names from a file, made fit for an error message.

use std::fmt::Write as _;

const MAX_CHARS: usize = 80;

/// The name with control characters escaped, cut when it is long: a message must neither drive the
/// terminal nor fill it.
pub(crate) fn shown(name: &str) -> String {
    let mut text = String::new();
    for (i, c) in name.chars().enumerate() {
        if i == MAX_CHARS {
            let _ = write!(text, "… ({} bytes)", name.len());
            break;
        }
        text.extend(c.escape_debug());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn long_and_control_characters() {
        assert_eq!(shown("h.0.query"), "h.0.query");
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert!(shown(&"x".repeat(1000)).ends_with("… (1000 bytes)"));
    }
}
