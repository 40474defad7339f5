//! Faults in the nested page table, and memory that is given at first use.

#![forbid(unsafe_code)]

use axerrno::{AxError, AxResult};
use memory_addr::PAGE_SIZE_4K;
use page_table_multiarch::{MappingFlags, PageSize};

use super::{
    AddrSpace, GpaRange, GuestPhysAddr, HostPhysAddr,
    frames::{give_back, take_zeroed},
    npt::{NptFormat, OutOfFrames, PageAt, TableReserve},
    region::{Backing, Region},
    space::Inner,
    tlb::NestedTlb,
};
use crate::hal::AxVMHal;

/// What a fault turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The page was given to the guest: try again.
    Populated,
    /// The page is there, and allows the access: another vCPU was faster, or a TLB entry was
    /// stale. Try again.
    Spurious,
    /// The region does not allow the access.
    Denied,
    /// No region is there.
    Unmapped,
}

impl<H: AxVMHal, F: NptFormat, T: NestedTlb> AddrSpace<H, F, T> {
    /// Handles a guest's access to `gpa` that faulted; `access` is the permission it needs.
    ///
    /// A lazy region gets exactly one zeroed leaf. However many vCPUs fault on it together, they
    /// get the same one.
    ///
    /// # Errors
    /// `NoMemory` when the host has no frame; the guest may fault again later.
    pub fn fault(&self, gpa: GuestPhysAddr, access: MappingFlags) -> AxResult<FaultOutcome> {
        let outcome = self.lock().populate(gpa, access);
        if matches!(outcome, Ok(FaultOutcome::Spurious)) {
            self.forget_here(gpa);
        }
        outcome
    }

    /// This CPU may hold an entry from before the page was mapped, or was allowed more.
    #[cold]
    fn forget_here(&self, gpa: GuestPhysAddr) {
        if let Some(page) = GpaRange::new(gpa.page_base(), PAGE_SIZE_4K) {
            self.tlb.flush_here(page);
        }
    }

    /// As [`fault`](Self::fault): true when the guest may try again.
    pub fn handle_page_fault(&self, gpa: GuestPhysAddr, access: MappingFlags) -> bool {
        matches!(self.fault(gpa, access), Ok(FaultOutcome::Populated | FaultOutcome::Spurious))
    }

    /// Makes sure that RAM is mapped at `gpa`, for a copy by the host that needs `access`.
    #[cold]
    pub(crate) fn populate_for_host(&self, gpa: GuestPhysAddr, access: MappingFlags) -> AxResult {
        let mut inner = self.lock();
        let device = |region: &Region| region.flags.contains(MappingFlags::DEVICE);
        if inner.regions.find(gpa).is_none_or(device) {
            return Err(AxError::InvalidInput);
        }
        match inner.populate(gpa, access)? {
            FaultOutcome::Populated | FaultOutcome::Spurious => Ok(()),
            FaultOutcome::Denied | FaultOutcome::Unmapped => Err(AxError::InvalidInput),
        }
    }
}

impl<H: AxVMHal, F: NptFormat> Inner<H, F> {
    #[inline]
    fn populate(&mut self, gpa: GuestPhysAddr, access: MappingFlags) -> AxResult<FaultOutcome> {
        let Some(region) = self.regions.find(gpa) else { return Ok(FaultOutcome::Unmapped) };
        if !region.flags.contains(access) {
            return Ok(FaultOutcome::Denied);
        }
        let Backing::Lazy(leaf) = region.backing else { return Ok(FaultOutcome::Spurious) };
        let flags = region.flags;
        if leaf.is_huge()
            && let Some(range) = aligned(gpa, leaf)
            && region.range.contains_range(range)
            && self.npt.is_vacant(range.start(), leaf)
            && self.map_new(range.start(), flags, leaf)? == Some(true)
        {
            return Ok(FaultOutcome::Populated);
        }
        match self.npt.page_at(gpa) {
            // Mostly all tables are there already.
            PageAt::Vacant(place) => {
                let size = PageSize::Size4K;
                let hpa = take_zeroed::<H::PagingHandler>(size).ok_or(AxError::NoMemory)?;
                if place.map(hpa, flags) {
                    return Ok(FaultOutcome::Populated);
                }
                give_back::<H::PagingHandler>(hpa, size);
                Err(AxError::NoMemory)
            }
            PageAt::Mapped => Ok(FaultOutcome::Spurious),
            PageAt::NoTable => match self.map_new(gpa.page_base(), flags, PageSize::Size4K)? {
                Some(true) => Ok(FaultOutcome::Populated),
                Some(false) => Ok(FaultOutcome::Spurious),
                None => Err(AxError::NoMemory),
            },
        }
    }

    /// Maps one new, zeroed leaf: true, or false when something is mapped there; none when there
    /// is no frame of that size.
    #[cold]
    fn map_new(
        &mut self,
        gpa: GuestPhysAddr,
        flags: MappingFlags,
        size: PageSize,
    ) -> AxResult<Option<bool>> {
        let Some(hpa) = take_zeroed::<H::PagingHandler>(size) else { return Ok(None) };
        // Mostly all tables are there already.
        let mapped = self
            .npt
            .map_page(gpa, hpa, flags, size, &mut TableReserve::empty())
            .or_else(|_| self.map_with_tables(gpa, hpa, flags, size));
        if mapped != Ok(true) {
            give_back::<H::PagingHandler>(hpa, size);
        }
        Ok(Some(mapped?))
    }

    #[cold]
    fn map_with_tables(
        &mut self,
        gpa: GuestPhysAddr,
        hpa: HostPhysAddr,
        flags: MappingFlags,
        size: PageSize,
    ) -> Result<bool, OutOfFrames> {
        let range = GpaRange::new(gpa, size as usize).ok_or(OutOfFrames)?;
        let needed = self.npt.tables_to_map(range, hpa, size);
        self.npt.map_page(gpa, hpa, flags, size, &mut TableReserve::new(needed)?)
    }
}

/// The naturally aligned range of that size that holds `gpa`.
fn aligned(gpa: GuestPhysAddr, size: PageSize) -> Option<GpaRange> {
    let start = gpa.as_usize() & !(size as usize - 1);
    GpaRange::new(start.into(), size as usize)
}
