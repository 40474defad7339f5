//! Splitting leaves and changing their permissions, without losing what hardware writes.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::{
    MappingFlags, NestedPageTable, NptFormat, PERMISSIONS, TableReserve, leaf_size, span,
    table::{ENTRIES, Slot, Table},
};
use crate::mm::{GpaRange, GuestPhysAddr, HostPhysAddr, PagingHandler};

/// A leaf that is to be split.
struct Straddling<'a, P> {
    table: Table<'a, P>,
    index: usize,
    /// Tables needed until the address is a boundary: 1 or 2.
    tables: usize,
}

impl<F: NptFormat, P: PagingHandler> NestedPageTable<F, P> {
    /// The number of tables, 0 to 2, that [`split_at`](Self::split_at) takes from its reserve.
    /// For the two ends of a range, the sum is enough for both.
    pub fn tables_to_split(&self, at: GuestPhysAddr) -> usize {
        self.straddling(at.as_usize()).map_or(0, |leaf| leaf.tables)
    }

    /// Splits the leaf that `at`, a multiple of 4 KiB, lies within, so that `at` is a boundary
    /// between leaves. Every translation, permission, memory type, accessed and dirty bit stays.
    ///
    /// `flush` is called once with the range of the split leaf, and returns when no CPU has it in
    /// its TLB any more. In formats with [break-before-make](NptFormat::BREAK_BEFORE_MAKE) the
    /// range is absent meanwhile: a guest on another CPU may fault there, spuriously. Otherwise
    /// the new table is in place by then.
    pub fn split_at(
        &mut self,
        at: GuestPhysAddr,
        reserve: &mut TableReserve<P>,
        flush: &mut impl FnMut(GpaRange),
    ) {
        let at = at.as_usize();
        let Some(Straddling { table, index, tables }) = self.straddling(at) else { return };
        debug_assert!(reserve.len() >= tables, "the reserve is smaller than the tables needed");
        if reserve.len() < tables {
            return;
        }
        // `straddling` found a leaf above level 0, and two tables are needed above level 1 only.
        let Some(child) = reserve.take_table(table.level() - 1) else { return };
        let grandchild = if tables == 2 { reserve.take_table(table.level() - 2) } else { None };
        let fill = |raw| {
            fill_from_leaf::<F, P>(child, table.level(), raw);
            if let Some(grandchild) = grandchild {
                let slot = child.entry(child.index(at));
                fill_from_leaf::<F, P>(grandchild, child.level(), slot.load(Ordering::Relaxed));
                slot.store(F::table(grandchild.hpa()), Ordering::Relaxed);
            }
            F::publish();
        };
        let start = GuestPhysAddr::from_usize(at & !(span(table.level()) - 1));
        let mut flush_leaf = || {
            F::publish();
            if let Some(range) = GpaRange::new(start, span(table.level())) {
                flush(range);
            }
        };

        let entry = table.entry(index);
        let mut raw = entry.load(Ordering::Acquire);
        fill(raw);
        if F::BREAK_BEFORE_MAKE {
            let last = entry.swap(0, Ordering::AcqRel);
            flush_leaf();
            if last != raw {
                fill(last);
            }
            entry.store(F::table(child.hpa()), Ordering::Release);
            F::publish();
        } else {
            // Hardware may set accessed and dirty bits until the table is in place.
            while let Err(now) = entry.compare_exchange(
                raw,
                F::table(child.hpa()),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                raw = now;
                fill(raw);
            }
            flush_leaf();
        }
        self.frames += tables;
    }

    /// Changes the permissions of everything that is mapped in `range`, whose ends have been
    /// [split](Self::split_at); holes stay holes. Address, memory type, accessed and dirty bits
    /// stay: of `flags` only READ, WRITE and EXECUTE count, and the format must
    /// [support](NptFormat::supports) them.
    pub fn protect(&mut self, range: GpaRange, flags: MappingFlags) {
        debug_assert!(F::supports(flags), "{} has no {flags:?}", F::NAME);
        if !F::supports(flags) {
            return;
        }
        let (start, end) = self.bounds(range);
        protect_in::<F, P>(self.root_table(), start, end, flags & PERMISSIONS);
        F::publish();
    }

    fn straddling(&self, at: usize) -> Option<Straddling<'_, P>> {
        if at >> self.geometry().input_bits() != 0 {
            return None;
        }
        let mut table = self.root_table();
        loop {
            let index = table.index(at);
            match table.slot::<F>(index) {
                Slot::Table(child) => table = child,
                Slot::Leaf { .. } => {
                    // At a level 2 leaf, an address off the 2 MiB boundaries needs two tables.
                    let tables =
                        (1..=table.level()).filter(|&level| at & (span(level) - 1) != 0).count();
                    return (tables > 0).then_some(Straddling { table, index, tables });
                }
                Slot::Absent => return None,
            }
        }
    }
}

/// Fills a table with what the leaf `raw` of `level` maps.
fn fill_from_leaf<F: NptFormat, P: PagingHandler>(table: Table<'_, P>, level: usize, raw: u64) {
    let (super::Entry::Leaf { pa, flags }, Some(size)) =
        (F::decode(raw, level), leaf_size(table.level()))
    else {
        debug_assert!(false, "{raw:#x} is no leaf");
        return;
    };
    let marks = raw & F::ACCESSED_DIRTY;
    debug_assert_eq!(table.len(), ENTRIES);
    let mut hpa = pa.as_usize();
    for entry in table.entries() {
        let leaf = F::leaf(HostPhysAddr::from_usize(hpa), flags, size) | marks;
        entry.store(leaf, Ordering::Relaxed);
        hpa = hpa.wrapping_add(span(table.level()));
    }
}

fn protect_in<F: NptFormat, P: PagingHandler>(
    table: Table<'_, P>,
    start: usize,
    end: usize,
    permissions: MappingFlags,
) {
    for piece in table.pieces(start, end) {
        match table.slot::<F>(piece.index) {
            Slot::Absent => {}
            Slot::Table(child) => {
                protect_in::<F, P>(child, piece.start, piece.end, permissions);
            }
            Slot::Leaf { raw, pa, flags } => {
                debug_assert!(piece.whole, "a leaf straddles {start:#x}..{end:#x}");
                let (true, Some(size)) = (piece.whole, leaf_size(table.level())) else { continue };
                let new = F::leaf(pa, (flags - PERMISSIONS) | permissions, size);
                let entry = table.entry(piece.index);
                let mut seen = raw;
                while let Err(now) = entry.compare_exchange_weak(
                    seen,
                    new | (seen & F::ACCESSED_DIRTY),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    seen = now;
                }
            }
        }
    }
}
