//! The guest-physical address space of one VM.

use alloc::vec::Vec;

use axerrno::{AxResult, ax_err};
use memory_addr::{PAGE_SIZE_2M, PAGE_SIZE_4K};
use page_table_multiarch::{MappingFlags, PageSize};

use super::{
    ADDRESS_LIMIT, GpaRange, GuestPhysAddr, HostPhysAddr,
    frames::SplitChunks,
    npt::{Geometry, NestedPageTable, NptFormat, NptView, TableReserve},
    quarantine::{Quarantined, Taken},
    region::{Origin, Regions},
    source::Source,
    tlb::{GuestTlb, NestedTlb, Ticket},
};
use crate::{
    hal::AxVMHal,
    sync::{
        Epoch, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The guest-physical address space of one VM: regions, the nested page table, and what keeps
/// TLBs honest. All methods take `&self`; writers are serialized, readers of mapped memory take
/// no lock.
///
/// An operation that fails changes nothing. When `unmap` or `protect` returns, every vCPU that
/// enters the guest sees the change; one that is in the guest on another CPU sees it after the
/// kick that was sent ([`is_settled`](Self::is_settled) tells).
pub struct AddrSpace<H: AxVMHal, F: NptFormat, T: NestedTlb> {
    range: GpaRange,
    pub(super) view: NptView<F, H::PagingHandler>,
    /// Software that walks the table without the lock.
    pub(super) walkers: Epoch,
    pub(crate) tlb: GuestTlb<T>,
    /// How much waits in quarantine, for a look without the lock.
    pub(super) quarantined: AtomicUsize,
    inner: Mutex<Inner<H, F>>,
}

/// What the lock protects.
pub(super) struct Inner<H: AxVMHal, F: NptFormat> {
    pub(super) npt: NestedPageTable<F, H::PagingHandler>,
    pub(super) regions: Regions,
    pub(super) max_leaf: PageSize,
    pub(super) chunks: SplitChunks,
    /// Host memory taken through the HAL; an index stays valid while the region lives.
    pub(super) taken: Vec<Option<Taken>>,
    pub(super) quarantine: Vec<Quarantined>,
}

impl<H: AxVMHal, F: NptFormat, T: NestedTlb> AddrSpace<H, F, T> {
    /// Break-before-make waits until no CPU uses the old entry, which only a broadcast achieves
    /// at once.
    const FORMAT_FITS_TLB: () = assert!(!F::BREAK_BEFORE_MAKE || T::BROADCAST);

    /// An address space of `size` bytes from `base` in which nothing is mapped, for `vcpus`
    /// vCPUs; leaves are at most `max_leaf`.
    ///
    /// # Errors
    /// `InvalidInput` when the range is not of whole 4 KiB pages, or reaches beyond what the
    /// geometry or [`ADDRESS_LIMIT`] allow; `NoMemory` for the root table.
    pub fn new_empty(
        geometry: Geometry,
        max_leaf: PageSize,
        base: GuestPhysAddr,
        size: usize,
        vcpus: usize,
    ) -> AxResult<Self> {
        let () = Self::FORMAT_FITS_TLB;
        let limit = (1usize << geometry.input_bits().min(47)).min(ADDRESS_LIMIT);
        let range = page_range(base, size)?;
        if range.end().as_usize() > limit {
            return ax_err!(InvalidInput, format_args!("{range:?} ends beyond {limit:#x}"));
        }
        let npt = NestedPageTable::new(geometry)?;
        Ok(Self {
            range,
            view: npt.view(),
            walkers: Epoch::new(),
            tlb: GuestTlb::new(npt.root(), vcpus),
            quarantined: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                npt,
                regions: Regions::default(),
                max_leaf,
                chunks: SplitChunks::default(),
                taken: Vec::new(),
                quarantine: Vec::new(),
            }),
        })
    }

    /// The lock, waited for with [`AxVMHal::relax`]: whoever holds it may be waiting for a vCPU,
    /// and a host with cooperative threads must be able to run both.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner<H, F>> {
        loop {
            match self.inner.try_lock() {
                Some(guard) => return guard,
                None => H::relax(),
            }
        }
    }

    /// All addresses.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// The root of the nested page table.
    pub fn page_table_root(&self) -> HostPhysAddr {
        self.lock().npt.root()
    }

    /// The number of 4 KiB frames that the page table itself occupies, the root included.
    pub fn table_frames(&self) -> usize {
        self.lock().npt.table_frames()
    }

    /// Maps `size` bytes at `gpa` to the host memory at `hpa`, which stays the host's.
    ///
    /// # Errors
    /// `InvalidInput` unless all three are multiples of 4 KiB, the ranges lie in the address
    /// spaces and the format can express `flags`; `AlreadyExists` when a region is there;
    /// `NoMemory`.
    pub fn map_linear(
        &self,
        gpa: GuestPhysAddr,
        hpa: HostPhysAddr,
        size: usize,
        flags: MappingFlags,
    ) -> AxResult {
        self.add(gpa, size, flags, Source::Linear(hpa), Origin::Host)
    }

    /// Gives the guest `size` bytes of zeroed memory at `gpa`: at once with `populate`,
    /// otherwise each page at its first use.
    ///
    /// # Errors
    /// As [`map_linear`](Self::map_linear).
    pub fn map_alloc(
        &self,
        gpa: GuestPhysAddr,
        size: usize,
        flags: MappingFlags,
        populate: bool,
    ) -> AxResult {
        let source = if populate { Source::Eager } else { Source::Lazy(PageSize::Size4K) };
        self.add(gpa, size, flags, source, Origin::Host)
    }

    pub(crate) fn add(
        &self,
        gpa: GuestPhysAddr,
        size: usize,
        flags: MappingFlags,
        source: Source,
        origin: Origin,
    ) -> AxResult {
        let range = self.pages(gpa, size)?;
        if !F::supports(flags) {
            return ax_err!(InvalidInput, format_args!("{} cannot map {flags:?}", F::NAME));
        }
        self.lock().add(range, flags, source, origin)
    }

    /// Removes `size` bytes at `gpa`, and frees the memory behind if it is the address space's.
    ///
    /// # Errors
    /// `InvalidInput` unless both are multiples of 4 KiB and every byte is in a region;
    /// `NoMemory` when a large leaf must be split.
    pub fn unmap(&self, gpa: GuestPhysAddr, size: usize) -> AxResult {
        let range = self.pages(gpa, size)?;
        let mut inner = self.lock();
        self.remove(&mut inner, range)
    }

    /// Changes the permissions of `size` bytes at `gpa`; of `flags` only READ, WRITE and EXECUTE
    /// count, the memory type stays.
    ///
    /// # Errors
    /// As [`unmap`](Self::unmap); `InvalidInput` also for flags that the format cannot express.
    pub fn protect(&self, gpa: GuestPhysAddr, size: usize, flags: MappingFlags) -> AxResult {
        let range = self.pages(gpa, size)?;
        if !F::supports(flags) {
            return ax_err!(InvalidInput, format_args!("{} cannot map {flags:?}", F::NAME));
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        self.cut_out(inner, range)?;
        inner.npt.protect(range, flags);
        inner.regions.protect(range, flags);
        self.settle(inner, range);
        Ok(())
    }

    /// Removes everything.
    ///
    /// # Errors
    /// `NoMemory` for the list of what is to be freed.
    pub fn clear(&self) -> AxResult {
        let mut inner = self.lock();
        while let Some(range) = { inner.regions.iter().next().map(|region| region.range) } {
            self.remove(&mut inner, range)?;
        }
        Ok(())
    }

    /// The host-physical address behind `gpa`, if something is mapped there.
    #[inline(always)]
    pub fn translate(&self, gpa: GuestPhysAddr) -> Option<HostPhysAddr> {
        let _walking = self.walkers.enter(H::current_pcpu_id());
        // SAFETY: tables are freed only after `walkers` was synchronized (`remove`).
        match unsafe { self.view.translate(gpa) } {
            Some(found) => Some(found.hpa),
            None => {
                core::hint::cold_path();
                None
            }
        }
    }

    /// Whether `gpa` lies in a region, mapped already or not.
    pub fn in_region(&self, gpa: GuestPhysAddr) -> bool {
        self.lock().regions.find(gpa).is_some()
    }

    /// Whether `gpa` lies in a region of memory, and not of a device, mapped already or not.
    pub(super) fn is_ram(&self, gpa: GuestPhysAddr) -> bool {
        let guard = self.lock();
        guard.regions.find(gpa).is_some_and(|region| !region.flags.contains(MappingFlags::DEVICE))
    }

    /// Whether `gpa` lies in a region that has these permissions.
    pub(crate) fn allows(&self, gpa: GuestPhysAddr, access: MappingFlags) -> bool {
        self.lock().regions.find(gpa).is_some_and(|region| region.flags.contains(access))
    }

    /// Whether any part of `range` lies in a region.
    pub fn overlaps_region(&self, range: GpaRange) -> bool {
        self.lock().regions.parts(range).next().is_some()
    }

    /// Whether every change so far is seen by every vCPU, so that host memory that was unmapped
    /// may be used for something else.
    pub fn is_settled(&self) -> bool {
        self.reap();
        self.quarantined.load(Ordering::Acquire) == 0 && self.tlb.all_reached()
    }

    /// Frees what no vCPU can reach any more. After leaving a guest, and a full fence, it sees
    /// whatever waited for that.
    #[inline]
    pub(crate) fn reap(&self) {
        if self.quarantined.load(Ordering::Relaxed) != 0 {
            self.reap_locked(&mut self.lock());
        }
    }

    /// After the table changed: has everybody forget what it said of `range`.
    pub(super) fn settle(&self, _changed: &mut Inner<H, F>, range: GpaRange) -> Ticket {
        let ticket = self.tlb.invalidate(range);
        self.walkers.synchronize(H::relax);
        self.tlb.laggards(ticket).for_each(H::kick_pcpu);
        ticket
    }

    fn pages(&self, gpa: GuestPhysAddr, size: usize) -> AxResult<GpaRange> {
        let range = page_range(gpa, size)?;
        if !self.range.contains_range(range) {
            return ax_err!(InvalidInput, format_args!("{range:?} is not in {:?}", self.range));
        }
        Ok(range)
    }

    /// Makes the bounds of `range`, which must be covered by regions, bounds of leaves too, and
    /// makes room for the regions that result. The guest does not see a split.
    pub(super) fn cut_out(&self, inner: &mut Inner<H, F>, range: GpaRange) -> AxResult {
        if !inner.regions.cover(range) {
            return ax_err!(InvalidInput, format_args!("{range:?} is not all mapped"));
        }
        let bounds = [range.start(), range.end()];
        let needed = bounds.iter().map(|&at| inner.npt.tables_to_split(at)).sum();
        inner.regions.reserve(2)?;
        inner.chunks.reserve(2)?;
        let mut tables = TableReserve::new(needed)?;
        for at in bounds {
            self.split(inner, at, &mut tables);
        }
        Ok(())
    }

    fn split(
        &self,
        inner: &mut Inner<H, F>,
        at: GuestPhysAddr,
        tables: &mut TableReserve<H::PagingHandler>,
    ) {
        if !at.as_usize().is_multiple_of(PAGE_SIZE_2M)
            && inner.regions.find(at).is_some_and(|region| region.backing.owns_frames())
            && let Some(leaf) = inner.npt.translate(at)
            && leaf.size == PageSize::Size2M
        {
            inner.chunks.insert(memory_addr::align_down(leaf.hpa.as_usize(), PAGE_SIZE_2M).into());
        }
        inner.npt.split_at(at, tables, &mut |leaf| {
            let ticket = self.tlb.invalidate(leaf);
            // Between break and make no CPU may hold the old entry.
            if F::BREAK_BEFORE_MAKE {
                self.tlb.laggards(ticket).for_each(H::kick_pcpu);
                while !self.tlb.is_reached(ticket) {
                    H::relax();
                }
            }
        });
    }
}

/// A range of whole 4 KiB pages.
fn page_range(gpa: GuestPhysAddr, size: usize) -> AxResult<GpaRange> {
    match GpaRange::new(gpa, size) {
        Some(range) if range.is_aligned(PAGE_SIZE_4K) => Ok(range),
        _ => ax_err!(InvalidInput, format_args!("{gpa:?}+{size:#x} is not of whole pages")),
    }
}
