//! Frames for tables, taken before the first change is made.

use core::fmt;

use axerrno::AxError;

use super::table::{ENTRIES, Table};
use crate::mm::{HostPhysAddr, PageSize, PagingHandler, frames::FrameList};

/// The host has no frame left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames;

impl From<OutOfFrames> for AxError {
    fn from(_: OutOfFrames) -> Self {
        AxError::NoMemory
    }
}

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of frames")
    }
}

impl core::error::Error for OutOfFrames {}

/// Frames for tables. What is not used goes back to the host on drop.
pub struct TableReserve<P: PagingHandler>(FrameList<P>);

impl<P: PagingHandler> TableReserve<P> {
    /// A reserve without frames.
    pub const fn empty() -> Self {
        Self(FrameList::new(PageSize::Size4K))
    }

    /// Takes `count` frames from the host.
    ///
    /// # Errors
    /// When the host has fewer; those that were taken are given back.
    pub fn new(count: usize) -> Result<Self, OutOfFrames> {
        let mut reserve = Self::empty();
        for _ in 0..count {
            if !reserve.0.grow() {
                return Err(OutOfFrames);
            }
        }
        Ok(reserve)
    }

    /// The number of frames left.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no frame is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a frame out, all zero. It is the caller's now.
    pub fn take(&mut self) -> Option<HostPhysAddr> {
        self.0.take()
    }

    /// Takes a frame out as an empty table of entries of `level`.
    pub(super) fn take_table<'a>(&mut self, level: usize) -> Option<Table<'a, P>> {
        let hpa = self.take();
        debug_assert!(hpa.is_some(), "the reserve is smaller than the tables needed");
        // SAFETY: the frame is allocated, zero, and known to its taker alone, who links it into
        // a page table, from where only `release` frees it.
        Some(unsafe { Table::at(hpa?, level, ENTRIES) })
    }
}

impl<P: PagingHandler> fmt::Debug for TableReserve<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableReserve").field("len", &self.len()).finish_non_exhaustive()
    }
}
