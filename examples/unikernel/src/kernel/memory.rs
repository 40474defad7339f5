//! The machine's memory: frames for guests and page tables, and the heap, which takes its memory
//! from the frames.

use core::alloc::Layout;

use bitmap_allocator::{BitAlloc, BitAlloc16M};
use memory_addr::{PAGE_SIZE_4K, PhysAddr, VirtAddr};
use page_table_multiarch::PagingHandler;
use spin::Mutex;
use talc::{
    TalcLock,
    base::{Talc, binning::Binning},
    source::Source,
};
use unikernel::tree::PhysRange;

/// A bit for each frame below 64 GiB of physical addresses. The allocator finds a single frame
/// in a few steps, ranges of any alignment, and a range at a given place.
static FRAMES: Mutex<BitAlloc16M> = Mutex::new(BitAlloc16M::DEFAULT);

#[global_allocator]
static HEAP: TalcLock<Mutex<()>, FromFrames> = TalcLock::new(FromFrames);

/// Makes the machine's memory available, but for what is in use. Memory that the bitmap does not
/// reach is left alone.
pub fn init(memory: impl Iterator<Item = PhysRange>, used: impl Iterator<Item = PhysRange>) {
    let limit = BitAlloc16M::CAP as u64;
    let page = PAGE_SIZE_4K as u64;
    let mut frames = FRAMES.lock();
    for range in memory {
        let (from, to) = (range.start.div_ceil(page), (range.end / page).min(limit));
        if from < to {
            frames.insert(from as usize..to as usize);
        }
    }
    for range in used {
        let (from, to) = (range.start / page, range.end.div_ceil(page).min(limit));
        if from < to {
            frames.remove(from as usize..to as usize);
        }
    }
}

/// Takes the range `base .. base + size` out of the free memory, if it is all there.
pub fn take(base: PhysAddr, size: usize) -> bool {
    let Some((from, count)) = frames_of(base, size) else { return false };
    count > 0 && FRAMES.lock().alloc_contiguous(Some(from), count, 0).is_some()
}

/// Gives back what [`take`] took.
pub fn give(base: PhysAddr, size: usize) {
    if let Some((from, count)) = frames_of(base, size) {
        free(from, count);
    }
}

/// Whole frames, below the bitmap's end.
fn frames_of(base: PhysAddr, size: usize) -> Option<(usize, usize)> {
    let base = base.as_usize();
    let whole = base.is_multiple_of(PAGE_SIZE_4K) && size.is_multiple_of(PAGE_SIZE_4K);
    let end = base.checked_add(size)? / PAGE_SIZE_4K;
    (whole && end <= BitAlloc16M::CAP).then_some((base / PAGE_SIZE_4K, size / PAGE_SIZE_4K))
}

fn free(from: usize, count: usize) {
    if count > 0 && !FRAMES.lock().dealloc_contiguous(from, count) {
        log::error!("{count} frames at {:#x} were free already", from * PAGE_SIZE_4K);
    }
}

/// Frames for the library.
pub struct Frames;

impl PagingHandler for Frames {
    fn alloc_frames(count: usize, align: usize) -> Option<PhysAddr> {
        let align = align.max(PAGE_SIZE_4K);
        if count == 0 || !align.is_power_of_two() {
            return None;
        }
        let mut frames = FRAMES.lock();
        let frame = match (count, align) {
            (1, PAGE_SIZE_4K) => frames.alloc(),
            _ => frames.alloc_contiguous(None, count, (align / PAGE_SIZE_4K).ilog2() as usize),
        };
        frame.map(|frame| PhysAddr::from(frame * PAGE_SIZE_4K))
    }

    fn dealloc_frames(base: PhysAddr, count: usize) {
        free(base.as_usize() / PAGE_SIZE_4K, count);
    }

    fn phys_to_virt(address: PhysAddr) -> VirtAddr {
        address.as_usize().into() // The MMU is off.
    }
}

/// Where the heap gets more memory when it is exhausted.
#[derive(Debug)]
struct FromFrames;

/// How much at least, so that it seldom asks.
const HEAP_CHUNK: usize = 2 << 20;

// SAFETY: it allocates nothing from the heap.
unsafe impl Source for FromFrames {
    fn acquire<B: Binning>(heap: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // Room for the heap's own records, and for any alignment.
        let wanted = layout.size().checked_add(layout.align()).ok_or(())?;
        let size = wanted.checked_add(HEAP_CHUNK).ok_or(())? / PAGE_SIZE_4K * PAGE_SIZE_4K;
        let chunk = Frames::alloc_frames(size / PAGE_SIZE_4K, PAGE_SIZE_4K).ok_or(())?;
        let base = Frames::phys_to_virt(chunk).as_mut_ptr();
        // SAFETY: these frames are nobody else's from now on.
        unsafe { heap.claim(base, size) }.map(drop).ok_or(())
    }
}
