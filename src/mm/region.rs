//! The regions of an address space: what belongs where, whether it is mapped yet or not.

#![forbid(unsafe_code)]

use alloc::vec::Vec;

use axerrno::{AxError, AxResult};
use page_table_multiarch::{MappingFlags, PageSize};

use super::{GpaRange, GuestPhysAddr, HostPhysAddr, npt::PERMISSIONS};

/// Where a region's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// Host memory that stays the host's; the address behind the region's first byte.
    Linear(HostPhysAddr),
    /// Host memory taken through the HAL, at the guest's address; the index of the taking.
    Taken(usize),
    /// Frames of the host's allocator, all mapped from the start.
    Eager,
    /// Frames of the host's allocator, mapped at first use in leaves of at most this size.
    Lazy(PageSize),
}

impl Backing {
    /// Whether the frames behind the leaves are the address space's to free.
    pub(super) const fn owns_frames(self) -> bool {
        matches!(self, Self::Eager | Self::Lazy(_))
    }
}

/// Who made a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The VM's configuration: a reset brings it back.
    Config,
    /// The host, later: a reset removes it.
    Host,
}

/// A range of whole pages with one backing and one set of permissions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Region {
    pub(super) range: GpaRange,
    pub(super) flags: MappingFlags,
    pub(super) backing: Backing,
    pub(super) origin: Origin,
}

impl Region {
    /// The part of the region inside `range`.
    fn slice(&self, range: GpaRange) -> Option<Self> {
        let part = self.range.intersection(range)?;
        let backing = match self.backing {
            Backing::Linear(hpa) => {
                let offset = part.start().as_usize() - self.range.start().as_usize();
                Backing::Linear(HostPhysAddr::from(hpa.as_usize() + offset))
            }
            other => other,
        };
        Some(Self { range: part, backing, ..*self })
    }
}

/// Regions in order of address; none overlaps another.
#[derive(Default)]
pub(super) struct Regions(Vec<Region>);

impl Regions {
    /// The region that holds `gpa`.
    #[inline]
    pub(super) fn find(&self, gpa: GuestPhysAddr) -> Option<&Region> {
        let after = self.0.partition_point(|region| region.range.start() <= gpa);
        self.0.get(after.checked_sub(1)?).filter(|region| gpa < region.range.end())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }

    /// The parts of regions that lie in `range`, in order.
    pub(super) fn parts(&self, range: GpaRange) -> impl Iterator<Item = Region> {
        let first = self.0.partition_point(|region| region.range.end() <= range.start());
        self.0.iter().skip(first).map_while(move |region| region.slice(range))
    }

    /// Whether every byte of `range` is in a region.
    pub(super) fn cover(&self, range: GpaRange) -> bool {
        let mut next = range.start();
        for part in self.parts(range) {
            if part.range.start() != next {
                return false;
            }
            next = part.range.end();
        }
        next == range.end()
    }

    /// The parts of `range` that are in no region, in order.
    pub(super) fn holes(&self, range: GpaRange) -> impl Iterator<Item = GpaRange> {
        let mut parts = self.parts(range);
        let mut next = range.start();
        let mut done = false;
        core::iter::from_fn(move || {
            while !done {
                let part = parts.next();
                let end = part.as_ref().map_or(range.end(), |part| part.range.start());
                let hole = GpaRange::from_bounds(next, end);
                match part {
                    Some(part) => next = part.range.end(),
                    None => done = true,
                }
                if hole.is_some() {
                    return hole;
                }
            }
            None
        })
    }

    /// Makes room for `more` regions, so that as many calls that add one cannot fail.
    pub(super) fn reserve(&mut self, more: usize) -> AxResult {
        self.0.try_reserve(more).map_err(|_| AxError::NoMemory)
    }

    /// Adds a region.
    ///
    /// # Errors
    /// `AlreadyExists` when it overlaps one, `NoMemory`.
    pub(super) fn insert(&mut self, region: Region) -> AxResult {
        if self.parts(region.range).next().is_some() {
            return Err(AxError::AlreadyExists);
        }
        self.reserve(1)?;
        let at = self.0.partition_point(|other| other.range.start() < region.range.start());
        self.0.insert(at, region);
        Ok(())
    }

    /// Removes `range` from all regions. Needs [`reserve`](Self::reserve)`(1)`.
    pub(super) fn remove(&mut self, range: GpaRange) {
        self.replace(range, |_| None);
    }

    /// Sets the permissions of `range`; as in the page table, the memory type stays. Needs
    /// [`reserve`](Self::reserve)`(2)`.
    pub(super) fn protect(&mut self, range: GpaRange, flags: MappingFlags) {
        self.replace(range, |part| {
            let flags = (part.flags - PERMISSIONS) | (flags & PERMISSIONS);
            Some(Region { flags, ..part })
        });
    }

    /// Cuts regions at the bounds of `range` and replaces each part inside.
    fn replace(&mut self, range: GpaRange, with: impl Fn(Region) -> Option<Region>) {
        let mut index = 0;
        while let Some(region) = self.0.get(index).copied() {
            if region.range.start() >= range.end() {
                break;
            }
            let Some(part) = region.slice(range) else {
                index += 1;
                continue;
            };
            let before = GpaRange::from_bounds(region.range.start(), part.range.start())
                .and_then(|head| region.slice(head));
            let after = GpaRange::from_bounds(part.range.end(), region.range.end())
                .and_then(|tail| region.slice(tail));
            self.0.remove(index);
            for piece in [before, with(part), after].into_iter().flatten() {
                self.0.insert(index, piece);
                index += 1;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn range(start: usize, size: usize) -> GpaRange {
        GpaRange::new(start.into(), size).unwrap()
    }

    fn region(start: usize, size: usize) -> Region {
        Region {
            range: range(start, size),
            flags: MappingFlags::READ,
            backing: Backing::Linear((start + 0x10_0000).into()),
            origin: Origin::Host,
        }
    }

    #[test]
    fn a_hole_cut_out_of_a_region_leaves_both_sides_where_they_were() {
        let mut regions = Regions::default();
        regions.insert(region(0x1000, 0x5000)).unwrap();
        assert_eq!(regions.insert(region(0x5000, 0x1000)), Err(AxError::AlreadyExists));
        regions.remove(range(0x2000, 0x2000));
        let left: Vec<_> = regions.iter().copied().collect();
        assert_eq!(left, [region(0x1000, 0x1000), region(0x4000, 0x2000)]);
        assert!(regions.find(0x3fff.into()).is_none());
        assert_eq!(regions.find(0x4000.into()).unwrap().range, range(0x4000, 0x2000));
        let holes: Vec<_> = regions.holes(range(0, 0x7000)).collect();
        assert_eq!(holes, [range(0, 0x1000), range(0x2000, 0x2000), range(0x6000, 0x1000)]);
        assert!(!regions.cover(range(0x1000, 0x2000)));
        assert!(regions.cover(range(0x4000, 0x2000)));
    }

    #[test]
    fn protecting_a_middle_changes_only_the_middle() {
        let mut regions = Regions::default();
        regions.insert(region(0x1000, 0x3000)).unwrap();
        regions.protect(range(0x2000, 0x1000), MappingFlags::WRITE);
        let flags: Vec<_> = regions.iter().map(|region| region.flags).collect();
        assert_eq!(flags, [MappingFlags::READ, MappingFlags::WRITE, MappingFlags::READ]);
        assert!(regions.cover(range(0x1000, 0x3000)));
    }
}
