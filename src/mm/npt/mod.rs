//! The nested page table: formats and walker.

pub use page_table_multiarch::MappingFlags;

/// PLACEHOLDER for the walker's owner.
pub trait NptFormat: Copy + core::fmt::Debug + Send + Sync + 'static {}

/// PLACEHOLDER
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry;
