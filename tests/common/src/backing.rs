//! Host memory behind a range of made-up physical addresses.

use std::alloc::{Layout, alloc_zeroed, dealloc};

/// The size of a frame.
pub(crate) const PAGE: usize = 4096;

/// A block of memory that the operating system commits as it is touched, and starts zeroed.
pub(crate) struct Backing {
    block: *mut u8,
    layout: Layout,
    start: usize,
    size: usize,
}

// SAFETY: the block is owned, and the type hands out addresses only; who dereferences them argues
// for the access itself.
unsafe impl Send for Backing {}
// SAFETY: as above; no method writes to the block.
unsafe impl Sync for Backing {}

impl Backing {
    /// A block of `size` bytes, at least one; none when the host has no room for it.
    pub(crate) fn new(size: usize) -> Option<Self> {
        assert!(size > 0, "testkit: a backing of no bytes");
        // The small alignment keeps `alloc_zeroed` a `calloc`, which maps pages lazily; with a
        // larger one the standard library clears, and so commits, the whole block.
        let layout = Layout::from_size_align(size.checked_add(PAGE)?, 16).ok()?;
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc_zeroed(layout) };
        if block.is_null() {
            return None;
        }
        Some(Self { block, layout, start: block.expose_provenance().next_multiple_of(PAGE), size })
    }

    /// The virtual address of the first byte, a multiple of 4 KiB.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// The length in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A pointer to the byte at `offset`.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.size, "testkit: offset beyond the backing");
        core::ptr::with_exposed_provenance_mut(self.start + offset)
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { dealloc(self.block, self.layout) }
    }
}
