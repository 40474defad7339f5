//! The owner of a nested page table, the handle for other threads, and translation.

use core::{fmt, marker::PhantomData};

use super::{
    Geometry, MappingFlags, NptFormat, OutOfFrames, PageSize, Translation, leaf_size, release,
    span,
    table::{self, Slot, Table},
};
use crate::mm::{GpaRange, GuestPhysAddr, HostPhysAddr, PAGE_SIZE_4K, PagingHandler};

/// Translates while the owner changes the table.
pub struct NptView<F, P> {
    root: HostPhysAddr,
    /// The end of the input range of a table of 4 levels, and of 3; 0 for the one that it is not.
    /// So one comparison tells the shape and that the address is in its range.
    ends: [usize; 2],
    format: PhantomData<fn() -> (F, P)>,
}

impl<F, P> Clone for NptView<F, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F, P> Copy for NptView<F, P> {}

impl<F: NptFormat, P: PagingHandler> NptView<F, P> {
    /// Where `gpa` leads; none when nothing is mapped there.
    ///
    /// During a concurrent change the answer is the old or the new one; during a
    /// [`split_at`](NestedPageTable::split_at) in a format with
    /// [break-before-make](NptFormat::BREAK_BEFORE_MAKE) it may also be none, for a moment.
    ///
    /// # Safety
    /// During the walk the page table is not dropped, and no [`Removed`](super::Removed) that it
    /// handed out after the walk began is released.
    #[inline(always)]
    pub unsafe fn translate(self, gpa: GuestPhysAddr) -> Option<Translation> {
        let gpa = gpa.as_usize();
        let [end_4, end_3] = self.ends;
        // In each branch the level is a constant.
        if gpa < end_4 {
            // SAFETY: the root of a live page table, of this level, that has an entry for `gpa`;
            // the caller promises that nothing reachable is freed meanwhile.
            walk_4::<F, P>(unsafe { Table::root_for_walk(self.root, 3) }, gpa)
        } else if gpa < end_3 {
            // SAFETY: as above.
            walk_3::<F, P>(unsafe { Table::root_for_walk(self.root, 2) }, gpa)
        } else {
            None
        }
    }
}

impl<F: NptFormat, P> fmt::Debug for NptView<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NptView({}, {:#x})", F::NAME, self.root)
    }
}

/// One step of the walk from `$table`, or the end of it.
macro_rules! step {
    ($table:expr, $gpa:expr, $next:expr) => {
        match $table.slot::<F>($table.index($gpa)) {
            Slot::Table(child) => $next(child, $gpa),
            Slot::Leaf { pa, flags, .. } => translation(pa, flags, $gpa, $table.level()),
            Slot::Absent => {
                core::hint::cold_path();
                None
            }
        }
    };
}

// The walk, unrolled: in each function the level is a constant, which halves the instructions.

#[inline(always)]
fn walk_4<F: NptFormat, P: PagingHandler>(table: Table<'_, P>, gpa: usize) -> Option<Translation> {
    step!(table, gpa, walk_3::<F, P>)
}

#[inline(always)]
fn walk_3<F: NptFormat, P: PagingHandler>(table: Table<'_, P>, gpa: usize) -> Option<Translation> {
    step!(table, gpa, walk_2::<F, P>)
}

#[inline(always)]
fn walk_2<F: NptFormat, P: PagingHandler>(table: Table<'_, P>, gpa: usize) -> Option<Translation> {
    step!(table, gpa, walk_1::<F, P>)
}

#[inline(always)]
fn walk_1<F: NptFormat, P: PagingHandler>(table: Table<'_, P>, gpa: usize) -> Option<Translation> {
    step!(table, gpa, |_, _| None)
}

#[inline(always)]
fn translation(
    pa: HostPhysAddr,
    flags: MappingFlags,
    gpa: usize,
    level: usize,
) -> Option<Translation> {
    let size = leaf_size(level)?;
    let offset = gpa & (span(level) - 1);
    Some(Translation { hpa: HostPhysAddr::from_usize(pa.as_usize() | offset), flags, size })
}

/// A nested page table. It owns the frames of its tables, not the pages that it maps.
///
/// Changes take `&mut self`; readers on other threads use a [`view`](Self::view). No change
/// flushes a TLB, but for the break-before-make of [`split_at`](Self::split_at): the caller
/// flushes after [`unmap`](Self::unmap) and [`protect`](Self::protect), before it maps anything
/// else there, and before it releases what was removed.
///
/// Dropping it frees every table at once: no CPU may use the root any more, and no view may be
/// used.
pub struct NestedPageTable<F: NptFormat, P: PagingHandler> {
    view: NptView<F, P>,
    geometry: Geometry,
    /// Frames of tables, the root's included.
    pub(super) frames: usize,
}

impl<F: NptFormat, P: PagingHandler> NestedPageTable<F, P> {
    /// A page table that maps nothing.
    ///
    /// # Errors
    /// When the host has no frames for the root, contiguous and aligned to its size.
    pub fn new(geometry: Geometry) -> Result<Self, OutOfFrames> {
        let frames = geometry.root_frames();
        let root = P::alloc_frames(frames, geometry.root_size()).ok_or(OutOfFrames)?;
        if root.as_usize() & (geometry.root_size() - 1) != 0 {
            // Hardware would ignore the low bits of the address.
            log::error!("nested page table: the host gave {root:#x} as root of {geometry:?}");
            P::dealloc_frames(root, frames);
            return Err(OutOfFrames);
        }
        // SAFETY: the frames have just been allocated, nobody else knows them.
        unsafe { table::zero::<P>(root, frames) };
        F::publish();
        let end = 1 << geometry.input_bits();
        let ends = if geometry.levels() == 4 { [end, 0] } else { [0, end] };
        let view = NptView { root, ends, format: PhantomData };
        Ok(Self { view, geometry, frames })
    }

    /// The address of the root.
    pub fn root(&self) -> HostPhysAddr {
        self.view.root
    }

    /// The shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A handle for other threads.
    pub fn view(&self) -> NptView<F, P> {
        self.view
    }

    /// Where `gpa` leads; none when nothing is mapped there.
    #[inline]
    pub fn translate(&self, gpa: GuestPhysAddr) -> Option<Translation> {
        // SAFETY: the owner is borrowed: it is not dropped, and what it handed out as removed
        // before is not reachable from the root.
        unsafe { self.view().translate(gpa) }
    }

    /// The number of 4 KiB frames that the tables occupy, the root included.
    pub fn table_frames(&self) -> usize {
        self.frames
    }

    /// The root, for as long as the caller's operation lasts.
    pub(super) fn root_table<'a>(&self) -> Table<'a, P> {
        // SAFETY: the root of this geometry. The room's operations use the table within a call on
        // `&self` or `&mut self`, and free nothing (`release` takes only what is detached).
        unsafe { Table::at(self.root(), self.geometry.levels() - 1, self.geometry.root_entries()) }
    }

    /// The root, if its level is `LEVEL` (2 or 3) and it has an entry for `gpa`.
    #[inline(always)]
    pub(super) fn root_at<'a, const LEVEL: usize>(&self, gpa: usize) -> Option<Table<'a, P>> {
        let [end_4, end_3] = self.view.ends;
        if gpa >= if LEVEL == 3 { end_4 } else { end_3 } {
            return None;
        }
        // SAFETY: as in `root_table`; an address below the end proves the level.
        Some(unsafe { Table::at(self.root(), LEVEL, self.geometry.root_entries()) })
    }

    /// The bounds of the pages that lie wholly in `range` and in the input range.
    pub(super) fn bounds(&self, range: GpaRange) -> (usize, usize) {
        let inside = self.geometry.input_range();
        debug_assert!(range.is_aligned(PAGE_SIZE_4K), "{range:?} is not page aligned");
        debug_assert!(inside.contains_range(range), "{range:?} exceeds {inside:?}");
        let end = range.end().as_usize().min(inside.end().as_usize()) & !(PAGE_SIZE_4K - 1);
        let start = range.start().as_usize().min(end).next_multiple_of(PAGE_SIZE_4K);
        (start.min(end), end)
    }

    /// The level of the largest leaves that can map `gpa` to `hpa`.
    pub(super) fn leaf_level(&self, gpa: usize, hpa: HostPhysAddr, max: PageSize) -> usize {
        let mut level = super::level_within(max).min(self.geometry.levels() - 1);
        while level > 0 && (gpa ^ hpa.as_usize()) & (span(level) - 1) != 0 {
            level -= 1;
        }
        level
    }
}

impl<F: NptFormat, P: PagingHandler> Drop for NestedPageTable<F, P> {
    fn drop(&mut self) {
        // SAFETY: by the type's contract nobody walks it any more; `self` is not used after.
        unsafe { release::free_root::<F, P>(self.root_table(), self.geometry.root_frames()) };
    }
}

impl<F: NptFormat, P: PagingHandler> fmt::Debug for NestedPageTable<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NestedPageTable")
            .field("format", &F::NAME)
            .field("root", &self.root())
            .field("geometry", &self.geometry)
            .field("frames", &self.frames)
            .finish()
    }
}
