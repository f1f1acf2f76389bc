//! Floats between files of different precision.

/// The f64 that is written like the f32: `1e-5`, not `9.999999747378752e-6`.
pub(crate) fn plain(x: f32) -> f64 {
    // Every f32's shortest form is a number that f64 reads.
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn plain_is_the_shortest_form() {
        assert_eq!(plain(1e-5), 1e-5);
        assert_eq!(plain(100_000.0), 100_000.0);
        assert_eq!(plain(1.0 / 3.0) as f32, 1.0_f32 / 3.0);
    }
}
