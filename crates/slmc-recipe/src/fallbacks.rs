//! What could not be as asked, told in as few lines as there are reasons.

/// Tensors that are named of those that one reason concerns.
const NAMED: usize = 3;

/// Fallbacks, each `TENSOR: what instead of what, and why`, those that differ in the tensor alone put together.
pub fn summarized(fallbacks: &[String]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for fallback in fallbacks {
        // One that names no tensor is a reason of its own.
        let (tensor, reason) = fallback.split_once(": ").unwrap_or(("", fallback));
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, tensors)) => tensors.push(tensor),
            None => reasons.push((reason, vec![tensor])),
        }
    }
    let line = |(reason, tensors): (&str, Vec<&str>)| match &tensors[..] {
        [""] => reason.to_owned(),
        [only] => format!("{only}: {reason}"),
        all => {
            let more = if all.len() > NAMED { ", …" } else { "" };
            format!("{} tensors ({}{more}): {reason}", all.len(), all[..NAMED.min(all.len())].join(", "))
        }
    };
    reasons.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::summarized;

    #[test]
    fn one_line_for_each_reason_in_the_order_of_their_first() {
        let of =
            |fallbacks: &[&str]| summarized(&fallbacks.iter().map(|&f| f.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]), [""; 0]);
        assert_eq!(of(&["a: x: y"]), ["a: x: y"]);
        assert_eq!(of(&["products in f32"]), ["products in f32"]);
        assert_eq!(of(&["a: x", "b: y", "c: x"]), ["2 tensors (a, c): x", "b: y"]);
        assert_eq!(of(&["a: x", "b: x", "c: x", "d: x"]), ["4 tensors (a, b, c, …): x"]);
    }
}
