//! Benches: what operations cost, counted.

mod exits;
mod host;
mod report;

pub(crate) use exits::exits;
pub(crate) use host::host;
