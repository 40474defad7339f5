//! Removing memory from a guest: what was mapped waits here until no vCPU can reach it.

use alloc::vec::Vec;

use axerrno::{AxError, AxResult};

use super::{
    AddrSpace, GpaRange, HostPhysAddr,
    npt::{Leaves, NptFormat, Removed, release, release_tables},
    region::Backing,
    space::Inner,
    tlb::{NestedTlb, Ticket},
};
use crate::{
    hal::AxVMHal,
    sync::atomic::{Ordering, fence},
};

/// Host memory taken by `alloc_memory_region_at`, given back whole after its last page is gone.
pub(super) struct Taken {
    pub(super) base: HostPhysAddr,
    pub(super) size: usize,
    /// Bytes that are mapped, or wait to be unmapped for good.
    pub(super) mapped: usize,
}

/// What may be freed when `ticket` is reached.
pub(super) struct Quarantined {
    ticket: Ticket,
    garbage: Garbage,
}

enum Garbage {
    /// Part of the page table; with the frames behind its leaves, if they are owned.
    Table { removed: Removed, owned: bool },
    /// So many bytes of `taken[index]`.
    Taken { index: usize, bytes: usize },
}

impl<H: AxVMHal, F: NptFormat, T: NestedTlb> AddrSpace<H, F, T> {
    /// Removes `range`, every byte of which must be in a region.
    pub(super) fn remove(&self, inner: &mut Inner<H, F>, range: GpaRange) -> AxResult {
        self.cut_out(inner, range)?;
        let (tables, parts) = inner.garbage_of(range);
        let mut removed = inner.room_for_garbage(tables, parts)?;
        self.detach(inner, range, &mut removed);
        self.reap_locked(inner);
        Ok(())
    }

    /// The part of [`remove`](Self::remove) that cannot fail: the bounds of `range` are cut out,
    /// and there is room.
    pub(super) fn detach(
        &self,
        inner: &mut Inner<H, F>,
        range: GpaRange,
        removed: &mut Vec<Removed>,
    ) {
        let Inner { npt, regions, quarantine, .. } = inner;
        let first = quarantine.len();
        for part in regions.parts(range) {
            let owned = part.backing.owns_frames();
            let leaves = if owned { Leaves::Report } else { Leaves::Ignore };
            npt.unmap(part.range, removed, leaves);
            let tables = removed.drain(..).map(|removed| Garbage::Table { removed, owned });
            let taken = match part.backing {
                Backing::Taken(index) => Some(Garbage::Taken { index, bytes: part.range.size() }),
                _ => None,
            };
            for garbage in tables.chain(taken) {
                quarantine.push(Quarantined { ticket: Ticket::LATEST, garbage });
            }
        }
        regions.remove(range);
        self.stamp(inner, range, first);
    }

    /// Unmaps what is populated of a lazy region, which reads as zero afterwards. There is room.
    pub(super) fn discard(
        &self,
        inner: &mut Inner<H, F>,
        range: GpaRange,
        removed: &mut Vec<Removed>,
    ) {
        let first = inner.quarantine.len();
        inner.npt.unmap(range, removed, Leaves::Report);
        for removed in removed.drain(..) {
            let garbage = Garbage::Table { removed, owned: true };
            inner.quarantine.push(Quarantined { ticket: Ticket::LATEST, garbage });
        }
        self.stamp(inner, range, first);
    }

    /// Has everybody forget `range`, after which what is in quarantine from `first` on may go.
    fn stamp(&self, inner: &mut Inner<H, F>, range: GpaRange, first: usize) {
        let ticket = self.settle(inner, range);
        for item in inner.quarantine.iter_mut().skip(first) {
            item.ticket = ticket;
        }
        // Before the look at who is inside: a vCPU that leaves looks the other way round.
        self.quarantined.store(inner.quarantine.len(), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    pub(super) fn reap_locked(&self, inner: &mut Inner<H, F>) {
        let mut index = 0;
        while let Some(item) = inner.quarantine.get(index) {
            if self.tlb.is_reached(item.ticket) {
                let garbage = inner.quarantine.swap_remove(index).garbage;
                inner.free(garbage);
            } else {
                index += 1;
            }
        }
        self.quarantined.store(inner.quarantine.len(), Ordering::Release);
    }
}

impl<H: AxVMHal, F: NptFormat> Inner<H, F> {
    /// At most so much of the table, and so many regions, go into quarantine for `range`.
    pub(super) fn garbage_of(&self, range: GpaRange) -> (usize, usize) {
        self.regions.parts(range).fold((0, 0), |(tables, parts), part| {
            (tables + self.npt.count_removed(part.range), parts + 1)
        })
    }

    /// Room in quarantine for so much of the table and so many taken regions, and a list for the
    /// former.
    pub(super) fn room_for_garbage(
        &mut self,
        tables: usize,
        taken: usize,
    ) -> AxResult<Vec<Removed>> {
        let no_memory = |_| AxError::NoMemory;
        self.quarantine.try_reserve(tables + taken).map_err(no_memory)?;
        let mut removed = Vec::new();
        removed.try_reserve(tables).map_err(no_memory)?;
        Ok(removed)
    }

    fn free(&mut self, garbage: Garbage) {
        let Self { chunks, taken, .. } = self;
        match garbage {
            Garbage::Table { removed, owned } => {
                // SAFETY: the caller has seen that no vCPU has an entry from before the removal,
                // and `settle` that no software walks the table any more.
                unsafe {
                    if owned {
                        release::<F, H::PagingHandler>(removed, &mut |hpa, size| {
                            chunks.free::<H::PagingHandler>(hpa, size);
                        });
                    } else {
                        release_tables::<F, H::PagingHandler>(removed);
                    }
                }
            }
            Garbage::Taken { index, bytes } => {
                let Some(slot) = taken.get_mut(index) else { return };
                if let Some(region) = slot {
                    region.mapped -= bytes;
                    if region.mapped == 0 {
                        H::dealloc_memory_region_at(region.base, region.size);
                        *slot = None;
                    }
                }
            }
        }
    }
}

impl<H: AxVMHal, F: NptFormat, T: NestedTlb> Drop for AddrSpace<H, F, T> {
    fn drop(&mut self) {
        // The VM is gone, so no vCPU is in the guest: no need to wait for anybody.
        let mut guard = self.lock();
        let inner = &mut *guard;
        while let Some(item) = inner.quarantine.pop() {
            inner.free(item.garbage);
        }
        let Inner { npt, regions, chunks, taken, .. } = inner;
        for region in regions.iter().filter(|region| region.backing.owns_frames()) {
            npt.for_each_leaf(region.range, &mut |hpa, size| {
                chunks.free::<H::PagingHandler>(hpa, size);
            });
        }
        for region in taken.iter_mut().filter_map(Option::take) {
            H::dealloc_memory_region_at(region.base, region.size);
        }
    }
}
