//! What a long task is handed by the program around it: libraries print nothing and read no clock themselves.

use std::time::Duration;

/// The outside world, as far as a library may touch it.
pub trait Host: Sync {
    /// A part of the work begins: `total` of `unit` ("tensors", "tokens") lie ahead.
    fn begin(&self, what: &str, total: u64, unit: &str);
    /// So much of it is done; `note` is a short live figure ("loss 3.21").
    fn advance_to(&self, done: u64, note: &str);
    /// That part is over.
    fn end(&self);
    /// Something that the user should know and that is in the result as well.
    fn warn(&self, message: &str);
    /// Time since some fixed moment; only ever grows.
    fn elapsed(&self) -> Duration;
    /// Whether the user asked to stop: save, then return.
    fn stop_requested(&self) -> bool;
}

/// A host that says nothing, never stops, and whose clock stands still.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentHost;

impl Host for SilentHost {
    fn begin(&self, _what: &str, _total: u64, _unit: &str) {}
    fn advance_to(&self, _done: u64, _note: &str) {}
    fn end(&self) {}
    fn warn(&self, _message: &str) {}
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
    fn stop_requested(&self) -> bool {
        false
    }
}
