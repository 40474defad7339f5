//! New regions: where their memory comes from, and how it gets into the page table.

use axerrno::{AxError, AxResult, ax_err};
use memory_addr::{PAGE_SIZE_2M, PAGE_SIZE_4K};
use page_table_multiarch::{MappingFlags, PageSize};

use super::{
    GpaRange, HostPhysAddr,
    frames::{FrameReserve, give_back, zero},
    npt::{NptFormat, TableReserve},
    quarantine::Taken,
    region::{Backing, Origin, Region},
    space::Inner,
};
use crate::hal::AxVMHal;

/// Where the memory of a new region comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// The host's, at this address; it stays the host's.
    Linear(HostPhysAddr),
    /// Taken from the host at the guest's own address.
    Identical,
    /// The host's frame allocator, at once.
    Eager,
    /// The host's frame allocator, at the first use of each leaf of at most this size.
    Lazy(PageSize),
}

impl<H: AxVMHal, F: NptFormat> Inner<H, F> {
    pub(super) fn add(
        &mut self,
        range: GpaRange,
        flags: MappingFlags,
        source: Source,
        origin: Origin,
    ) -> AxResult {
        if self.regions.parts(range).next().is_some() {
            return ax_err!(AlreadyExists, format_args!("a region overlaps {range:?}"));
        }
        self.regions.reserve(1)?;
        let backing = match source {
            Source::Linear(hpa) => {
                self.map_contiguous(range, hpa, flags)?;
                Backing::Linear(hpa)
            }
            Source::Identical => Backing::Taken(self.map_identical(range, flags)?),
            Source::Eager => {
                self.map_frames(range, flags)?;
                Backing::Eager
            }
            Source::Lazy(size) => {
                Backing::Lazy(if self.max_leaf.is_huge() { size } else { self.max_leaf })
            }
        };
        self.regions.insert(Region { range, flags, backing, origin })
    }

    pub(super) fn map_contiguous(
        &mut self,
        range: GpaRange,
        hpa: HostPhysAddr,
        flags: MappingFlags,
    ) -> AxResult {
        let fits = |end: usize| end <= 1 << F::PA_BITS;
        if !hpa.as_usize().is_multiple_of(PAGE_SIZE_4K)
            || !hpa.as_usize().checked_add(range.size()).is_some_and(fits)
        {
            return ax_err!(InvalidInput, format_args!("no host memory of that size at {hpa:?}"));
        }
        let needed = self.npt.tables_to_map(range, hpa, self.max_leaf);
        let mut tables = TableReserve::new(needed)?;
        self.npt.map(range, hpa, flags, self.max_leaf, &mut tables);
        Ok(())
    }

    fn map_identical(&mut self, range: GpaRange, flags: MappingFlags) -> AxResult<usize> {
        self.taken.try_reserve(1).map_err(|_| AxError::NoMemory)?;
        let (base, size) = (HostPhysAddr::from(range.start().as_usize()), range.size());
        if !H::alloc_memory_region_at(base, size) {
            return ax_err!(NoMemory, format_args!("the host has no memory at {base:?}+{size:#x}"));
        }
        // SAFETY: the host has just given us this memory, and no guest has it yet.
        unsafe { zero::<H::PagingHandler>(base, size) };
        if let Err(error) = self.map_contiguous(range, base, flags) {
            H::dealloc_memory_region_at(base, size);
            return Err(error);
        }
        let taken = Some(Taken { base, size, mapped: size });
        Ok(match self.taken.iter().position(Option::is_none) {
            Some(index) => {
                if let Some(slot) = self.taken.get_mut(index) {
                    *slot = taken;
                }
                index
            }
            None => {
                self.taken.push(taken);
                self.taken.len() - 1
            }
        })
    }

    fn map_frames(&mut self, range: GpaRange, flags: MappingFlags) -> AxResult {
        // Whole 2 MiB slots get chunks as far as there are any, the rest 4 KiB frames.
        let (start, end) = (range.start().as_usize(), range.end().as_usize());
        let first = start.next_multiple_of(PAGE_SIZE_2M).min(end);
        let slots = (end - first) / PAGE_SIZE_2M;
        let slots = if self.max_leaf.is_huge() { slots } else { 0 };
        let small = (range.size() - slots * PAGE_SIZE_2M) / PAGE_SIZE_4K;
        let mut frames = FrameReserve::<H::PagingHandler>::new(slots, small)?;
        let last = first + frames.chunks() * PAGE_SIZE_2M;
        let sections = [
            (start, first, PageSize::Size4K),
            (first, last, PageSize::Size2M),
            (last, end, PageSize::Size4K),
        ];
        let needed = sections
            .iter()
            .filter_map(|&(from, to, leaf)| {
                let section = GpaRange::from_bounds(from.into(), to.into())?;
                Some(self.npt.tables_to_map(section, HostPhysAddr::from(0), leaf))
            })
            .sum();
        let mut tables = TableReserve::new(needed)?;
        for (from, to, leaf) in sections {
            for gpa in (from..to).step_by(leaf as usize) {
                let Some(hpa) = frames.take(leaf) else { break };
                if self.npt.map_page(gpa.into(), hpa, flags, leaf, &mut tables) != Ok(true) {
                    give_back::<H::PagingHandler>(hpa, leaf);
                }
            }
        }
        Ok(())
    }
}
