//! Frames for guest memory: taken before they are mapped, zeroed, and given back in the units in
//! which they were taken.

use alloc::vec::Vec;
use core::marker::PhantomData;

use axerrno::{AxError, AxResult};
use memory_addr::{MemoryAddr, PAGE_SIZE_2M, PAGE_SIZE_4K};
use page_table_multiarch::{PageSize, PagingHandler};

use super::HostPhysAddr;

/// 4 KiB frames in a 2 MiB chunk.
const CHUNK_FRAMES: usize = PAGE_SIZE_2M / PAGE_SIZE_4K;

const fn frames_of(size: PageSize) -> usize {
    size as usize / PAGE_SIZE_4K
}

/// Fills host memory that no guest can reach with zeros.
///
/// # Safety
/// `hpa .. hpa + size` is memory that `P::phys_to_virt` maps, and nobody else uses it.
pub(super) unsafe fn zero<P: PagingHandler>(hpa: HostPhysAddr, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { P::phys_to_virt(hpa).as_mut_ptr().write_bytes(0, size) };
}

/// Takes one zeroed frame of 4 KiB or 2 MiB.
#[inline]
pub(super) fn take_zeroed<P: PagingHandler>(size: PageSize) -> Option<HostPhysAddr> {
    let hpa = P::alloc_frames(frames_of(size), size as usize)?;
    // SAFETY: the frame was just allocated: mapped, and nobody else's.
    unsafe { zero::<P>(hpa, size as usize) };
    Some(hpa)
}

/// Gives back a frame that was taken whole.
pub(super) fn give_back<P: PagingHandler>(hpa: HostPhysAddr, size: PageSize) {
    P::dealloc_frames(hpa, frames_of(size));
}

/// Frames taken for a mapping that is about to be made. Those not used are given back.
pub(super) struct FrameReserve<P: PagingHandler> {
    chunks: FrameList<P>,
    frames: FrameList<P>,
}

impl<P: PagingHandler> FrameReserve<P> {
    /// Takes memory for `chunks` aligned slots of 2 MiB and `frames` more of 4 KiB. Slots for
    /// which no chunk is to be had get 512 frames instead; those are the last ones.
    ///
    /// # Errors
    /// `NoMemory`; nothing is taken then.
    pub(super) fn new(chunks: usize, frames: usize) -> AxResult<Self> {
        let mut reserve = Self {
            chunks: FrameList::new(PageSize::Size2M),
            frames: FrameList::new(PageSize::Size4K),
        };
        let mut missing = frames;
        for taken in 0..chunks {
            if !reserve.chunks.grow() {
                missing = missing.saturating_add((chunks - taken).saturating_mul(CHUNK_FRAMES));
                break;
            }
        }
        for _ in 0..missing {
            if !reserve.frames.grow() {
                return Err(AxError::NoMemory);
            }
        }
        Ok(reserve)
    }

    /// How many chunks there are.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Hands out one frame, zeroed.
    pub(super) fn take(&mut self, size: PageSize) -> Option<HostPhysAddr> {
        let list = if size.is_huge() { &mut self.chunks } else { &mut self.frames };
        list.take()
    }
}

/// Frames of one size, taken and not used yet: a list through the frames themselves, so that it
/// needs no heap. Dropping it gives them back.
pub(super) struct FrameList<P: PagingHandler> {
    size: PageSize,
    head: Option<HostPhysAddr>,
    len: usize,
    handler: PhantomData<fn() -> P>,
}

impl<P: PagingHandler> FrameList<P> {
    pub(super) const fn new(size: PageSize) -> Self {
        Self { size, head: None, len: 0, handler: PhantomData }
    }

    /// Takes one more; false when there is none.
    pub(super) fn grow(&mut self) -> bool {
        let Some(hpa) = P::alloc_frames(frames_of(self.size), self.size as usize) else {
            return false;
        };
        // The first word of a listed frame is the next one's address; the last one's is not read.
        let next = self.head.unwrap_or(hpa).as_usize();
        // SAFETY: the frame was just allocated: mapped, aligned, and nobody else's.
        unsafe { P::phys_to_virt(hpa).as_mut_ptr_of::<usize>().write(next) };
        self.head = Some(hpa);
        self.len += 1;
        true
    }

    /// How many frames there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Hands out one, zeroed.
    pub(super) fn take(&mut self) -> Option<HostPhysAddr> {
        let hpa = self.pop()?;
        // SAFETY: the frame is the list's, which has forgotten it.
        unsafe { zero::<P>(hpa, self.size as usize) };
        Some(hpa)
    }

    fn pop(&mut self) -> Option<HostPhysAddr> {
        let hpa = self.head?;
        self.len -= 1;
        // SAFETY: a frame in the list is the list's own, and `grow` wrote its first word.
        let next = unsafe { P::phys_to_virt(hpa).as_ptr_of::<usize>().read() };
        self.head = (self.len > 0).then(|| next.into());
        Some(hpa)
    }
}

impl<P: PagingHandler> Drop for FrameList<P> {
    fn drop(&mut self) {
        while let Some(hpa) = self.pop() {
            give_back::<P>(hpa, self.size);
        }
    }
}

/// The 2 MiB chunks whose leaves were split: each is freed whole, after its last page is gone.
#[derive(Default)]
pub(super) struct SplitChunks(Vec<SplitChunk>);

struct SplitChunk {
    base: HostPhysAddr,
    /// Pages still in use, 1 to 512.
    pages: usize,
}

impl SplitChunks {
    /// Makes room for `more` chunks.
    pub(super) fn reserve(&mut self, more: usize) -> AxResult {
        self.0.try_reserve(more).map_err(|_| AxError::NoMemory)
    }

    /// Records that the leaf of the chunk at `base` is split. Needs room reserved.
    pub(super) fn insert(&mut self, base: HostPhysAddr) {
        if let Err(at) = self.0.binary_search_by_key(&base, |chunk| chunk.base) {
            self.0.insert(at, SplitChunk { base, pages: CHUNK_FRAMES });
        }
    }

    /// Frees the memory behind a leaf.
    pub(super) fn free<P: PagingHandler>(&mut self, hpa: HostPhysAddr, size: PageSize) {
        let base = hpa.align_down(PAGE_SIZE_2M);
        let found = match size {
            // A frame inside a chunk's 2 MiB can only be the chunk's.
            PageSize::Size4K => self.0.binary_search_by_key(&base, |chunk| chunk.base).ok(),
            _ => None,
        };
        let Some(index) = found else { return give_back::<P>(hpa, size) };
        let Some(chunk) = self.0.get_mut(index) else { return };
        chunk.pages -= 1;
        if chunk.pages == 0 {
            self.0.remove(index);
            give_back::<P>(base, PageSize::Size2M);
        }
    }
}
