//! The guest-physical address space of one VM.

use alloc::vec::Vec;

use axerrno::{AxError, AxResult, ax_err};
use memory_addr::{PAGE_SIZE_2M, PAGE_SIZE_4K};
use page_table_multiarch::{MappingFlags, PageSize};

use super::{
    ADDRESS_LIMIT, GpaRange, GuestPhysAddr, HostPhysAddr,
    frames::{FrameReserve, SplitChunks, give_back, zero},
    npt::{
        Geometry, Leaves, NestedPageTable, NptFormat, NptView, Removed, TableReserve, release,
        release_tables,
    },
    region::{Backing, Origin, Region, Regions},
    tlb::{GuestTlb, NestedTlb, Ticket},
};
use crate::{
    hal::AxVMHal,
    sync::{
        Epoch, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

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
    quarantined: AtomicUsize,
    pub(super) inner: Mutex<Inner<H, F>>,
}

/// What the lock protects.
pub(super) struct Inner<H: AxVMHal, F: NptFormat> {
    pub(super) npt: NestedPageTable<F, H::PagingHandler>,
    pub(super) regions: Regions,
    max_leaf: PageSize,
    chunks: SplitChunks,
    /// Host memory taken through the HAL; an index stays valid while the region lives.
    taken: Vec<Option<Taken>>,
    quarantine: Vec<Quarantined>,
}

/// Host memory taken by `alloc_memory_region_at`, given back whole after its last page is gone.
struct Taken {
    base: HostPhysAddr,
    size: usize,
    mapped: usize,
}

/// What may be freed when `ticket` is reached.
struct Quarantined {
    ticket: Ticket,
    garbage: Garbage,
}

enum Garbage {
    /// Part of the page table; with the frames behind its leaves, if they are owned.
    Table { removed: Removed, owned: bool },
    /// So many bytes of `taken[index]`.
    Taken { index: usize, bytes: usize },
}

/// The number of slots in which readers of guest memory count themselves: more make CPUs share
/// fewer cache lines.
const WALKER_SLOTS: usize = 16;

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
            walkers: Epoch::new(WALKER_SLOTS),
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

    /// All addresses.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// The root of the nested page table.
    pub fn page_table_root(&self) -> HostPhysAddr {
        self.inner.lock().npt.root()
    }

    /// The number of 4 KiB frames that the page table itself occupies, the root included.
    pub fn table_frames(&self) -> usize {
        self.inner.lock().npt.table_frames()
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
        self.inner.lock().add(range, flags, source, origin)
    }

    /// Removes `size` bytes at `gpa`, and frees the memory behind if it is the address space's.
    ///
    /// # Errors
    /// `InvalidInput` unless both are multiples of 4 KiB and every byte is in a region;
    /// `NoMemory` when a large leaf must be split.
    pub fn unmap(&self, gpa: GuestPhysAddr, size: usize) -> AxResult {
        let range = self.pages(gpa, size)?;
        let mut inner = self.inner.lock();
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
        let mut guard = self.inner.lock();
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
        let mut inner = self.inner.lock();
        while let Some(range) = { inner.regions.iter().next().map(|region| region.range) } {
            self.remove(&mut inner, range)?;
        }
        Ok(())
    }

    /// The host-physical address behind `gpa`, if something is mapped there.
    pub fn translate(&self, gpa: GuestPhysAddr) -> Option<HostPhysAddr> {
        let _walking = self.walkers.enter(H::current_pcpu_id());
        // SAFETY: tables are freed only after `walkers` was synchronized (`remove`).
        unsafe { self.view.translate(gpa) }.map(|found| found.hpa)
    }

    /// Whether `gpa` lies in a region, mapped already or not.
    pub fn in_region(&self, gpa: GuestPhysAddr) -> bool {
        self.inner.lock().regions.find(gpa).is_some()
    }

    /// Whether any part of `range` lies in a region.
    pub fn overlaps_region(&self, range: GpaRange) -> bool {
        self.inner.lock().regions.parts(range).next().is_some()
    }

    /// Whether every change so far is seen by every vCPU, so that host memory that was unmapped
    /// may be used for something else.
    pub fn is_settled(&self) -> bool {
        self.reap();
        self.quarantined.load(Ordering::Acquire) == 0 && self.tlb.all_reached()
    }

    /// Frees what no vCPU can reach any more.
    #[inline]
    pub(crate) fn reap(&self) {
        if self.quarantined.load(Ordering::Relaxed) != 0 {
            self.reap_locked(&mut self.inner.lock());
        }
    }

    fn pages(&self, gpa: GuestPhysAddr, size: usize) -> AxResult<GpaRange> {
        let range = page_range(gpa, size)?;
        if !self.range.contains_range(range) {
            return ax_err!(InvalidInput, format_args!("{range:?} is not in {:?}", self.range));
        }
        Ok(range)
    }

    /// Makes the bounds of `range`, which must be covered by regions, bounds of leaves too, and
    /// makes room for the regions that result.
    ///
    /// What it does to leaves is invisible to the guest.
    fn cut_out(&self, inner: &mut Inner<H, F>, range: GpaRange) -> AxResult {
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
            while F::BREAK_BEFORE_MAKE && !self.tlb.is_reached(ticket) {
                self.tlb.laggards(ticket).for_each(H::kick_pcpu);
                H::relax();
            }
        });
    }

    fn remove(&self, inner: &mut Inner<H, F>, range: GpaRange) -> AxResult {
        self.cut_out(inner, range)?;
        let (mut garbage, mut parts) = (0, 0);
        for part in inner.regions.parts(range) {
            garbage += inner.npt.count_removed(part.range);
            parts += 1;
        }
        let mut removed = inner.room_for_garbage(garbage, parts)?;

        // Nothing fails from here on.
        let Inner { npt, regions, quarantine, .. } = inner;
        let first = quarantine.len();
        for part in regions.parts(range) {
            let owned = part.backing.owns_frames();
            let leaves = if owned { Leaves::Report } else { Leaves::Ignore };
            npt.unmap(part.range, &mut removed, leaves);
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
        let ticket = self.settle(inner, range);
        for item in inner.quarantine.iter_mut().skip(first) {
            item.ticket = ticket;
        }
        self.reap_locked(inner);
        Ok(())
    }

    /// Unmaps populated pages of lazy regions in `range`; they read as zero afterwards.
    fn discard(&self, inner: &mut Inner<H, F>, range: GpaRange) -> AxResult {
        let count = inner.npt.count_removed(range);
        let mut removed = inner.room_for_garbage(count, 0)?;
        inner.npt.unmap(range, &mut removed, Leaves::Report);
        let ticket = self.settle(inner, range);
        for removed in removed {
            let garbage = Garbage::Table { removed, owned: true };
            inner.quarantine.push(Quarantined { ticket, garbage });
        }
        self.reap_locked(inner);
        Ok(())
    }

    /// After the table changed: has everybody forget what it said of `range`.
    fn settle(&self, _changed: &mut Inner<H, F>, range: GpaRange) -> Ticket {
        let ticket = self.tlb.invalidate(range);
        self.walkers.synchronize(H::relax);
        self.tlb.laggards(ticket).for_each(H::kick_pcpu);
        ticket
    }

    fn reap_locked(&self, inner: &mut Inner<H, F>) {
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

    /// Makes all as it was after the regions of origin `Config` were added: regions of the host's
    /// are removed, what is missing of the others comes back, permissions are reset and memory is
    /// zeroed (memory that the host set aside excepted). No vCPU may be in the guest.
    ///
    /// # Errors
    /// `NoMemory`; nothing is changed then, unless the host had put a region of its own in the
    /// place of a configured one: that one is lost.
    pub(crate) fn reset(&self, plan: &[(GpaRange, MappingFlags, Source)]) -> AxResult {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        // First what may fail, with a way back.
        let mut restored = Vec::new();
        for &(range, flags, source) in plan {
            if let Err(error) = inner.restore(range, flags, source, &mut restored) {
                for range in restored {
                    self.remove(inner, range)?;
                }
                return Err(error);
            }
        }
        let foreign = |inner: &Inner<H, F>| {
            inner.regions.iter().find(|r| r.origin == Origin::Host).map(|r| r.range)
        };
        while let Some(range) = foreign(inner) {
            self.remove(inner, range)?;
        }
        for &(range, flags, source) in plan {
            inner.restore(range, flags, source, &mut restored)?;
            inner.regions.reserve(2)?;
            inner.npt.protect(range, flags);
            inner.regions.protect(range, flags);
            self.settle(inner, range);
            match source {
                Source::Lazy(_) => self.discard(inner, range)?,
                Source::Eager | Source::Identical => inner.zero_contents(range),
                Source::Linear(_) => {}
            }
        }
        Ok(())
    }
}

impl<H: AxVMHal, F: NptFormat> Inner<H, F> {
    fn add(
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
            // What the hardware has no leaves for comes in 4 KiB pages.
            Source::Lazy(_) if !self.max_leaf.is_huge() => Backing::Lazy(PageSize::Size4K),
            Source::Lazy(size) => Backing::Lazy(size),
        };
        self.regions.insert(Region { range, flags, backing, origin })
    }

    fn map_contiguous(
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

    /// Adds what no region covers of a configured one; what was added is noted in `restored`.
    fn restore(
        &mut self,
        range: GpaRange,
        flags: MappingFlags,
        source: Source,
        restored: &mut Vec<GpaRange>,
    ) -> AxResult {
        while let Some(hole) = { self.regions.holes(range).next() } {
            let offset = hole.start().as_usize() - range.start().as_usize();
            let taken = self.regions.parts(range).find_map(|part| match part.backing {
                Backing::Taken(index) if part.origin == Origin::Config => Some(index),
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

    /// Room in quarantine for so much of the table and so many taken regions, and a list for the
    /// former.
    fn room_for_garbage(&mut self, tables: usize, taken: usize) -> AxResult<Vec<Removed>> {
        let no_memory = |_| AxError::NoMemory;
        self.quarantine.try_reserve(tables + taken).map_err(no_memory)?;
        let mut removed = Vec::new();
        removed.try_reserve(tables).map_err(no_memory)?;
        Ok(removed)
    }

    /// Zeros what is mapped in `range`.
    fn zero_contents(&mut self, range: GpaRange) {
        self.npt.for_each_leaf(range, &mut |hpa, size| {
            // SAFETY: the memory is the address space's, and no vCPU is in the guest; a guest
            // copy at the same time writes through raw pointers and may only lose its data.
            unsafe { zero::<H::PagingHandler>(hpa, size as usize) };
        });
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
        let mut guard = self.inner.lock();
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

/// A range of whole 4 KiB pages.
fn page_range(gpa: GuestPhysAddr, size: usize) -> AxResult<GpaRange> {
    match GpaRange::new(gpa, size) {
        Some(range) if range.is_aligned(PAGE_SIZE_4K) => Ok(range),
        _ => ax_err!(InvalidInput, format_args!("{gpa:?}+{size:#x} is not of whole pages")),
    }
}
