//! Address types. Arithmetic on guest-physical addresses is checked: a guest chooses them.

#![forbid(unsafe_code)]

use core::fmt;

pub use memory_addr::PAGE_SIZE_4K;
/// A host-physical address.
pub type HostPhysAddr = memory_addr::PhysAddr;
/// A host-virtual address.
pub type HostVirtAddr = memory_addr::VirtAddr;

/// A guest-physical address (GPA; the Arm ARM says intermediate physical address, IPA).
///
/// There is no `+`: a sum may overflow, so it is [`checked_add`](Self::checked_add).
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPhysAddr(usize);

impl GuestPhysAddr {
    /// Wraps a number.
    pub const fn from_usize(addr: usize) -> Self {
        Self(addr)
    }

    /// The number.
    pub const fn as_usize(self) -> usize {
        self.0
    }

    /// The address `offset` bytes further, unless that overflows.
    pub const fn checked_add(self, offset: usize) -> Option<Self> {
        match self.0.checked_add(offset) {
            Some(addr) => Some(Self(addr)),
            None => None,
        }
    }

    /// The offset within its 4 KiB page, 0 to 4095.
    pub const fn page_offset(self) -> usize {
        self.0 & (PAGE_SIZE_4K - 1)
    }

    /// The start of its 4 KiB page.
    pub const fn page_base(self) -> Self {
        Self(self.0 & !(PAGE_SIZE_4K - 1))
    }
}

impl From<usize> for GuestPhysAddr {
    fn from(addr: usize) -> Self {
        Self(addr)
    }
}

impl From<GuestPhysAddr> for usize {
    fn from(addr: GuestPhysAddr) -> Self {
        addr.0
    }
}

impl fmt::Debug for GuestPhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPA:{:#x}", self.0)
    }
}

impl fmt::LowerHex for GuestPhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A non-empty, half-open range of guest-physical addresses. Its end is representable: no
/// arithmetic within the range overflows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GpaRange {
    start: usize,
    end: usize,
}

impl GpaRange {
    /// The range `start .. start + size`; none when `size` is 0 or the end overflows.
    pub const fn new(start: GuestPhysAddr, size: usize) -> Option<Self> {
        match start.0.checked_add(size) {
            Some(end) if size > 0 => Some(Self { start: start.0, end }),
            _ => None,
        }
    }

    /// The range `start .. end`; none unless `start < end`.
    pub const fn from_bounds(start: GuestPhysAddr, end: GuestPhysAddr) -> Option<Self> {
        if start.0 < end.0 { Some(Self { start: start.0, end: end.0 }) } else { None }
    }

    /// The first address.
    pub const fn start(self) -> GuestPhysAddr {
        GuestPhysAddr(self.start)
    }

    /// The address after the last one.
    pub const fn end(self) -> GuestPhysAddr {
        GuestPhysAddr(self.end)
    }

    /// The length in bytes, at least 1.
    pub const fn size(self) -> usize {
        self.end - self.start
    }

    /// Whether `addr` lies in the range.
    pub const fn contains(self, addr: GuestPhysAddr) -> bool {
        self.start <= addr.0 && addr.0 < self.end
    }

    /// Whether `other` lies wholly in the range.
    pub const fn contains_range(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share an address.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What the two share.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        Self::from_bounds(GuestPhysAddr(start), GuestPhysAddr(end))
    }

    /// Whether both ends are multiples of `align`, a power of two.
    pub const fn is_aligned(self, align: usize) -> bool {
        (self.start | self.end) & (align - 1) == 0
    }

    /// The smallest range of whole 4 KiB pages that covers every byte; none when its end would
    /// overflow.
    pub const fn page_cover(self) -> Option<Self> {
        let start = self.start & !(PAGE_SIZE_4K - 1);
        match self.end.checked_next_multiple_of(PAGE_SIZE_4K) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }
}

impl fmt::Debug for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPA:{:#x}..{:#x}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(start: usize, size: usize) -> Option<GpaRange> {
        GpaRange::new(GuestPhysAddr(start), size)
    }

    #[test]
    fn a_range_is_never_empty_and_never_overflows() {
        assert_eq!(range(0x1000, 0), None);
        assert_eq!(range(usize::MAX, 2), None);
        assert_eq!(range(usize::MAX, 1), None);
        assert_eq!(range(usize::MAX - 1, 1).map(GpaRange::size), Some(1));
        assert_eq!(GpaRange::from_bounds(GuestPhysAddr(5), GuestPhysAddr(5)), None);
        assert_eq!(range(usize::MAX - 1, 1).and_then(GpaRange::page_cover), None);
    }

    #[test]
    fn a_page_cover_holds_every_byte() {
        let cover = range(0x1ff8, 0x10).and_then(GpaRange::page_cover);
        assert_eq!(cover, range(0x1000, 0x2000));
    }
}
