//! Unmapping: cuts whole subtrees out by one write, and leaves no empty table behind.

#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::marker::PhantomData;

use super::{
    NestedPageTable, NptFormat, PageSize, Removed, leaf_size,
    table::{Slot, Table},
};
use crate::mm::{GpaRange, HostPhysAddr, PagingHandler};

/// Whether [`NestedPageTable::unmap`] reports single leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Somebody frees the pages.
    Report,
    /// The pages are not the caller's to free.
    Ignore,
}

impl<F: NptFormat, P: PagingHandler> NestedPageTable<F, P> {
    /// An upper bound of the items that [`unmap`](Self::unmap) of the range adds to its vector.
    pub fn count_removed(&self, range: GpaRange) -> usize {
        let (start, end) = self.bounds(range);
        count_in::<F, P>(self.root_table(), start, end)
    }

    /// Unmaps `range`, whose ends have been [split](Self::split_at); what is not mapped is
    /// skipped, and a leaf that still straddles an end is left.
    ///
    /// Nothing is freed: detached tables and, with [`Leaves::Report`], single leaves are pushed to
    /// `removed`, at most [`count_removed`](Self::count_removed) items; the pages below a detached
    /// table come to light when it is [released](super::release). The caller flushes the TLB
    /// first.
    pub fn unmap(&mut self, range: GpaRange, removed: &mut Vec<Removed>, leaves: Leaves) {
        let (start, end) = self.bounds(range);
        let mut cut = Cut::<F> { removed, leaves, tables: 0, format: PhantomData };
        cut.unmap_in(self.root_table(), start, end);
        self.frames -= cut.tables;
        F::publish();
    }

    /// Calls `f` with the address and size of every page that is mapped in `range`.
    pub fn for_each_leaf(&self, range: GpaRange, f: &mut impl FnMut(HostPhysAddr, PageSize)) {
        let (start, end) = self.bounds(range);
        visit_leaves::<F, P>(self.root_table(), start, end, f);
    }
}

fn count_in<F: NptFormat, P: PagingHandler>(
    table: Table<'_, P>,
    start: usize,
    end: usize,
) -> usize {
    table
        .pieces(start, end)
        .map(|piece| match table.slot::<F>(piece.index) {
            Slot::Absent => 0,
            Slot::Table(child) if !piece.whole => {
                1 + count_in::<F, P>(child, piece.start, piece.end)
            }
            Slot::Table(_) | Slot::Leaf { .. } => 1,
        })
        .sum()
}

fn visit_leaves<F: NptFormat, P: PagingHandler>(
    table: Table<'_, P>,
    start: usize,
    end: usize,
    f: &mut impl FnMut(HostPhysAddr, PageSize),
) {
    for piece in table.pieces(start, end) {
        match (table.slot::<F>(piece.index), leaf_size(table.level())) {
            (Slot::Table(child), _) => visit_leaves::<F, P>(child, piece.start, piece.end, f),
            (Slot::Leaf { pa, .. }, Some(size)) => f(pa, size),
            _ => {}
        }
    }
}

struct Cut<'v, F> {
    removed: &'v mut Vec<Removed>,
    leaves: Leaves,
    /// The tables detached so far.
    tables: usize,
    format: PhantomData<F>,
}

impl<F: NptFormat> Cut<'_, F> {
    /// Unmaps below `table`; returns whether the table is empty now and was not before.
    fn unmap_in<P: PagingHandler>(
        &mut self,
        table: Table<'_, P>,
        start: usize,
        end: usize,
    ) -> bool {
        let mut changed = false;
        for piece in table.pieces(start, end) {
            match table.slot::<F>(piece.index) {
                Slot::Absent => continue,
                Slot::Table(child) => {
                    if !piece.whole && !self.unmap_in(child, piece.start, piece.end) {
                        continue;
                    }
                    table.set(piece.index, 0);
                    self.push_table(child);
                }
                Slot::Leaf { pa, .. } => {
                    debug_assert!(piece.whole, "a leaf straddles {start:#x}..{end:#x}");
                    let (true, Some(size)) = (piece.whole, leaf_size(table.level())) else {
                        continue;
                    };
                    table.set(piece.index, 0);
                    if self.leaves == Leaves::Report {
                        self.removed.push(Removed::Leaf { hpa: pa, size });
                    }
                }
            }
            changed = true;
        }
        changed && table.is_empty_around(table.index(start), table.index(end - 1))
    }

    fn push_table<P: PagingHandler>(&mut self, table: Table<'_, P>) {
        let tables = count_tables::<F, P>(table);
        self.tables += tables;
        self.removed.push(Removed::Table { hpa: table.hpa(), level: table.level(), tables });
    }
}

/// The tables of a subtree.
fn count_tables<F: NptFormat, P: PagingHandler>(table: Table<'_, P>) -> usize {
    if table.level() == 0 {
        return 1;
    }
    let below = (0..table.len()).map(|index| match table.slot::<F>(index) {
        Slot::Table(child) => count_tables::<F, P>(child),
        Slot::Absent | Slot::Leaf { .. } => 0,
    });
    1 + below.sum::<usize>()
}
