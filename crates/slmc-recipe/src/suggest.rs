//! "Did you mean …?" for names that were nearly right.

/// The known name nearest to `given`, if it is near enough to have been meant.
pub fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    // One slip, as two letters exchanged: in short names little else is alike.
    if let Some(name) = known.iter().find(|name| strsim::damerau_levenshtein(given, name) == 1) {
        return Some(name);
    }
    let score = |name: &str| strsim::jaro_winkler(given, name);
    let best = known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) > 0.8).then_some(best)
}

/// Adds a suggestion to serde's own message about an unknown field, which lists the fields there are.
pub fn explain(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match names.split_first() {
        Some((given, known)) if message.contains("unknown field") => match nearest(given, known) {
            Some(name) => format!("unknown key `{given}`: did you mean `{name}`?"),
            None => format!("unknown key `{given}`: the keys here are {}", known.join(", ")),
        },
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_key() {
        let message = "unknown field `batchsize`, expected one of `data`, `batch_size`, `seq_len`";
        assert_eq!(explain(message), "unknown key `batchsize`: did you mean `batch_size`?");
        let message = "unknown field `zzz`, expected one of `data`, `seq_len`";
        assert_eq!(explain(message), "unknown key `zzz`: the keys here are data, seq_len");
        let message = "unknown field `kdl`, expected one of `perplexity`, `kld`";
        assert_eq!(explain(message), "unknown key `kdl`: did you mean `kld`?");
        assert_eq!(explain("missing field `data`"), "missing field `data`");
    }
}
