//! The hash of a model, computed while the model is opened: both take a tenth of a second for each 100 MB.

use std::{
    cell::RefCell,
    thread::{self, JoinHandle},
};

use slmc_stages::fingerprint_of;

/// A hash under way.
pub struct Hashing {
    path: Option<String>,
    work: RefCell<Option<JoinHandle<Result<String, String>>>>,
}

impl Hashing {
    /// Begins to hash the model at `path`, where there is one.
    pub fn start(path: Option<String>) -> Self {
        let work = path.clone().map(|path| thread::spawn(move || fingerprint_of(&path)));
        Self { path, work: RefCell::new(work) }
    }

    /// The hash of what lies at `path`, waiting for it where it is the one under way.
    pub fn of(&self, path: &str) -> Result<String, String> {
        let work = if self.path.as_deref() == Some(path) { self.work.take() } else { None };
        match work.map(JoinHandle::join) {
            Some(Ok(hash)) => hash,
            // Nothing is under way, or its thread was lost: begin again.
            None | Some(Err(_)) => fingerprint_of(path),
        }
    }
}
