//! Mapping: the largest leaves that fit, one write each.

#![forbid(unsafe_code)]

use core::{
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    MappingFlags, NestedPageTable, NptFormat, OutOfFrames, PageSize, TableReserve, leaf_size, span,
    table::{Slot, Table},
};
use crate::mm::{GpaRange, GuestPhysAddr, HostPhysAddr, PAGE_SIZE_4K, PagingHandler};

impl<F: NptFormat, P: PagingHandler> NestedPageTable<F, P> {
    /// The number of tables that [`map`](Self::map) (or, for one page, [`map_page`](Self::map_page))
    /// with the same arguments takes from its reserve.
    pub fn tables_to_map(&self, range: GpaRange, hpa: HostPhysAddr, max: PageSize) -> usize {
        let (start, end) = self.bounds(range);
        let leaf_level = self.leaf_level(start, hpa, max);
        missing_tables::<F, P>(self.root_table(), start, end, leaf_level)
    }

    /// Maps `range` to the pages from `hpa` on, in leaves as large as alignment allows and `max`
    /// permits.
    ///
    /// The caller has checked that nothing is mapped in `range` (an entry that is present is left
    /// alone), that bounds and `hpa` are multiples of 4 KiB, that the host range stays below
    /// 2^[`PA_BITS`](NptFormat::PA_BITS), that the format [supports](NptFormat::supports) the
    /// flags, and that `reserve` holds [`tables_to_map`](Self::tables_to_map) frames.
    ///
    /// A CPU may have cached that nothing was mapped (RISC-V allows it): a guest there may fault
    /// once more.
    pub fn map(
        &mut self,
        range: GpaRange,
        hpa: HostPhysAddr,
        flags: MappingFlags,
        max: PageSize,
        reserve: &mut TableReserve<P>,
    ) {
        if !is_mappable::<F>(hpa, range.size(), flags) {
            return;
        }
        let (start, end) = self.bounds(range);
        let mut mapping = Mapping::<F, P> {
            // Added modulo 2^64, so it may be "negative".
            offset: hpa.as_usize().wrapping_sub(start),
            flags,
            leaf_level: self.leaf_level(start, hpa, max),
            reserve,
            added: 0,
            format: PhantomData,
        };
        mapping.fill(self.root_table(), start, end);
        self.frames += mapping.added;
        F::publish();
    }

    /// Whether nothing is mapped in the naturally aligned page of `size` that holds `gpa`.
    pub fn is_vacant(&self, gpa: GuestPhysAddr, size: PageSize) -> bool {
        let mut table = self.root_table();
        while let Slot::Table(child) = table.slot::<F>(table.index(gpa.as_usize())) {
            if table.level() <= super::level_within(size) {
                return false;
            }
            table = child;
        }
        matches!(table.slot::<F>(table.index(gpa.as_usize())), Slot::Absent)
    }

    /// What is in the 4 KiB page that holds `gpa`.
    #[inline(always)]
    pub fn page_at(&mut self, gpa: GuestPhysAddr) -> PageAt<'_, F> {
        let gpa = gpa.as_usize();
        // The walk unrolled, as in `walk`.
        if let Some(root) = self.root_at::<3>(gpa) {
            page_in::<F, P, 3>(root, gpa)
        } else if let Some(root) = self.root_at::<2>(gpa) {
            page_in::<F, P, 2>(root, gpa)
        } else {
            PageAt::NoTable
        }
    }

    /// Maps one page of `size`, 4 KiB or 2 MiB (or 1 GiB), unless something is mapped there:
    /// then it returns false. `gpa` and `hpa` are multiples of `size`.
    ///
    /// # Errors
    /// When `reserve` holds fewer frames than tables are missing on the way; nothing has changed
    /// then. An empty reserve suffices where a neighbour is mapped already.
    pub fn map_page(
        &mut self,
        gpa: GuestPhysAddr,
        hpa: HostPhysAddr,
        flags: MappingFlags,
        size: PageSize,
        reserve: &mut TableReserve<P>,
    ) -> Result<bool, OutOfFrames> {
        let leaf_level = super::level_within(size);
        let aligned = (gpa.as_usize() | hpa.as_usize()) & (span(leaf_level) - 1) == 0;
        let inside = gpa.as_usize() >> self.geometry().input_bits() == 0;
        debug_assert!(aligned && inside, "{gpa:?} -> {hpa:?} cannot be mapped by {size:?}");
        if !aligned || !inside || !is_mappable::<F>(hpa, span(leaf_level), flags) {
            return Ok(false);
        }
        let gpa = gpa.as_usize();
        let mut table = self.root_table();
        while table.level() > leaf_level {
            match table.slot::<F>(table.index(gpa)) {
                Slot::Table(child) => table = child,
                Slot::Leaf { .. } => return Ok(false),
                Slot::Absent => break,
            }
        }
        if table.entry(table.index(gpa)).load(Ordering::Relaxed) != 0 {
            return Ok(false);
        }
        let missing = table.level() - leaf_level;
        if reserve.len() < missing {
            return Err(OutOfFrames);
        }
        // From the leaf up; the last write makes it all appear.
        let mut entry = F::leaf(hpa, flags, size_at(leaf_level));
        for level in leaf_level..table.level() {
            let child = reserve.take_table(level).ok_or(OutOfFrames)?;
            child.set(child.index(gpa), entry);
            entry = F::table(child.hpa());
        }
        F::publish();
        table.set(table.index(gpa), entry);
        self.frames += missing;
        F::publish();
        Ok(true)
    }
}

/// The outcome of [`NestedPageTable::page_at`].
pub enum PageAt<'a, F> {
    /// A leaf maps it.
    Mapped,
    /// Nothing, and its entry is at hand.
    Vacant(VacantPage<'a, F>),
    /// Nothing, and not even a table has an entry for it.
    NoTable,
}

/// The absent entry of a 4 KiB page. It borrows the page table exclusively, so absent it stays.
pub struct VacantPage<'a, F>(&'a AtomicU64, PhantomData<F>);

impl<F: NptFormat> VacantPage<'_, F> {
    /// Maps the page; false, and nothing is changed, when the format cannot express it.
    #[inline(always)]
    pub fn map(self, hpa: HostPhysAddr, flags: MappingFlags) -> bool {
        let mappable = is_mappable::<F>(hpa, PAGE_SIZE_4K, flags);
        if mappable {
            F::publish();
            self.0.store(F::leaf(hpa, flags, PageSize::Size4K), Ordering::Release);
            F::publish();
        }
        mappable
    }
}

/// [`NestedPageTable::page_at`] below a root of level `ROOT`, 2 or 3.
#[inline(always)]
fn page_in<F: NptFormat, P: PagingHandler, const ROOT: usize>(
    root: Table<'_, P>,
    gpa: usize,
) -> PageAt<'_, F> {
    let mut table = root;
    for _ in 0..ROOT {
        match table.slot::<F>(table.index(gpa)) {
            Slot::Table(child) => table = child,
            Slot::Leaf { .. } => return PageAt::Mapped,
            Slot::Absent => return PageAt::NoTable,
        }
    }
    let entry = table.entry(table.index(gpa));
    if entry.load(Ordering::Relaxed) == 0 {
        PageAt::Vacant(VacantPage(entry, PhantomData))
    } else {
        PageAt::Mapped
    }
}

/// The size of the leaves of `level`, which is 2 at most.
fn size_at(level: usize) -> PageSize {
    leaf_size(level).unwrap_or(PageSize::Size4K)
}

/// Whether an entry can hold it all.
fn is_mappable<F: NptFormat>(hpa: HostPhysAddr, size: usize, flags: MappingFlags) -> bool {
    // The last page begins, like the first, at a multiple of 4 KiB below the limit.
    let last = hpa.as_usize().checked_add((size - 1) & !(PAGE_SIZE_4K - 1));
    let wrong = !((1 << F::PA_BITS) - 1) | (PAGE_SIZE_4K - 1);
    let ok = last.is_some_and(|last| last & wrong == 0) && F::supports(flags);
    debug_assert!(ok, "{} cannot map to {hpa:?}+{size:#x} as {flags:?}", F::NAME);
    ok
}

/// The tables that mapping `start .. end` adds below `table`.
fn missing_tables<F: NptFormat, P: PagingHandler>(
    table: Table<'_, P>,
    start: usize,
    end: usize,
    leaf_level: usize,
) -> usize {
    if table.level() == 0 {
        return 0;
    }
    table
        .pieces(start, end)
        .map(|piece| match table.slot::<F>(piece.index) {
            Slot::Table(child) => missing_tables::<F, P>(child, piece.start, piece.end, leaf_level),
            Slot::Absent => tables_below(table.level(), piece.start, piece.end, leaf_level),
            Slot::Leaf { .. } => 0,
        })
        .sum()
}

/// The tables that an absent entry of `level` needs to map `start .. end`: at each level one for
/// every entry that the range touches, less those that become leaves.
fn tables_below(level: usize, start: usize, end: usize, leaf_level: usize) -> usize {
    (1..=level)
        .map(|level| {
            let touched = end.div_ceil(span(level)) - start / span(level);
            let whole = (end / span(level)).saturating_sub(start.div_ceil(span(level)));
            if level <= leaf_level { touched - whole } else { touched }
        })
        .sum()
}

struct Mapping<'r, F, P: PagingHandler> {
    /// Host address minus guest address.
    offset: usize,
    flags: MappingFlags,
    leaf_level: usize,
    reserve: &'r mut TableReserve<P>,
    added: usize,
    format: PhantomData<F>,
}

impl<F: NptFormat, P: PagingHandler> Mapping<'_, F, P> {
    fn fill(&mut self, table: Table<'_, P>, start: usize, end: usize) {
        if table.level() == 0 {
            return self.fill_last(table, start, end);
        }
        for piece in table.pieces(start, end) {
            match table.slot::<F>(piece.index) {
                Slot::Table(child) => self.fill(child, piece.start, piece.end),
                Slot::Leaf { .. } => debug_assert!(false, "{:#x} is mapped", piece.start),
                Slot::Absent if piece.whole && table.level() <= self.leaf_level => {
                    let hpa = HostPhysAddr::from_usize(piece.start.wrapping_add(self.offset));
                    table.set(piece.index, F::leaf(hpa, self.flags, size_at(table.level())));
                }
                Slot::Absent => {
                    let Some(child) = self.reserve.take_table(table.level() - 1) else { return };
                    self.fill(child, piece.start, piece.end);
                    F::publish();
                    table.set(piece.index, F::table(child.hpa()));
                    self.added += 1;
                }
            }
        }
    }

    /// Writes 4 KiB leaves: the loop that most time goes to.
    fn fill_last(&self, table: Table<'_, P>, start: usize, end: usize) {
        let mut hpa = start.wrapping_add(self.offset);
        // `start .. end` is not empty and lies within the table.
        let (first, last) = (table.index(start), table.index(end - 1));
        for entry in table.entries().get(first..=last).unwrap_or_default() {
            if entry.load(Ordering::Relaxed) == 0 {
                let leaf = F::leaf(HostPhysAddr::from_usize(hpa), self.flags, PageSize::Size4K);
                entry.store(leaf, Ordering::Release);
            } else {
                debug_assert!(false, "the page that leads to {hpa:#x} is mapped");
            }
            hpa = hpa.wrapping_add(PAGE_SIZE_4K);
        }
    }
}
