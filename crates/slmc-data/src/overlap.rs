//! Whether a text that is measured on was seen before.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Words in a row that are no coincidence (GPT-3, arXiv:2005.14165, appendix C).
const WORDS: usize = 13;

/// Share of the runs of thirteen words of `measured` that are in `seen` too. Words are what white space parts, case and
/// all; 0 when there are no thirteen.
pub fn overlap<'a>(
    measured: impl IntoIterator<Item = &'a str>,
    seen: impl IntoIterator<Item = &'a str>,
) -> f64 {
    let measured: HashSet<u64> = measured.into_iter().flat_map(runs).collect();
    if measured.is_empty() {
        return 0.0;
    }
    let found: HashSet<u64> = seen.into_iter().flat_map(runs).filter(|run| measured.contains(run)).collect();
    found.len() as f64 / measured.len() as f64
}

/// A hash of each run of words in a text.
fn runs(text: &str) -> impl Iterator<Item = u64> {
    let mut last = [0_u64; WORDS];
    text.split_whitespace().enumerate().filter_map(move |(index, word)| {
        last.rotate_left(1);
        last[WORDS - 1] = hash(word);
        (index + 1 >= WORDS).then(|| hash(last))
    })
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::overlap;

    fn words(range: std::ops::Range<usize>) -> String {
        range.map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn runs_of_words_are_found_wherever_they_are() {
        let measured = words(0..113);
        assert_eq!(overlap([&*measured], [&*measured]), 1.0);
        assert_eq!(overlap([&*measured], [&*words(200..400)]), 0.0);
        // Of 101 runs the 38 of the words 40 to 89 are there, line breaks or not.
        let part = format!("other words\n{}\nmore", words(40..90).replace(' ', "\n "));
        assert!((overlap([&*measured], ["nothing", &part]) - 38.0 / 101.0).abs() < 1e-12);
    }

    #[test]
    fn twelve_words_in_a_row_are_no_overlap() {
        let measured = words(0..100);
        let seen: String = (0..8).map(|i| words(i * 12..(i + 1) * 12) + " x ").collect();
        assert_eq!(overlap([&*measured], [&*seen]), 0.0);
        assert_eq!(overlap([&*words(0..12)], [&*words(0..12)]), 0.0);
    }
}
