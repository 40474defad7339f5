//! Raw access to table frames.
//!
//! The invariant of the room: **an entry that decodes as a table points to a frame from
//! `PagingHandler`, zeroed before it was linked, which is a table of the level below, is reached
//! by this entry alone, and is not freed while a [`Table`] that could reach it is alive.** Only
//! this room writes entries, and only `0`, `F::leaf` and `F::table` of such a frame. A `Table` is
//! made from a root (two places in `walk`), from a fresh frame (`reserve`), from a detached
//! subtree (`release`), and from then on by following entries, which is safe.
//!
//! Frames are accessed atomically from the moment they are linked, as hardware and other threads
//! walk them; the handler's contract ([`AxVMHal::PagingHandler`](crate::AxVMHal::PagingHandler))
//! makes them writable at `phys_to_virt`.

use core::{
    marker::PhantomData,
    slice,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Entry, NptFormat, shift, span};
use crate::mm::{HostPhysAddr, MappingFlags, PAGE_SIZE_4K, PagingHandler};

/// The entries of a table below the root.
pub(super) const ENTRIES: usize = 512;

/// A table that stays allocated for `'a`.
pub(super) struct Table<'a, P> {
    hpa: HostPhysAddr,
    entries: *mut u64,
    /// The number of entries, a power of two, minus one.
    mask: usize,
    level: usize,
    lifetime: PhantomData<&'a AtomicU64>,
    handler: PhantomData<fn() -> P>,
}

impl<P> Clone for Table<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Table<'_, P> {}

/// An entry as read at one moment, with the table that it points to.
pub(super) enum Slot<'a, P> {
    Absent,
    Table(Table<'a, P>),
    Leaf { raw: u64, pa: HostPhysAddr, flags: MappingFlags },
}

impl<'a, P: PagingHandler> Table<'a, P> {
    /// # Safety
    /// `hpa` is a table of `entries` entries (a power of two) of `level`, for which the room's
    /// invariant holds during `'a`.
    #[inline(always)]
    pub(super) unsafe fn at(hpa: HostPhysAddr, level: usize, entries: usize) -> Self {
        Self {
            hpa,
            entries: P::phys_to_virt(hpa).as_mut_ptr().cast(),
            mask: entries - 1,
            level,
            lifetime: PhantomData,
            handler: PhantomData,
        }
    }

    /// A root for walking to `gpa`, which its input range contains: then the index needs no mask.
    ///
    /// # Safety
    /// As for [`at`](Self::at); and the caller uses no index but `self.index(gpa)`, for a `gpa`
    /// with `gpa >> shift(level)` below the root's number of entries.
    #[inline(always)]
    pub(super) unsafe fn root_for_walk(hpa: HostPhysAddr, level: usize) -> Self {
        // SAFETY: the caller's promises; the index is in the table without the mask.
        Self { mask: usize::MAX, ..unsafe { Self::at(hpa, level, ENTRIES) } }
    }

    pub(super) fn hpa(self) -> HostPhysAddr {
        self.hpa
    }

    /// The level of its entries.
    #[inline(always)]
    pub(super) fn level(self) -> usize {
        self.level
    }

    /// The number of its entries.
    pub(super) fn len(self) -> usize {
        self.mask + 1
    }

    /// The index of the entry that translates `gpa`.
    #[inline(always)]
    pub(super) fn index(self, gpa: usize) -> usize {
        (gpa >> shift(self.level)) & self.mask
    }

    /// The entry at `index`, taken modulo the table's length.
    #[inline(always)]
    pub(super) fn entry(self, index: usize) -> &'a AtomicU64 {
        // SAFETY: the masked index lies in the table, which by the invariant is live memory for
        // `'a`, aligned to a frame, and accessed atomically only.
        unsafe { AtomicU64::from_ptr(self.entries.add(index & self.mask)) }
    }

    /// All entries.
    #[inline(always)]
    pub(super) fn entries(self) -> &'a [AtomicU64] {
        // SAFETY: as for `entry`, for each of the `mask + 1` entries; `AtomicU64` has the layout
        // of `u64`.
        unsafe { slice::from_raw_parts(self.entries.cast::<AtomicU64>(), self.mask + 1) }
    }

    /// What the entry at `index` says now.
    #[inline(always)]
    pub(super) fn slot<F: NptFormat>(self, index: usize) -> Slot<'a, P> {
        let raw = self.entry(index).load(Ordering::Acquire);
        match F::decode(raw, self.level) {
            Entry::Table(hpa) if let Some(level) = self.level.checked_sub(1) => {
                // SAFETY: the entry was read from a table that the invariant holds for, so it
                // points to another.
                Slot::Table(unsafe { Table::at(hpa, level, ENTRIES) })
            }
            Entry::Leaf { pa, flags } => Slot::Leaf { raw, pa, flags },
            Entry::Absent | Entry::Table(_) => Slot::Absent,
        }
    }

    /// Writes a leaf, a table or 0.
    #[inline(always)]
    pub(super) fn set(self, index: usize, raw: u64) {
        self.entry(index).store(raw, Ordering::Release);
    }

    /// Cuts `start .. end`, which lies in what the table translates, into its entries.
    pub(super) fn pieces(self, start: usize, end: usize) -> impl Iterator<Item = Piece> {
        let size = span(self.level);
        let mut at = start;
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            // No overflow: input addresses have at most 50 bits.
            let next = ((at | (size - 1)) + 1).min(end);
            let piece =
                Piece { index: self.index(at), start: at, end: next, whole: next - at == size };
            at = next;
            Some(piece)
        })
    }

    /// Whether nothing is mapped; looks first beside the entries `first ..= last`.
    pub(super) fn is_empty_around(self, first: usize, last: usize) -> bool {
        let present = |index: usize| self.entry(index).load(Ordering::Relaxed) != 0;
        let (mut below, mut above) = (first, last + 1);
        while below > 0 || above < self.len() {
            if above < self.len() {
                if present(above) {
                    return false;
                }
                above += 1;
            }
            if below > 0 {
                below -= 1;
                if present(below) {
                    return false;
                }
            }
        }
        !(first..=last).any(present)
    }
}

/// The part of a range that one entry translates.
pub(super) struct Piece {
    pub(super) index: usize,
    pub(super) start: usize,
    pub(super) end: usize,
    /// It is all that the entry translates.
    pub(super) whole: bool,
}

/// Fills frames with zeros.
///
/// # Safety
/// The `count` frames from `hpa` on are allocated, and the caller alone knows them.
pub(super) unsafe fn zero<P: PagingHandler>(hpa: HostPhysAddr, count: usize) {
    // SAFETY: by the handler's contract allocated frames are writable at `phys_to_virt`, and by
    // this function's nobody else accesses them.
    unsafe { P::phys_to_virt(hpa).as_mut_ptr().write_bytes(0, count * PAGE_SIZE_4K) };
}
