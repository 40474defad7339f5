//! Freeing what was detached.

use super::{
    NptFormat, PageSize, leaf_size,
    table::{ENTRIES, Slot, Table},
};
use crate::mm::{HostPhysAddr, PagingHandler};

/// What an [unmap](super::NestedPageTable::unmap) took out of a page table. TLBs may still know
/// it, and walks may be under way in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a table that is not released is leaked"]
pub enum Removed {
    /// A page.
    Leaf {
        /// Where it begins.
        hpa: HostPhysAddr,
        /// Its size.
        size: PageSize,
    },
    /// A table, with everything below it.
    Table {
        /// Its frame.
        hpa: HostPhysAddr,
        /// The level of its entries.
        level: usize,
        /// The number of table frames in the subtree, this one included.
        tables: usize,
    },
}

/// Frees the tables of `removed` and reports every page that was mapped: `on_leaf` gets its
/// address and size. Returns the number of table frames freed.
///
/// # Safety
/// 1. `removed` was handed out by a page table of format `F` and handler `P`, and is released
///    once.
/// 2. It has been flushed from the TLBs and walk caches of all CPUs, and no walk that began
///    before it was removed is under way.
pub unsafe fn release<F: NptFormat, P: PagingHandler>(
    removed: Removed,
    on_leaf: &mut impl FnMut(HostPhysAddr, PageSize),
) -> usize {
    match removed {
        Removed::Leaf { hpa, size } => {
            on_leaf(hpa, size);
            0
        }
        Removed::Table { hpa, level, .. } => {
            // SAFETY: a detached table, alive until it is freed by the next call, its last use.
            unsafe { free::<F, P, true>(Table::at(hpa, level, ENTRIES), on_leaf) }
        }
    }
}

/// Like [`release`] where nobody cares for the pages: tables of 4 KiB leaves are freed unread.
///
/// # Safety
/// As for [`release`].
pub unsafe fn release_tables<F: NptFormat, P: PagingHandler>(removed: Removed) -> usize {
    match removed {
        Removed::Leaf { .. } => 0,
        Removed::Table { hpa, level, .. } => {
            // SAFETY: as in `release`.
            unsafe { free::<F, P, false>(Table::at(hpa, level, ENTRIES), &mut |_, _| {}) }
        }
    }
}

/// Frees all tables of a page table whose root has `frames` frames.
///
/// # Safety
/// `root` is the root, and nothing walks or uses the page table from now on.
pub(super) unsafe fn free_root<F: NptFormat, P: PagingHandler>(root: Table<'_, P>, frames: usize) {
    // SAFETY: nothing is used after.
    unsafe { free_below::<F, P, false>(root, &mut |_, _| {}) };
    P::dealloc_frames(root.hpa(), frames);
}

/// Frees a table below the root and everything under it; returns the number of frames.
///
/// # Safety
/// Nothing walks or uses the subtree from now on.
unsafe fn free<F: NptFormat, P: PagingHandler, const REPORT: bool>(
    table: Table<'_, P>,
    on_leaf: &mut impl FnMut(HostPhysAddr, PageSize),
) -> usize {
    // SAFETY: the caller's promise covers what is below.
    let below = unsafe { free_below::<F, P, REPORT>(table, on_leaf) };
    P::dealloc_frame(table.hpa());
    1 + below
}

/// Frees the tables under `table`, not itself; returns the number of frames.
///
/// # Safety
/// Nothing walks or uses what is under the table from now on.
unsafe fn free_below<F: NptFormat, P: PagingHandler, const REPORT: bool>(
    table: Table<'_, P>,
    on_leaf: &mut impl FnMut(HostPhysAddr, PageSize),
) -> usize {
    if !REPORT && table.level() == 0 {
        return 0;
    }
    let mut freed = 0;
    for index in 0..table.len() {
        match table.slot::<F>(index) {
            Slot::Absent => {}
            Slot::Leaf { pa, .. } => {
                if let (true, Some(size)) = (REPORT, leaf_size(table.level())) {
                    on_leaf(pa, size);
                }
            }
            // SAFETY: part of the subtree; each table has one parent, so it is freed once.
            Slot::Table(child) => freed += unsafe { free::<F, P, REPORT>(child, on_leaf) },
        }
    }
    freed
}
