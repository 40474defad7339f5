//! A frame allocator whose cost is not counted.

use std::alloc::{Layout, alloc_zeroed};
use std::sync::Mutex;

use axvm::mm::{HostPhysAddr, HostVirtAddr, PAGE_SIZE_4K, PagingHandler};

use crate::callgrind;

/// What all cases together may hold; the host commits only what is touched.
const ARENA_SIZE: usize = 1 << 30;

static ARENA: Mutex<Arena> = Mutex::new(Arena { next: 0, end: 0, in_use: 0, free: Vec::new() });

struct Arena {
    next: usize,
    end: usize,
    in_use: usize,
    /// Base and count of what was given back.
    free: Vec<(usize, usize)>,
}

impl Arena {
    fn take(&mut self, count: usize, align: usize) -> Option<usize> {
        if self.end == 0 {
            let layout = Layout::from_size_align(ARENA_SIZE, PAGE_SIZE_4K).ok()?;
            // SAFETY: the layout's size is not 0.
            self.next = unsafe { alloc_zeroed(layout) } as usize;
            self.end = self.next + ARENA_SIZE;
        }
        let fits = |&(base, size): &(usize, usize)| size == count && base % align == 0;
        let base = match self.free.iter().rposition(fits) {
            Some(index) => self.free.swap_remove(index).0,
            None => {
                let base = self.next.next_multiple_of(align);
                self.next = base + count * PAGE_SIZE_4K;
                base
            }
        };
        self.in_use += count;
        (base != 0 && self.next <= self.end).then_some(base)
    }
}

/// Frames of the process's heap, at identical physical and virtual addresses.
pub struct Frames;

impl Frames {
    /// The frames handed out and not yet given back.
    pub fn in_use() -> usize {
        ARENA.lock().expect("no panic under the lock").in_use
    }
}

impl PagingHandler for Frames {
    // Inlined, so that no prologue of its own is counted.
    #[inline(always)]
    fn alloc_frames(count: usize, align: usize) -> Option<HostPhysAddr> {
        callgrind::excluded(|| take(count, align)).map(HostPhysAddr::from)
    }

    #[inline(always)]
    fn dealloc_frames(base: HostPhysAddr, count: usize) {
        callgrind::excluded(|| give_back(base.as_usize(), count));
    }

    #[inline]
    fn phys_to_virt(paddr: HostPhysAddr) -> HostVirtAddr {
        HostVirtAddr::from(paddr.as_usize())
    }
}

#[inline(never)]
fn take(count: usize, align: usize) -> Option<usize> {
    let mut arena = ARENA.lock().expect("no panic under the lock");
    arena.take(count, align.max(PAGE_SIZE_4K))
}

#[inline(never)]
fn give_back(base: usize, count: usize) {
    let mut arena = ARENA.lock().expect("no panic under the lock");
    arena.in_use -= count;
    arena.free.push((base, count));
}
