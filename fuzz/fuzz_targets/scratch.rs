//! A folder for what a target writes, made once a process.

use std::{path::PathBuf, sync::OnceLock};

use tempfile::TempDir;

/// A path inside the folder.
pub fn path(name: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path().join(name)
}

/// Panics that slmc catches itself (those of other people's parsers) would end the process in the fuzzer's hook;
/// without it, those that it does not catch still do, at the target's edge.
#[allow(dead_code)] // not every target meets such a parser
pub fn let_caught_panics_pass() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| std::panic::set_hook(Box::new(|_| {})));
}
