//! The nested page table: three hardware formats and the one walker that serves them all.
//!
//! [`NestedPageTable`] owns the table frames; [`NptView`] lets other threads translate while the
//! owner changes things. Changes reserve first and commit after: a caller asks how many tables
//! an operation needs ([`tables_to_map`](NestedPageTable::tables_to_map),
//! [`tables_to_split`](NestedPageTable::tables_to_split)), takes them into a [`TableReserve`],
//! and then calls the operation, which cannot fail. What an unmap takes out is handed over as
//! [`Removed`], to be [released](release) once no TLB and no walker knows it any more.
//!
//! The formats ([`Ept`], [`Stage2`], [`GStage`]) are pure functions from attributes to bits and
//! back. They compile and are tested on every host; only the barrier behind
//! [`NptFormat::publish`] is an instruction of the target.
//!
//! All unsafe code of the room is in `table`, `barrier` and `release`, and in the two lines that
//! turn a root's address into a table. The invariant it rests on is stated in `table`.

mod barrier;
mod ept;
mod geometry;
mod gstage;
mod map;
mod release;
mod reserve;
mod split;
mod stage2;
mod table;
#[cfg(test)]
mod tests;
mod unmap;
mod walk;

use core::fmt::Debug;

pub use self::{
    ept::Ept,
    geometry::Geometry,
    gstage::GStage,
    release::{Removed, release, release_tables},
    reserve::{OutOfFrames, TableReserve},
    stage2::Stage2,
    unmap::Leaves,
    walk::{NestedPageTable, NptView},
};
use super::HostPhysAddr;
pub use super::{MappingFlags, PageSize};

/// A hardware format of page-table entries.
///
/// Levels count from the leaves: an entry of level 0 maps 4 KiB, of level 1 2 MiB, of level 2
/// 1 GiB, of level 3 512 GiB. All formats have 64-bit entries, 512 in each table below the root,
/// and leaves at levels 0 to 2. An absent entry is 0.
///
/// The trait is sealed: the walker follows, as a pointer, what [`decode`](Self::decode) calls a
/// table.
pub trait NptFormat: sealed::Sealed + Copy + Debug + Send + Sync + 'static {
    /// What the manuals call it.
    const NAME: &'static str;
    /// The architecture demands break-before-make when a leaf is replaced by a table: write an
    /// absent entry, invalidate the TLB, then write the table.
    const BREAK_BEFORE_MAKE: bool;
    /// Physical addresses that an entry can hold have at most this many bits.
    const PA_BITS: u32;
    /// The bits of a leaf that hardware sets by itself; they survive
    /// [`split_at`](NestedPageTable::split_at) and [`protect`](NestedPageTable::protect).
    const ACCESSED_DIRTY: u64;

    /// A leaf of one of the sizes 4 KiB, 2 MiB and 1 GiB that maps to `pa`, a multiple of `size`
    /// below 2^[`PA_BITS`](Self::PA_BITS). [`USER`](MappingFlags::USER) has no meaning in a
    /// nested table and is dropped.
    fn leaf(pa: HostPhysAddr, flags: MappingFlags, size: PageSize) -> u64;

    /// An entry that points to the next table.
    fn table(pa: HostPhysAddr) -> u64;

    /// The opposite of [`leaf`](Self::leaf) and [`table`](Self::table), whatever hardware has
    /// marked as accessed or dirty. It is for entries that these two wrote: of others it makes
    /// something, without panic.
    fn decode(entry: u64, level: usize) -> Entry;

    /// Whether the hardware can express these permissions, and the crate lets them through.
    ///
    /// No permission at all, and write without read, are refused in every format.
    fn supports(flags: MappingFlags) -> bool;

    /// Makes the entries written so far visible to hardware walkers before those written after.
    fn publish();
}

mod sealed {
    pub trait Sealed {}
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry {
    /// Nothing is mapped.
    Absent,
    /// The next table is at this address.
    Table(HostPhysAddr),
    /// A page of the size of the entry's level.
    Leaf {
        /// Where the page begins.
        pa: HostPhysAddr,
        /// Its permissions and memory type, never with [`USER`](MappingFlags::USER).
        flags: MappingFlags,
    },
}

/// Where a guest-physical address leads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Translation {
    /// The host-physical address, offset included.
    pub hpa: HostPhysAddr,
    /// Permissions and memory type.
    pub flags: MappingFlags,
    /// The size of the leaf.
    pub size: PageSize,
}

/// The permissions among the flags.
pub(super) const PERMISSIONS: MappingFlags =
    MappingFlags::READ.union(MappingFlags::WRITE).union(MappingFlags::EXECUTE);

/// What all formats refuse: no permission, and write without read.
const fn is_some_access_and_readable_if_writable(flags: MappingFlags) -> bool {
    flags.intersects(PERMISSIONS)
        && (!flags.contains(MappingFlags::WRITE) || flags.contains(MappingFlags::READ))
}

/// The bytes that one entry of `level` covers.
const fn span(level: usize) -> usize {
    1 << shift(level)
}

/// The lowest bit of an address that selects an entry of `level`.
const fn shift(level: usize) -> usize {
    12 + 9 * level
}

/// The size of a leaf at `level`; none where there are no leaves.
const fn leaf_size(level: usize) -> Option<PageSize> {
    match level {
        0 => Some(PageSize::Size4K),
        1 => Some(PageSize::Size2M),
        2 => Some(PageSize::Size1G),
        _ => None,
    }
}

/// The highest level whose leaves are at most `size`.
const fn level_within(size: PageSize) -> usize {
    match size {
        // No format of ours has 1 MiB leaves (32-bit Arm has).
        PageSize::Size4K | PageSize::Size1M => 0,
        PageSize::Size2M => 1,
        PageSize::Size1G => 2,
    }
}
