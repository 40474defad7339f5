//! Memory as it was when the VM was created.

use alloc::vec::Vec;

use axerrno::{AxError, AxResult, ax_err};
use page_table_multiarch::{MappingFlags, PagingHandler};

use super::{
    AddrSpace, GpaRange, HostPhysAddr,
    access::zero_shared,
    npt::{NptFormat, Removed},
    region::{Backing, Origin, Region},
    source::Source,
    space::Inner,
    tlb::NestedTlb,
};
use crate::hal::AxVMHal;

impl<H: AxVMHal, F: NptFormat, T: NestedTlb> AddrSpace<H, F, T> {
    /// Makes all as it was after the regions of origin `Config` were added: regions of the host's
    /// are removed, what is missing of the others comes back, permissions are reset and memory is
    /// zeroed (memory that the host set aside excepted). No vCPU may be in the guest.
    ///
    /// # Errors
    /// `AlreadyExists` when a region of the host's is where memory comes back; `NoMemory`.
    /// Nothing is changed then.
    pub(crate) fn reset(&self, plan: &[(GpaRange, MappingFlags, Source)]) -> AxResult {
        let mut guard = self.lock();
        let inner = &mut *guard;
        // The memory that comes back may be what still waits in quarantine.
        self.reap_locked(inner);
        let foreign = |part: Region| part.origin == Origin::Host;
        if let Some((range, ..)) = plan.iter().find(|p| inner.regions.parts(p.0).any(foreign)) {
            let what = format_args!("host memory is mapped in {range:?}: unmap it first");
            return ax_err!(AlreadyExists, what);
        }
        let mut restored = Vec::new();
        let room = plan
            .iter()
            .try_for_each(|&(range, flags, source)| {
                inner.restore(range, flags, source, &mut restored)
            })
            .and_then(|()| inner.room_to_reset(plan));
        let mut removed = match room {
            Ok(removed) => removed,
            Err(error) => {
                for range in restored {
                    if let Err(error) = self.remove(inner, range) {
                        log::error!("{range:?} stays mapped: {error}");
                    }
                }
                return Err(error);
            }
        };

        // Nothing fails from here on.
        while let Some(range) = inner.a_region_of_the_host() {
            self.detach(inner, range, &mut removed);
        }
        for &(range, flags, source) in plan {
            inner.npt.protect(range, flags);
            inner.regions.protect(range, flags);
            self.settle(inner, range);
            match source {
                Source::Lazy(_) => self.discard(inner, range, &mut removed),
                Source::Eager | Source::Identical => inner.zero_contents(range),
                Source::Linear(_) => {}
            }
        }
        self.reap_locked(inner);
        Ok(())
    }
}

impl<H: AxVMHal, F: NptFormat> Inner<H, F> {
    fn a_region_of_the_host(&self) -> Option<GpaRange> {
        self.regions.iter().find(|region| region.origin == Origin::Host).map(|r| r.range)
    }

    /// Room for all that a reset puts in quarantine.
    fn room_to_reset(
        &mut self,
        plan: &[(GpaRange, MappingFlags, Source)],
    ) -> AxResult<Vec<Removed>> {
        self.regions.reserve(2)?;
        let foreign = self.regions.iter().filter(|region| region.origin == Origin::Host);
        let lazy = plan.iter().filter(|(.., source)| matches!(source, Source::Lazy(_)));
        let ranges = foreign.map(|region| region.range).chain(lazy.map(|(range, ..)| *range));
        let (tables, regions) = ranges.fold((0, 0), |(tables, regions), range| {
            let (more_tables, more_regions) = self.garbage_of(range);
            (tables + more_tables, regions + more_regions)
        });
        self.room_for_garbage(tables, regions)
    }

    /// Adds what no region covers of a configured one; what was added is noted in `restored`.
    fn restore(
        &mut self,
        range: GpaRange,
        flags: MappingFlags,
        source: Source,
        restored: &mut Vec<GpaRange>,
    ) -> AxResult {
        while let Some(hole) = { self.regions.holes(range).next() } {
            restored.try_reserve(1).map_err(|_| AxError::NoMemory)?;
            let offset = hole.start().as_usize() - range.start().as_usize();
            // Memory of which another part is still mapped was not given back.
            let taken = self.regions.parts(range).find_map(|part| match part.backing {
                Backing::Taken(index) if self.taken_covers(index, hole) => Some(index),
                _ => None,
            });
            match (source, taken) {
                (Source::Identical, Some(index)) => self.join_taken(hole, flags, index)?,
                (Source::Linear(hpa), _) => {
                    let hpa = HostPhysAddr::from(hpa.as_usize() + offset);
                    self.add(hole, flags, Source::Linear(hpa), Origin::Config)?;
                }
                _ => self.add(hole, flags, source, Origin::Config)?,
            }
            restored.push(hole);
        }
        Ok(())
    }

    fn taken_covers(&self, index: usize, range: GpaRange) -> bool {
        let taken = self.taken.get(index).and_then(Option::as_ref);
        taken
            .and_then(|taken| GpaRange::new(taken.base.as_usize().into(), taken.size))
            .is_some_and(|taken| taken.contains_range(range))
    }

    /// Maps a part of taken memory again, of which another part is still mapped.
    fn join_taken(&mut self, range: GpaRange, flags: MappingFlags, index: usize) -> AxResult {
        self.regions.reserve(1)?;
        self.map_contiguous(range, range.start().as_usize().into(), flags)?;
        if let Some(Some(taken)) = self.taken.get_mut(index) {
            taken.mapped += range.size();
        }
        let backing = Backing::Taken(index);
        self.regions.insert(Region { range, flags, backing, origin: Origin::Config })
    }

    /// Zeros what is mapped in `range`.
    fn zero_contents(&mut self, range: GpaRange) {
        self.npt.for_each_leaf(range, &mut |hpa, size| {
            let host = H::PagingHandler::phys_to_virt(hpa).as_mut_ptr();
            // SAFETY: the memory is the guest's, mapped for as long as the caller has the lock;
            // others use it atomically.
            unsafe { zero_shared(host, size as usize) };
        });
    }
}
