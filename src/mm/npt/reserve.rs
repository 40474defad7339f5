//! Frames for tables, taken before the first change is made.

use core::{fmt, marker::PhantomData, sync::atomic::Ordering};

use axerrno::AxError;

use super::table::{self, ENTRIES, Table};
use crate::mm::{HostPhysAddr, PagingHandler};

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

/// Zeroed frames for tables. What is not used goes back to the host on drop.
///
/// The frames form a list through their own first words: a reserve needs no heap.
pub struct TableReserve<P: PagingHandler> {
    first: Option<HostPhysAddr>,
    len: usize,
    handler: PhantomData<fn() -> P>,
}

impl<P: PagingHandler> TableReserve<P> {
    /// A reserve without frames.
    pub const fn empty() -> Self {
        Self { first: None, len: 0, handler: PhantomData }
    }

    /// Takes `count` frames from the host.
    ///
    /// # Errors
    /// When the host has fewer; those that were taken are given back.
    pub fn new(count: usize) -> Result<Self, OutOfFrames> {
        let mut reserve = Self::empty();
        for _ in 0..count {
            let hpa = P::alloc_frame().ok_or(OutOfFrames)?;
            // SAFETY: the frame has just been allocated, nobody else knows it.
            unsafe { table::zero::<P>(hpa, 1) };
            let next = reserve.first.map_or(0, HostPhysAddr::as_usize);
            Self::table_at(hpa, 0).entry(0).store(next as u64, Ordering::Relaxed);
            reserve.first = Some(hpa);
            reserve.len += 1;
        }
        Ok(reserve)
    }

    /// The number of frames left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no frame is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes a frame out, all zero. It is the caller's now.
    pub fn take(&mut self) -> Option<HostPhysAddr> {
        let hpa = self.first?;
        self.len -= 1;
        // The word of the last frame is 0, which may be a frame's address: `len` tells.
        let next = Self::table_at(hpa, 0).entry(0).swap(0, Ordering::Relaxed);
        self.first = (self.len > 0).then_some(HostPhysAddr::from_usize(next as usize));
        Some(hpa)
    }

    /// Takes a frame out as an empty table of entries of `level`.
    pub(super) fn take_table<'a>(&mut self, level: usize) -> Option<Table<'a, P>> {
        let hpa = self.take();
        debug_assert!(hpa.is_some(), "the reserve is smaller than the tables needed");
        Some(Self::table_at(hpa?, level))
    }

    /// A frame of the reserve's, or just taken from it, as a table.
    fn table_at<'a>(hpa: HostPhysAddr, level: usize) -> Table<'a, P> {
        // SAFETY: the frame is allocated, zero but perhaps for its first word (which nobody
        // decodes while it is in the list), and known to the reserve or its taker alone. In this
        // room the taker links it into a page table, from where only `release` frees it.
        unsafe { Table::at(hpa, level, ENTRIES) }
    }
}

impl<P: PagingHandler> Drop for TableReserve<P> {
    fn drop(&mut self) {
        while let Some(hpa) = self.take() {
            P::dealloc_frame(hpa);
        }
    }
}

impl<P: PagingHandler> fmt::Debug for TableReserve<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableReserve").field("len", &self.len).finish_non_exhaustive()
    }
}
