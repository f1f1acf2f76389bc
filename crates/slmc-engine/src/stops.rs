//! Text that ends where one of some strings begins.

/// Holds back what may be the beginning of a stop string.
#[derive(Clone, Debug)]
pub(crate) struct StopStrings<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> StopStrings<'a> {
    pub fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes more text; what may be shown of it, and whether a stop string is reached. Nothing follows one.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let stops = || self.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: usize| stops().any(|stop| stop.starts_with(&self.held[at..]));
        let safe = self.held.char_indices().map(|(at, _)| at).find(|&at| begins(at));
        let rest = self.held.split_off(safe.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is held back when the text ends otherwise.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&str], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let (mut strings, mut shown) = (StopStrings::new(&stops), Vec::new());
        for piece in pieces {
            let (text, stopped) = strings.push(piece);
            shown.push(text);
            if stopped {
                return (shown, true);
            }
        }
        shown.push(strings.finish());
        (shown, false)
    }

    #[test]
    fn a_stop_string_may_come_in_pieces() {
        assert_eq!(shown(&["ab", "\n", "\nUs", "er"], &["\n\n"]).0.concat(), "ab");
        assert_eq!(
            shown(&["one E", "N", "D two"], &["END"]),
            (["one ", "", ""].map(String::from).to_vec(), true)
        );
        assert_eq!(shown(&["é", "éx"], &["éx"]).0.concat(), "é");
    }

    #[test]
    fn what_only_looked_like_one_is_shown() {
        assert_eq!(
            shown(&["a E", "N", "d"], &["END"]),
            (["a ", "", "ENd", ""].map(String::from).to_vec(), false)
        );
        assert_eq!(shown(&["aab"], &["ab", "b"]).0.concat(), "a");
        assert_eq!(shown(&["x\n"], &["\n\n"]).0.concat(), "x\n");
        assert_eq!(shown(&["x"], &[""]), (["x", ""].map(String::from).to_vec(), false));
    }
}
