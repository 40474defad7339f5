//! The shape of a nested page table.

#![forbid(unsafe_code)]

use super::shift;
use crate::mm::{GpaRange, GuestPhysAddr, PAGE_SIZE_4K};

/// How many levels a nested page table has and how large its root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    levels: u8,
    input_bits: u8,
    root_entries: usize,
}

impl Geometry {
    /// x86 EPT with a page-walk length of 4: 48-bit addresses (SDM vol. 3C 29.3.2).
    pub const EPT: Self = Self::new(4, 48);
    /// RISC-V Sv39x4: 41-bit addresses, a root of 2048 entries (Privileged 1.13 §18.5.1).
    pub const SV39X4: Self = Self::new(3, 41);
    /// RISC-V Sv48x4: 50-bit addresses, a root of 2048 entries (Privileged 1.13 §18.5.1).
    pub const SV48X4: Self = Self::new(4, 50);

    /// Arm stage 2 with the 4 KiB granule, for intermediate physical addresses of `ipa_bits`
    /// bits, 39 to 48; none for other sizes.
    ///
    /// Up to 43 bits the walk starts at the architecture's level 1 (`levels()` is 3) with up to
    /// 16 concatenated tables as the root, above at level 0 (DDI 0487 D8.2: initial lookup
    /// level, concatenated translation tables).
    pub const fn stage2(ipa_bits: u32) -> Option<Self> {
        match ipa_bits {
            39..=43 => Some(Self::new(3, ipa_bits as u8)),
            44..=48 => Some(Self::new(4, ipa_bits as u8)),
            _ => None,
        }
    }

    const fn new(levels: u8, input_bits: u8) -> Self {
        let root_entries = 1usize << (input_bits as usize - shift(levels as usize - 1));
        Self { levels, input_bits, root_entries }
    }

    /// The levels of tables, 3 or 4.
    pub const fn levels(self) -> usize {
        self.levels as usize
    }

    /// The entries of the root, a power of two from 32 to 8192.
    pub const fn root_entries(self) -> usize {
        self.root_entries
    }

    /// The size of the root in bytes, whole frames. It is aligned to that, too.
    pub const fn root_size(self) -> usize {
        self.root_frames() * PAGE_SIZE_4K
    }

    /// The 4 KiB frames of the root, 1 to 16.
    pub const fn root_frames(self) -> usize {
        (self.root_entries() * size_of::<u64>()).div_ceil(PAGE_SIZE_4K)
    }

    /// The width of the guest-physical addresses that it translates.
    pub const fn input_bits(self) -> u32 {
        self.input_bits as u32
    }

    /// Every address that it translates.
    pub const fn input_range(self) -> GpaRange {
        let end = GuestPhysAddr::from_usize(1 << self.input_bits);
        match GpaRange::from_bounds(GuestPhysAddr::from_usize(0), end) {
            Some(range) => range,
            None => unreachable!(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(geometry: Geometry) -> (usize, usize, usize, u32) {
        (geometry.levels(), geometry.root_entries(), geometry.root_frames(), geometry.input_bits())
    }

    #[test]
    fn roots_have_the_sizes_of_the_manuals() {
        assert_eq!(shape(Geometry::EPT), (4, 512, 1, 48));
        assert_eq!(shape(Geometry::SV39X4), (3, 2048, 4, 41));
        assert_eq!(shape(Geometry::SV48X4), (4, 2048, 4, 50));
        assert_eq!(Geometry::SV39X4.root_size(), 0x4000);
        let arm = |bits| Geometry::stage2(bits).map(shape);
        assert_eq!(arm(38), None);
        assert_eq!(arm(39), Some((3, 512, 1, 39)));
        assert_eq!(arm(40), Some((3, 1024, 2, 40)));
        assert_eq!(arm(42), Some((3, 4096, 8, 42)));
        assert_eq!(arm(43), Some((3, 8192, 16, 43)));
        assert_eq!(arm(44), Some((4, 32, 1, 44)));
        assert_eq!(arm(48), Some((4, 512, 1, 48)));
        assert_eq!(arm(49), None);
    }
}
