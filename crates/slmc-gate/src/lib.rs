//! Quality gates: a build fails when compression cost too much, and everyone sees where.
//!
//! The way through the crate: a [`GateFile`] says what a model may cost beside its baseline; [`run_gate`] measures both (the
//! baseline's predictions from a cache where they are known), compares unrounded figures with the bounds, and, when
//! quality was lost, finds the tensors to blame; [`render`] writes the [`Report`] for people and for CI.
//!
//! A bound is judged on the *estimate* unless the gate file says otherwise ([`Judge`]): the figure that is printed is the
//! figure that decides. Both models see the same tokens and items, so estimates are of paired differences and far steadier
//! than either model's figure. Where chance alone could have decided, the check says so (`inconclusive`).
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod blame;
mod cache;
mod check;
mod config;
mod error;
mod facts;
mod gate;
mod lock;
mod pair;
pub mod render;
mod session_model;
mod size;
mod speed;
mod task_source;

pub use blame::{Blame, BlameKind};
pub use cache::Cache;
pub use check::{Check, Status, Verdict};
pub use config::{Bounds, DataSection, GateFile, Judge, Permit};
pub use error::GateError;
pub use gate::{Opened, Report, Request, run_gate};
pub use lock::{Lock, lock_path};
pub use session_model::SessionModel;
pub use task_source::{LocatedTask, builtin_tasks, locate_task};
