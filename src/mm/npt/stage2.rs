//! Arm stage 2 with the 4 KiB granule (DDI 0487 D8.3: VMSAv8-64 descriptor formats, stage 2
//! attribute fields).

#![forbid(unsafe_code)]

use super::{Entry, MappingFlags, NptFormat, PageSize, barrier, sealed};
use crate::mm::HostPhysAddr;

/// The format of Arm stage 2 tables.
///
/// Memory is Normal write-back, Normal non-cacheable with [`UNCACHED`](MappingFlags::UNCACHED),
/// or Device-nGnRE with [`DEVICE`](MappingFlags::DEVICE) (which wins over `UNCACHED`); always
/// inner shareable. The access flag is set from the start, and hardware dirty management (DBM)
/// is not used.
#[derive(Clone, Copy, Debug)]
pub struct Stage2;

const VALID: u64 = 1 << 0;
/// A table above level 0, a page at level 0; clear in a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// MemAttr[3:0], bits 5:2, without FEAT_S2FWB: 0b1111 Normal write-back, 0b0101 Normal
/// non-cacheable, 0b0001 Device-nGnRE.
const NORMAL_WRITE_BACK: u64 = 0b1111 << 2;
const NORMAL_NON_CACHEABLE: u64 = 0b0101 << 2;
const DEVICE_NGNRE: u64 = 0b0001 << 2;
/// S2AP[1:0], bits 7:6: write, read.
const S2AP_SHIFT: u32 = 6;
const READ_WRITE: usize = MappingFlags::READ.union(MappingFlags::WRITE).bits();
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Bits 54 and up: XN[1] (with FEAT_XNX and XN[0] clear: no execution at EL1 and EL0), then, in
/// the bits 57:56 reserved for software, [`DEVICE`](MappingFlags::DEVICE) and
/// [`UNCACHED`](MappingFlags::UNCACHED). Shifted down by 52 they are the bits of
/// [`MappingFlags`], XN inverted.
const HIGH_SHIFT: u32 = 52;
const EXECUTE: usize = MappingFlags::EXECUTE.bits();
const SOFTWARE: usize = MappingFlags::DEVICE.union(MappingFlags::UNCACHED).bits();

impl sealed::Sealed for Stage2 {}

impl NptFormat for Stage2 {
    const NAME: &'static str = "stage 2";
    const BREAK_BEFORE_MAKE: bool = true;
    const PA_BITS: u32 = 48;
    const ACCESSED_DIRTY: u64 = ACCESS_FLAG;

    #[inline(always)]
    fn leaf(pa: HostPhysAddr, flags: MappingFlags, size: PageSize) -> u64 {
        let memory = if flags.contains(MappingFlags::DEVICE) {
            DEVICE_NGNRE
        } else if flags.contains(MappingFlags::UNCACHED) {
            NORMAL_NON_CACHEABLE
        } else {
            NORMAL_WRITE_BACK
        };
        let high = (flags.bits() & (EXECUTE | SOFTWARE)) ^ EXECUTE;
        (pa.as_usize() as u64 & ADDRESS)
            | VALID
            | if size.is_huge() { 0 } else { TABLE_OR_PAGE }
            | memory
            | ((flags.bits() & READ_WRITE) as u64) << S2AP_SHIFT
            | INNER_SHAREABLE
            | ACCESS_FLAG
            | (high as u64) << HIGH_SHIFT
    }

    #[inline(always)]
    fn table(pa: HostPhysAddr) -> u64 {
        (pa.as_usize() as u64 & ADDRESS) | TABLE_OR_PAGE | VALID
    }

    #[inline(always)]
    fn decode(entry: u64, level: usize) -> Entry {
        let pa = HostPhysAddr::from_usize((entry & ADDRESS) as usize);
        // Tables first, by comparing the byte that is the same in all of ours, which have no high
        // bits either.
        if level > 0 && entry & 0xff == TABLE_OR_PAGE | VALID {
            Entry::Table(HostPhysAddr::from_usize((entry & !0xfff) as usize))
        } else if entry & VALID == 0 {
            Entry::Absent
        } else if (entry & TABLE_OR_PAGE != 0) != (level == 0) || level > 2 {
            // A block at the last level, or one of 512 GiB: reserved encodings.
            Entry::Absent
        } else {
            let low = (entry >> S2AP_SHIFT) as usize & READ_WRITE;
            let high = (entry >> HIGH_SHIFT) as usize & (EXECUTE | SOFTWARE);
            let flags = MappingFlags::from_bits_retain(low | (high ^ EXECUTE));
            Entry::Leaf { pa, flags }
        }
    }

    /// The architecture could do execute without read, and write without read; the crate demands
    /// read with either, as guests on Arm fetch literals from their code and a write-only page
    /// breaks atomics.
    fn supports(flags: MappingFlags) -> bool {
        super::is_some_access_and_readable_if_writable(flags) && flags.contains(MappingFlags::READ)
    }

    #[inline(always)]
    fn publish() {
        barrier::arm();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

    /// D8.3: bits 1:0 type, 5:2 MemAttr, 7:6 S2AP, 9:8 SH, 10 AF, 47:12 address, 54:53 XN.
    #[test]
    fn leaves_and_tables_have_the_bits_of_the_manual() {
        let pa = HostPhysAddr::from_usize;
        let rwx = RW | MappingFlags::EXECUTE | MappingFlags::USER;
        assert_eq!(Stage2::leaf(pa(0x8020_0000), rwx, PageSize::Size4K), 0x8020_07ff);
        assert_eq!(Stage2::leaf(pa(0x8020_0000), rwx, PageSize::Size2M), 0x8020_07fd);
        let read_only = Stage2::leaf(pa(0x4000_0000), MappingFlags::READ, PageSize::Size1G);
        assert_eq!(read_only, 0x0040_0000_4000_077d);
        let device = Stage2::leaf(pa(0x0900_0000), RW | MappingFlags::DEVICE, PageSize::Size4K);
        assert_eq!(device, 0x0140_0000_0900_07c7);
        let uncached = Stage2::leaf(pa(0x1000), RW | MappingFlags::UNCACHED, PageSize::Size4K);
        assert_eq!(uncached, 0x0240_0000_0000_17d7);
        assert_eq!(Stage2::table(pa(0x9000)), 0x9003);
        assert_eq!(Stage2::decode(0x9003, 1), Entry::Table(pa(0x9000)));
        assert_eq!(Stage2::decode(0x9001, 0), Entry::Absent);
        assert_eq!(Stage2::decode(0x9001, 3), Entry::Absent);
        assert_eq!(Stage2::decode(0x9002, 1), Entry::Absent);
    }

    #[test]
    fn execution_and_writing_need_reading() {
        assert!(Stage2::supports(MappingFlags::READ));
        assert!(Stage2::supports(RW | MappingFlags::EXECUTE));
        assert!(!Stage2::supports(MappingFlags::EXECUTE));
        assert!(!Stage2::supports(MappingFlags::WRITE));
        assert!(!Stage2::supports(MappingFlags::empty()));
    }
}
