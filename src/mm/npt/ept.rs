//! x86 extended page tables (Intel SDM vol. 3C 29.3.2, tables 29-1 to 29-7).

#![forbid(unsafe_code)]

use super::{Entry, MappingFlags, NptFormat, PageSize, barrier, sealed};
use crate::mm::HostPhysAddr;

/// The format of x86 extended page tables.
///
/// Memory is write-back, or uncacheable with [`DEVICE`](MappingFlags::DEVICE) or
/// [`UNCACHED`](MappingFlags::UNCACHED). Execute-only pages and 1 GiB leaves are optional
/// features (`IA32_VMX_EPT_VPID_CAP` bits 0 and 17): where they are missing, the caller does not
/// ask for them.
#[derive(Clone, Copy, Debug)]
pub struct Ept;

/// Read, write and execute, in the bits of [`MappingFlags`].
const RWX: u64 = 0b111;
/// Memory type, bits 5:3: 6 is write-back, 0 uncacheable.
const WRITE_BACK: u64 = 6 << 3;
/// The entry is a leaf above level 0.
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// [`DEVICE`](MappingFlags::DEVICE) and [`UNCACHED`](MappingFlags::UNCACHED), which have one
/// memory type, in the ignored bits 52 and 53.
const SOFTWARE_SHIFT: u32 = 48;
const SOFTWARE: usize = MappingFlags::DEVICE.union(MappingFlags::UNCACHED).bits();

impl sealed::Sealed for Ept {}

impl NptFormat for Ept {
    const NAME: &'static str = "EPT";
    const BREAK_BEFORE_MAKE: bool = false;
    const PA_BITS: u32 = 52;
    const ACCESSED_DIRTY: u64 = ACCESSED | DIRTY;

    #[inline(always)]
    fn leaf(pa: HostPhysAddr, flags: MappingFlags, size: PageSize) -> u64 {
        let attributes = flags.bits() & SOFTWARE;
        (pa.as_usize() as u64 & ADDRESS)
            | (flags.bits() as u64 & RWX)
            | if attributes == 0 { WRITE_BACK } else { (attributes as u64) << SOFTWARE_SHIFT }
            | if size.is_huge() { LARGE } else { 0 }
    }

    #[inline(always)]
    fn table(pa: HostPhysAddr) -> u64 {
        (pa.as_usize() as u64 & ADDRESS) | RWX
    }

    #[inline(always)]
    fn decode(entry: u64, level: usize) -> Entry {
        let pa = HostPhysAddr::from_usize((entry & ADDRESS) as usize);
        // Tables first, by comparing the byte that is the same in all of ours (hardware changes
        // none of its bits; our tables have no high bits and give all permissions). What gives
        // any other permissions is a leaf, with `LARGE` set above level 0.
        if level > 0 && entry & 0xff == RWX {
            Entry::Table(HostPhysAddr::from_usize((entry & !0xfff) as usize))
        } else if entry & RWX == 0 || level > 2 {
            Entry::Absent
        } else {
            let software = (entry >> SOFTWARE_SHIFT) as usize & SOFTWARE;
            let flags = MappingFlags::from_bits_retain((entry & RWX) as usize | software);
            Entry::Leaf { pa, flags }
        }
    }

    /// Execute-only is allowed. Write without read is a misconfiguration (29.3.3.1).
    fn supports(flags: MappingFlags) -> bool {
        super::is_some_access_and_readable_if_writable(flags)
    }

    #[inline(always)]
    fn publish() {
        barrier::x86();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

    /// Table 29-7: bits 2:0 RWX, 5:3 memory type, 6 ignore PAT, 7 page size, 51:12 address.
    #[test]
    fn leaves_and_tables_have_the_bits_of_the_manual() {
        let pa = HostPhysAddr::from_usize;
        let rwx = RW | MappingFlags::EXECUTE | MappingFlags::USER;
        assert_eq!(Ept::leaf(pa(0x1234_5000), rwx, PageSize::Size4K), 0x1234_5037);
        assert_eq!(Ept::leaf(pa(0x4000_0000), RW, PageSize::Size2M), 0x4000_00b3);
        assert_eq!(
            Ept::leaf(pa(0x4000_0000), MappingFlags::EXECUTE, PageSize::Size1G),
            0x4000_00b4
        );
        let device = Ept::leaf(pa(0xfe00_0000), RW | MappingFlags::DEVICE, PageSize::Size4K);
        assert_eq!(device, 0x0010_0000_fe00_0003);
        assert_eq!(Ept::table(pa(0x9000)), 0x9007);
        assert_eq!(Ept::decode(0x9007, 3), Entry::Table(pa(0x9000)));
        assert_eq!(Ept::decode(0x9087, 3), Entry::Absent);
        assert_eq!(Ept::decode(0x9030, 0), Entry::Absent);
    }

    #[test]
    fn accessed_and_dirty_do_not_change_what_an_entry_says() {
        let entry = Ept::leaf(HostPhysAddr::from_usize(0x20_0000), RW, PageSize::Size2M);
        assert_eq!(Ept::decode(entry | Ept::ACCESSED_DIRTY, 1), Ept::decode(entry, 1));
        // Hardware marks tables as accessed, too.
        assert_eq!(Ept::decode(0x9107, 2), Ept::decode(0x9007, 2));
    }

    #[test]
    fn execute_only_is_allowed_and_write_only_is_not() {
        assert!(Ept::supports(MappingFlags::EXECUTE));
        assert!(!Ept::supports(MappingFlags::WRITE));
        assert!(!Ept::supports(MappingFlags::WRITE | MappingFlags::EXECUTE));
        assert!(!Ept::supports(MappingFlags::DEVICE | MappingFlags::USER));
    }
}
