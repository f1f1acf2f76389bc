//! Just enough of Rust's grammar for the rules: which bytes are code, and which lines are only compiled for tests.

/// A file's text with comments and the insides of literals blanked, line for line and byte for byte.
pub struct RustSource {
    /// The code that is left.
    pub code: String,
    /// Per line from 0: whether it is under `#[cfg(test)]`.
    is_test: Vec<bool>,
}

impl RustSource {
    pub fn parse(text: &str) -> Self {
        let code = blank(text);
        let mut is_test = vec![false; text.lines().count() + 1];
        for (start, end) in test_items(&code) {
            let (first, last) = (line_of(&code, start), line_of(&code, end));
            is_test[first - 1..last.min(text.lines().count())].fill(true);
        }
        Self { code, is_test }
    }

    /// Lines of code that ship, with their numbers from 1.
    pub fn shipped_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code
            .lines()
            .enumerate()
            .filter(|&(index, _)| !self.is_test[index])
            .map(|(index, line)| (index + 1, line))
    }

    /// Modules that are compiled for tests only and live in files of their own.
    pub fn test_modules(&self) -> Vec<&str> {
        let declared = self.code.lines().enumerate().filter(|&(index, _)| self.is_test[index]);
        declared.filter_map(|(_, line)| line.trim().strip_prefix("mod ")?.strip_suffix(';')).collect()
    }

    /// Functions with a body: name, first line from 1, number of lines.
    pub fn functions(&self) -> Vec<(&str, usize, usize)> {
        let mut found = Vec::new();
        for at in words(&self.code, "fn") {
            let rest = self.code[at + 2..].trim_start();
            let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            let start = self.code.len() - rest.len();
            if name.is_empty() {
                continue; // the type `fn(…)`
            }
            if let Some(end) = item_end(&self.code, start).filter(|&end| self.code.as_bytes()[end] == b'}') {
                let first = line_of(&self.code, at);
                found.push((name, first, line_of(&self.code, end) - first + 1));
            }
        }
        found
    }
}

/// Byte offsets at which `word` stands alone.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(in_word) && !after.is_some_and(in_word)
    })
}

/// Line from 1 of a byte offset.
pub fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1
}

/// Spans of the items that `#[cfg(test)]` (alone or inside `all`/`any`) stands before.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    for (at, _) in code.match_indices("#[cfg(") {
        let Some(attribute_end) = closing(code, at + 1) else { continue };
        let attribute = &code[at..attribute_end];
        let is_test = words(attribute, "test").next().is_some() && !attribute.contains("not(");
        if is_test && let Some(end) = item_end(code, attribute_end + 1) {
            spans.push((at, end));
        }
    }
    spans
}

/// Offset of the `}` or `;` that ends the item starting at `start`; attributes before it are passed over.
fn item_end(code: &str, start: usize) -> Option<usize> {
    let bytes = code.as_bytes();
    let mut at = start;
    while at < bytes.len() {
        match bytes[at] {
            b';' => return Some(at),
            b'{' => return closing(code, at),
            b'(' | b'[' => at = closing(code, at)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Offset of the bracket that closes the one at `open`.
fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(offset);
                }
            }
            _ => {}
        }
    }
    None
}

/// Replaces comments and the insides of string and character literals by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !ends_word(bytes, at) => raw_string_end(bytes, at),
            b'\'' => char_end(text, at),
            _ => at,
        };
        for byte in out[at..end].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        at = end.max(at + 1);
    }
    // Whole literals and comments were blanked, so no character was cut in two.
    String::from_utf8_lossy(&out).into_owned()
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// End of `r"…"` or `r#"…"#`; `at` itself when it is something else, such as `r#type`.
fn raw_string_end(bytes: &[u8], at: usize) -> usize {
    let n_hashes = bytes[at + 1..].iter().take_while(|&&b| b == b'#').count();
    if bytes.get(at + 1 + n_hashes) != Some(&b'"') {
        return at;
    }
    let mut close = vec![b'"'];
    close.resize(1 + n_hashes, b'#');
    let inside = at + n_hashes + 2;
    let found = bytes[inside..].windows(close.len()).position(|window| window == close);
    found.map_or(bytes.len(), |n| inside + n + close.len())
}

/// Whether the `r` at `at` is the last letter of a longer word (`br` and `cr` begin raw strings too).
fn ends_word(bytes: &[u8], at: usize) -> bool {
    let in_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match bytes[..at] {
        [.., before, b'b' | b'c'] => in_word(before),
        [b'b' | b'c'] => false,
        [.., before] => in_word(before),
        [] => false,
    }
}

/// End of a character literal; `at` itself for a lifetime.
fn char_end(text: &str, at: usize) -> usize {
    let mut inside = text[at + 1..].chars();
    match inside.next() {
        Some('\\') => {
            let rest = &text.as_bytes()[at + 3..];
            rest.iter().position(|&b| b == b'\'').map_or(text.len(), |n| at + 3 + n + 1)
        }
        Some(c) if inside.next() == Some('\'') => at + 1 + c.len_utf8() + 1,
        _ => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        let text = r####"let a = "unsafe \" x"; // unsafe
/* unsafe /* nested */ unsafe */ let b = r#"unsafe " "#; let c = 'u'; let d: &'static str = br"x"; '\'' '\u{75}' r#type"####;
        let code = blank(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.lines().count(), 2);
        assert!(!code.contains("unsafe"), "{code}");
        assert!(
            code.contains("&'static str") && code.contains("r#type") && code.contains("let c ="),
            "{code}"
        );
    }

    #[test]
    fn test_items_are_told_from_shipped_ones() {
        let source = RustSource::parse(
            "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod golden;\n#[cfg(not(test))]\nfn d() {}\n",
        );
        let shipped: Vec<_> = source.shipped_lines().map(|(line, _)| line).collect();
        assert_eq!(shipped, [1, 7, 10, 11]);
        assert_eq!(source.test_modules(), ["golden"]);
    }

    #[test]
    fn functions_are_measured() {
        let source = RustSource::parse(
            "trait T { fn no_body(&self, f: fn(u8) -> u8); }\nfn two(\n    x: [u8; 3],\n) -> u8 {\n    x[0]\n}\n",
        );
        assert_eq!(source.functions(), [("two", 2, 5)]);
    }
}
