//! How sure a figure is: intervals for paired measurements, clustered by chunk or item, and tests of differences.

mod bootstrap;
mod distributions;
mod mcnemar;

pub use bootstrap::{Interval, Resampling, interval};
pub use mcnemar::{McNemar, mcnemar};
