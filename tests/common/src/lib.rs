//! axvm's test kit: what the tests, benches and fuzz targets stand on.

mod arena;
mod backing;
mod regions;

pub use arena::{ARENA_BASE, Arena, JUNK, POISON};
pub use regions::HostRegions;

use std::sync::{Mutex, MutexGuard};

/// A lock that survives a panic: a test that expects one goes on.
trait Lock<T> {
    fn locked(&self) -> MutexGuard<'_, T>;
}

impl<T> Lock<T> for Mutex<T> {
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
