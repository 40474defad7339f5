//! A frame allocator that finds fault: see [`Arena`].

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
};

use axvm::mm::{HostPhysAddr, HostVirtAddr};

use crate::{
    Lock,
    backing::{Backing, PAGE},
};

/// The physical address of the first frame: no virtual address, above 4 GiB (a truncation to 32
/// bits shows), and away from where guests have their memory.
pub const ARENA_BASE: usize = 0x10_0000_0000;
/// What a frame holds when it is handed out.
pub const JUNK: u8 = 0x5c;
/// What a freed frame holds.
pub const POISON: u8 = 0xa5;
/// So many freed frames rest before one is handed out again, so that late users are caught.
const QUARANTINE: usize = 1024;

/// Free, and not used yet.
const FRESH: u32 = 0;
/// Free, and poisoned.
const FREED: u32 = 1;
/// Allocated; the allocation starts at a lower frame.
const TAIL: u32 = 2;
/// Allocated, and so many frames with it as the state is above this.
const HEAD: u32 = 2;

#[derive(Clone, Copy)]
struct Frame {
    state: u32,
    /// How often it was handed out.
    generation: u32,
}

#[derive(Clone, Copy)]
enum Failure {
    Never,
    From(u64),
    Only(u64),
}

struct Inner {
    frames: Vec<Frame>,
    /// Freed runs by their length, oldest first. An entry may be out of date: its frames count.
    free: HashMap<usize, VecDeque<usize>>,
    /// No frame from here on was ever used.
    next: usize,
    allocated: usize,
    attempts: u64,
    failure: Failure,
    injected: u64,
}

/// Frames of 4 KiB, at physical addresses from [`ARENA_BASE`].
///
/// A frame is handed out full of [`JUNK`] and, once freed, is full of [`POISON`], which is
/// verified when it is handed out again and by [`check_poison`](Self::check_poison). Every misuse
/// panics with the address.
pub struct Arena {
    memory: Backing,
    inner: Mutex<Inner>,
}

impl Arena {
    /// An arena of `bytes`, rounded down to whole frames; the memory is committed when used.
    pub fn new(bytes: usize) -> Self {
        let count = bytes / PAGE;
        let memory = Backing::new(count * PAGE).expect("testkit: no memory for the arena");
        let inner = Inner {
            frames: vec![Frame { state: FRESH, generation: 0 }; count],
            free: HashMap::new(),
            next: 0,
            allocated: 0,
            attempts: 0,
            failure: Failure::Never,
            injected: 0,
        };
        Self { memory, inner: Mutex::new(inner) }
    }

    /// `PagingHandler::alloc_frames`.
    #[track_caller]
    pub fn alloc(&self, num: usize, align: usize) -> Option<HostPhysAddr> {
        assert!(num > 0, "arena: allocation of no frames");
        assert!(
            align.is_power_of_two() && align >= PAGE,
            "arena: alignment {align:#x} is not a power of two from 4 KiB on"
        );
        let mut inner = self.inner.locked();
        inner.attempts += 1;
        let fails = match inner.failure {
            Failure::Never => false,
            Failure::From(first) => inner.attempts >= first,
            Failure::Only(attempt) => inner.attempts == attempt,
        };
        if fails {
            inner.injected += 1;
            return None;
        }
        let first = inner.take(num, align / PAGE)?;
        for index in first..first + num {
            let freed = inner.frames[index].state == FREED;
            self.verify(index, if freed { POISON } else { 0 });
            inner.frames[index].state = TAIL;
            inner.frames[index].generation += 1;
        }
        inner.frames[first].state = HEAD + num as u32;
        inner.allocated += num;
        // SAFETY: the frames are in the arena and, until this returns, nobody else's.
        unsafe { self.memory.at(first * PAGE).write_bytes(JUNK, num * PAGE) };
        Some(HostPhysAddr::from_usize(ARENA_BASE + first * PAGE))
    }

    /// `PagingHandler::dealloc_frames`.
    #[track_caller]
    pub fn dealloc(&self, pa: HostPhysAddr, num: usize) {
        let mut inner = self.inner.locked();
        let Some(first) = self.index(pa) else {
            panic!("arena: free of {pa:#x}: not of this arena")
        };
        assert!(pa.as_usize().is_multiple_of(PAGE), "arena: free of {pa:#x}: misaligned");
        match inner.frames[first].state {
            FRESH => panic!("arena: free of {pa:#x}: never allocated"),
            FREED => panic!("arena: double free of {pa:#x}"),
            TAIL => panic!("arena: free of {pa:#x}: in the middle of an allocation"),
            head => {
                let count = (head - HEAD) as usize;
                assert!(
                    count == num,
                    "arena: free of {pa:#x} with wrong count {num}: allocated with {count}"
                );
            }
        }
        // SAFETY: the frames are in the arena, and given back: who still reads or writes them is
        // the misuse that this is here to show.
        unsafe { self.memory.at(first * PAGE).write_bytes(POISON, num * PAGE) };
        inner.frames[first..first + num].iter_mut().for_each(|frame| frame.state = FREED);
        inner.allocated -= num;
        inner.free.entry(num).or_default().push_back(first);
    }

    /// Makes the `n`-th allocation from now, counted from 1, and all later ones fail.
    pub fn fail_after(&self, n: u64) {
        self.set_failure(n, Failure::From);
    }

    /// Makes only the `n`-th allocation from now, counted from 1, fail.
    pub fn fail_nth_only(&self, n: u64) {
        self.set_failure(n, Failure::Only);
    }

    /// Ends the failures.
    pub fn fail_never(&self) {
        self.inner.locked().failure = Failure::Never;
    }

    /// How many allocations were made to fail since [`fail_after`](Self::fail_after) or
    /// [`fail_nth_only`](Self::fail_nth_only).
    pub fn injected(&self) -> u64 {
        self.inner.locked().injected
    }

    /// How many allocations were attempted, whatever their size and outcome.
    pub fn allocations(&self) -> u64 {
        self.inner.locked().attempts
    }

    /// How many frames are allocated now.
    pub fn allocated(&self) -> usize {
        self.inner.locked().allocated
    }

    /// How many frames there are.
    pub fn capacity(&self) -> usize {
        self.memory.size() / PAGE
    }

    /// Panics when a frame is allocated, and names the first ones.
    #[track_caller]
    pub fn assert_balanced(&self) {
        let leaked: Vec<_> = self.live().into_iter().take(8).collect();
        let count = self.allocated();
        assert!(count == 0, "arena: {count} frames leaked, the first allocations: {leaked:x?}");
        self.check_poison();
    }

    /// The allocations that are alive: address and count of frames.
    pub fn live(&self) -> Vec<(HostPhysAddr, usize)> {
        let inner = self.inner.locked();
        let heads = inner.frames.iter().enumerate().filter(|(_, frame)| frame.state > HEAD);
        let address = |index: usize| HostPhysAddr::from_usize(ARENA_BASE + index * PAGE);
        heads.map(|(index, frame)| (address(index), (frame.state - HEAD) as usize)).collect()
    }

    /// Panics when a freed frame was written since.
    #[track_caller]
    pub fn check_poison(&self) {
        let inner = self.inner.locked();
        for index in (0..inner.next).filter(|&index| inner.frames[index].state == FREED) {
            self.verify(index, POISON);
        }
    }

    /// The generation of the allocated frame that holds `pa`: how often it was handed out. None
    /// when it is free, or not of this arena.
    pub fn generation(&self, pa: HostPhysAddr) -> Option<u32> {
        let frame = self.inner.locked().frames[self.index(pa)?];
        (frame.state >= TAIL).then_some(frame.generation)
    }

    /// Whether the address is the arena's, allocated or not.
    pub fn contains(&self, pa: HostPhysAddr) -> bool {
        self.index(pa).is_some()
    }

    /// The virtual address of a physical one of the arena.
    pub fn phys_to_virt(&self, pa: HostPhysAddr) -> Option<HostVirtAddr> {
        self.contains(pa)
            .then(|| HostVirtAddr::from_usize(pa.as_usize() - ARENA_BASE + self.memory.start()))
    }

    /// The opposite of [`phys_to_virt`](Self::phys_to_virt).
    pub fn virt_to_phys(&self, va: HostVirtAddr) -> Option<HostPhysAddr> {
        let offset = va.as_usize().checked_sub(self.memory.start())?;
        (offset < self.memory.size()).then(|| HostPhysAddr::from_usize(ARENA_BASE + offset))
    }

    fn set_failure(&self, n: u64, kind: fn(u64) -> Failure) {
        assert!(n > 0, "arena: allocations are counted from 1");
        let mut inner = self.inner.locked();
        inner.failure = kind(inner.attempts + n);
        inner.injected = 0;
    }

    fn index(&self, pa: HostPhysAddr) -> Option<usize> {
        let offset = pa.as_usize().checked_sub(ARENA_BASE)?;
        (offset < self.memory.size()).then_some(offset / PAGE)
    }

    #[track_caller]
    fn verify(&self, index: usize, byte: u8) {
        static POISONED: [u8; PAGE] = [POISON; PAGE];
        static ZEROED: [u8; PAGE] = [0; PAGE];
        let expected = if byte == 0 { &ZEROED } else { &POISONED };
        // SAFETY: the frame is in the arena and free, so nobody may write to it.
        let found = unsafe { core::slice::from_raw_parts(self.memory.at(index * PAGE), PAGE) };
        if let Some(at) = (found != expected).then(|| found.iter().position(|&b| b != byte)) {
            let at = ARENA_BASE + index * PAGE + at.unwrap_or(0);
            panic!("arena: {at:#x} was written while its frame was free (use after free)");
        }
    }
}

impl Inner {
    /// Finds `num` free frames in a row.
    fn take(&mut self, num: usize, align: usize) -> Option<usize> {
        self.reuse(num, align, QUARANTINE.div_ceil(num))
            .or_else(|| self.extend(num, align))
            .or_else(|| self.reuse(num, align, 0))
            .or_else(|| (0..self.frames.len()).step_by(align).find(|&at| self.is_free(at, num)))
    }

    /// The oldest run of this length, if more than `keep` runs rest.
    fn reuse(&mut self, num: usize, align: usize, keep: usize) -> Option<usize> {
        loop {
            let runs = self.free.get_mut(&num).filter(|runs| runs.len() > keep)?;
            let place = runs.iter().position(|first| first % align == 0)?;
            let first = runs.remove(place)?;
            if self.is_free(first, num) {
                return Some(first);
            }
        }
    }

    fn extend(&mut self, num: usize, align: usize) -> Option<usize> {
        let first = self.next.next_multiple_of(align);
        if !self.is_free(first, num) {
            return None;
        }
        self.free.entry(1).or_default().extend(self.next..first);
        self.next = first + num;
        Some(first)
    }

    fn is_free(&self, first: usize, num: usize) -> bool {
        first
            .checked_add(num)
            .and_then(|end| self.frames.get(first..end))
            .is_some_and(|run| run.iter().all(|frame| frame.state <= FREED))
    }
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
