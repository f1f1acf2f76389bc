//! Panics of the `tokenizers` crate made errors: some damaged files make it panic (an empty pattern to replace, a
//! character map cut short), and nothing that comes from outside may end the program.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static GUARDED_CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Whether a panic on this thread now becomes an error of slmc's: a program's panic hook has nothing to say then.
pub fn panic_becomes_error() -> bool {
    GUARDED_CALLS.get() > 0
}

/// What a call gives, or in words why it gave nothing.
///
/// Nothing that it leaves half done is looked at again: the tokenizer is dropped, or only its cache of words was being
/// filled, which passes over a lock left behind.
pub(crate) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    GUARDED_CALLS.set(GUARDED_CALLS.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED_CALLS.set(GUARDED_CALLS.get() - 1);
    match outcome {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its settings are damaged: the tokenizers library gave up on them".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_known_as_one() {
        assert!(!panic_becomes_error());
        let error = guarded::<()>(|| {
            assert!(panic_becomes_error());
            Err("refused".into())
        });
        assert_eq!(error, Err("refused".to_owned()));
        let error = guarded::<()>(|| panic!("an index out of bounds")).unwrap_err();
        assert!(error.contains("damaged"), "{error}");
        assert!(!panic_becomes_error());
    }
}
