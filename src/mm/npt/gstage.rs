//! RISC-V G-stage, Sv39x4 and Sv48x4 (Privileged 1.13 §18.5.1; entry format §12.4.1).

#![forbid(unsafe_code)]

use super::{Entry, MappingFlags, NptFormat, PageSize, barrier, sealed};
use crate::mm::HostPhysAddr;

/// The format of RISC-V G-stage tables.
///
/// Every leaf has U set (G-stage accesses count as user accesses, §18.5.1), and A and D, so that
/// harts without Svadu do not fault on them. Without Svpbmt an entry has no memory type: the
/// platform's physical memory attributes decide, and [`DEVICE`](MappingFlags::DEVICE) and
/// [`UNCACHED`](MappingFlags::UNCACHED) are merely remembered, in the software bits 8 and 9.
#[derive(Clone, Copy, Debug)]
pub struct GStage;

const VALID: u64 = 1 << 0;
/// R, W, X in bits 3:1: the bits of [`MappingFlags`] shifted up by one.
const RWX: usize = super::PERMISSIONS.bits();
const RWX_SHIFT: u32 = 1;
const USER: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
/// Bits 9:8, RSW.
const SOFTWARE_SHIFT: u32 = 4;
const SOFTWARE: usize = MappingFlags::DEVICE.union(MappingFlags::UNCACHED).bits();
/// The page number, bits 53:10, of a 56-bit address.
const PPN: u64 = 0x003f_ffff_ffff_fc00;
const PPN_SHIFT: u32 = 2;

impl sealed::Sealed for GStage {}

impl NptFormat for GStage {
    const NAME: &'static str = "G-stage";
    const BREAK_BEFORE_MAKE: bool = false;
    const PA_BITS: u32 = 56;
    const ACCESSED_DIRTY: u64 = ACCESSED | DIRTY;

    #[inline(always)]
    fn leaf(pa: HostPhysAddr, flags: MappingFlags, _size: PageSize) -> u64 {
        Self::address(pa)
            | ((flags.bits() & RWX) as u64) << RWX_SHIFT
            | ((flags.bits() & SOFTWARE) as u64) << SOFTWARE_SHIFT
            | (VALID | USER | ACCESSED | DIRTY)
    }

    #[inline(always)]
    fn table(pa: HostPhysAddr) -> u64 {
        Self::address(pa) | VALID
    }

    #[inline(always)]
    fn decode(entry: u64, level: usize) -> Entry {
        let pa = HostPhysAddr::from_usize(((entry & PPN) << PPN_SHIFT) as usize);
        let permissions = (entry >> RWX_SHIFT) as usize & RWX;
        // Tables first, by comparing one byte: U, A and D are reserved in them, and ours have no
        // high bits.
        if level > 0 && entry & 0xff == VALID {
            Entry::Table(HostPhysAddr::from_usize(((entry & !0x3ff) << PPN_SHIFT) as usize))
        } else if entry & VALID == 0 {
            Entry::Absent
        } else if permissions == 0 || level > 2 {
            // A pointer at the last level faults (§12.3.2); 512 GiB leaves are not used.
            Entry::Absent
        } else {
            let software = (entry >> SOFTWARE_SHIFT) as usize & SOFTWARE;
            let flags = MappingFlags::from_bits_retain(permissions | software);
            Entry::Leaf { pa, flags }
        }
    }

    /// Execute-only is allowed. Write without read is reserved (§12.4.1).
    fn supports(flags: MappingFlags) -> bool {
        super::is_some_access_and_readable_if_writable(flags)
    }

    #[inline(always)]
    fn publish() {
        barrier::riscv();
    }
}

impl GStage {
    #[inline(always)]
    const fn address(pa: HostPhysAddr) -> u64 {
        (pa.as_usize() as u64 >> PPN_SHIFT) & PPN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

    /// §12.4.1: bits 0 V, 3:1 XWR, 4 U, 5 G, 6 A, 7 D, 9:8 RSW, 53:10 PPN.
    #[test]
    fn leaves_and_tables_have_the_bits_of_the_manual() {
        let pa = HostPhysAddr::from_usize;
        let rwx = RW | MappingFlags::EXECUTE;
        assert_eq!(GStage::leaf(pa(0x8020_0000), rwx, PageSize::Size4K), 0x2008_00df);
        assert_eq!(GStage::leaf(pa(0x8020_0000), rwx, PageSize::Size2M), 0x2008_00df);
        assert_eq!(GStage::leaf(pa(0x1000), MappingFlags::EXECUTE, PageSize::Size4K), 0x4d9);
        let device = GStage::leaf(pa(0x1000_0000), RW | MappingFlags::DEVICE, PageSize::Size4K);
        assert_eq!(device, 0x0400_01d7);
        let uncached = GStage::leaf(pa(0x1000), RW | MappingFlags::UNCACHED, PageSize::Size4K);
        assert_eq!(uncached, 0x6d7);
        assert_eq!(GStage::table(pa(0x9000)), 0x2401);
        assert_eq!(GStage::decode(0x2401, 1), Entry::Table(pa(0x9000)));
        assert_eq!(GStage::decode(0x2401, 0), Entry::Absent);
        assert_eq!(GStage::decode(0x24de, 0), Entry::Absent);
    }

    #[test]
    fn a_write_only_leaf_is_refused_and_never_walked_as_a_table() {
        assert!(!GStage::supports(MappingFlags::WRITE));
        assert!(!GStage::supports(MappingFlags::empty()));
        assert!(GStage::supports(MappingFlags::EXECUTE));
        assert!(matches!(GStage::decode(0x24d5, 1), Entry::Leaf { .. }));
    }
}
