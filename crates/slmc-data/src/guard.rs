//! Panics of the `tokenizers` crate made errors: some damaged files make it panic (an empty pattern to replace, a
//! character map cut short), and nothing that comes from outside may end the program.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a call gives, or in words why it gave nothing.
///
/// Nothing that it leaves half done is looked at again: the tokenizer is dropped, or only its cache of words was being
/// filled, which passes over a lock left behind.
pub(crate) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its settings are damaged (the tokenizers library panicked)".into()),
    }
}
