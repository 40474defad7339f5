//! Host-physical ranges outside the arena: what `alloc_memory_region_at` hands out, and memory of
//! passed-through devices.

use std::sync::Mutex;

use axvm::mm::{HostPhysAddr, HostVirtAddr};

use crate::{
    Lock,
    arena::{ARENA_BASE, JUNK},
    backing::{Backing, PAGE},
};

struct Region {
    base: usize,
    backing: Backing,
    /// Taken by the crate, otherwise a device's memory.
    taken: bool,
    serial: u64,
}

impl Region {
    fn contains(&self, pa: usize) -> bool {
        pa.checked_sub(self.base).is_some_and(|offset| offset < self.backing.size())
    }
}

#[derive(Default)]
struct Inner {
    regions: Vec<Region>,
    serial: u64,
    calls: u64,
    fail_from: Option<u64>,
}

/// The host's physical memory beside the arena, each range with memory behind it. The first and
/// last page of a range hold junk when it is taken.
pub struct HostRegions {
    arena_end: usize,
    inner: Mutex<Inner>,
}

impl HostRegions {
    pub(crate) fn new(arena_end: usize) -> Self {
        Self { arena_end, inner: Mutex::default() }
    }

    /// `AxVMHal::alloc_memory_region_at`: refuses what is not whole pages, overlaps another range
    /// or the arena, and when told to fail.
    pub fn take(&self, base: HostPhysAddr, size: usize) -> bool {
        let mut inner = self.inner.locked();
        inner.calls += 1;
        let fails = inner.fail_from.is_some_and(|first| inner.calls >= first);
        !fails && self.insert(&mut inner, base.as_usize(), size, true)
    }

    /// `AxVMHal::dealloc_memory_region_at`: panics unless the range was taken, exactly so.
    #[track_caller]
    pub fn give_back(&self, base: HostPhysAddr, size: usize) {
        let mut inner = self.inner.locked();
        let place = inner.regions.iter().position(|region| {
            region.taken && (region.base, region.backing.size()) == (base.as_usize(), size)
        });
        match place {
            Some(place) => drop(inner.regions.swap_remove(place)),
            None => panic!("regions: {base:#x} + {size:#x} given back, but not taken so"),
        }
    }

    /// Puts device memory at `base`, for a guest to reach through a passthrough mapping.
    ///
    /// # Panics
    /// When the range is not free.
    #[track_caller]
    pub fn add_device(&self, base: usize, size: usize) {
        let mut inner = self.inner.locked();
        assert!(self.insert(&mut inner, base, size, false), "regions: {base:#x} is not free");
    }

    /// Makes the `n`-th call of `alloc_memory_region_at` from now, counted from 1, and all later
    /// ones fail.
    pub fn fail_after(&self, n: u64) {
        let mut inner = self.inner.locked();
        inner.fail_from = Some(inner.calls + n);
    }

    /// Ends the failures.
    pub fn fail_never(&self) {
        self.inner.locked().fail_from = None;
    }

    /// The ranges that are taken: base and size, in order.
    pub fn taken(&self) -> Vec<(usize, usize)> {
        let inner = self.inner.locked();
        let taken = inner.regions.iter().filter(|region| region.taken);
        let mut taken: Vec<_> = taken.map(|r| (r.base, r.backing.size())).collect();
        taken.sort_unstable();
        taken
    }

    /// Panics when a range is taken.
    #[track_caller]
    pub fn assert_balanced(&self) {
        let taken = self.taken();
        assert!(taken.is_empty(), "regions: not given back: {taken:x?}");
    }

    /// A number that differs for every range that was ever at `pa`; none where there is none.
    pub fn serial(&self, pa: HostPhysAddr) -> Option<u64> {
        let inner = self.inner.locked();
        inner.regions.iter().find(|region| region.contains(pa.as_usize())).map(|r| r.serial)
    }

    /// The virtual address of a physical one.
    pub fn phys_to_virt(&self, pa: HostPhysAddr) -> Option<HostVirtAddr> {
        let inner = self.inner.locked();
        let region = inner.regions.iter().find(|region| region.contains(pa.as_usize()))?;
        Some(HostVirtAddr::from_usize(region.backing.start() + pa.as_usize() - region.base))
    }

    /// The opposite of [`phys_to_virt`](Self::phys_to_virt).
    pub fn virt_to_phys(&self, va: HostVirtAddr) -> Option<HostPhysAddr> {
        self.inner.locked().regions.iter().find_map(|region| {
            let offset = va.as_usize().checked_sub(region.backing.start())?;
            (offset < region.backing.size()).then(|| HostPhysAddr::from_usize(region.base + offset))
        })
    }

    fn insert(&self, inner: &mut Inner, base: usize, size: usize, taken: bool) -> bool {
        let Some(end) = base.checked_add(size) else { return false };
        let overlaps = |start: usize, stop: usize| base < stop && start < end;
        let refused = size == 0
            || !(base | size).is_multiple_of(PAGE)
            || overlaps(ARENA_BASE, self.arena_end)
            || inner.regions.iter().any(|r| overlaps(r.base, r.base + r.backing.size()));
        let Some(backing) = (!refused).then(|| Backing::new(size)).flatten() else { return false };
        if taken {
            for offset in [0, size - PAGE] {
                // SAFETY: the page is in the backing, which nobody else knows yet.
                unsafe { backing.at(offset).write_bytes(JUNK, PAGE) };
            }
        }
        inner.serial += 1;
        let serial = inner.serial;
        inner.regions.push(Region { base, backing, taken, serial });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pa: usize) -> HostPhysAddr {
        HostPhysAddr::from_usize(pa)
    }

    #[test]
    fn a_range_is_taken_once_and_given_back_exactly() {
        let regions = HostRegions::new(ARENA_BASE + PAGE);
        assert!(regions.take(at(0x8000_0000), 0x4000));
        for (base, size) in
            [(0x8000_3000, 0x1000), (0x7fff_f000, 0x2000), (0x1000, 0), (0x1800, 0x1000)]
        {
            assert!(!regions.take(at(base), size), "{base:#x}");
        }
        assert!(!regions.take(at(ARENA_BASE), PAGE));
        assert!(!regions.take(at(usize::MAX - PAGE + 1), PAGE));
        let serial = regions.serial(at(0x8000_3fff));
        let va = regions.phys_to_virt(at(0x8000_3fff)).unwrap();
        assert_eq!(regions.virt_to_phys(va), Some(at(0x8000_3fff)));
        regions.give_back(at(0x8000_0000), 0x4000);
        regions.assert_balanced();
        regions.fail_after(2);
        assert!(regions.take(at(0x8000_0000), 0x4000));
        assert!(!regions.take(at(0x9000_0000), 0x4000));
        assert_ne!(regions.serial(at(0x8000_3fff)), serial);
    }

    #[test]
    #[should_panic = "but not taken so"]
    fn a_range_given_back_with_another_size_is_caught() {
        let regions = HostRegions::new(ARENA_BASE + PAGE);
        assert!(regions.take(at(0x8000_0000), 0x4000));
        regions.give_back(at(0x8000_0000), 0x2000);
    }

    #[test]
    #[should_panic = "but not taken so"]
    fn device_memory_cannot_be_given_back() {
        let regions = HostRegions::new(ARENA_BASE + PAGE);
        regions.add_device(0x900_0000, PAGE);
        regions.give_back(at(0x900_0000), PAGE);
    }

    #[test]
    #[should_panic = "not given back"]
    fn a_leaked_range_is_caught() {
        let regions = HostRegions::new(ARENA_BASE + PAGE);
        assert!(regions.take(at(0x8000_0000), 0x4000));
        regions.assert_balanced();
    }
}
