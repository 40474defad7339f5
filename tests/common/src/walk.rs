//! The hardware's view of a nested page table: an own reading of the three manuals, so that an
//! error in the crate's formats cannot hide behind the same error here.
//!
//! What no hardware may meet (a reserved bit, a misconfigured entry) panics.

use axvm::mm::MappingFlags;

/// The formats, as hardware knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HwFormat {
    /// Intel SDM vol. 3C 30.3.
    Ept,
    /// DDI 0487 D8.3, 4 KiB granule, without FEAT_XNX.
    Stage2,
    /// RISC-V Privileged 1.13 §18.5.
    GStage,
}

/// The shape of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The count of levels.
    pub levels: usize,
    /// The count of entries in the root, all concatenated tables together.
    pub root_entries: usize,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HwEntry {
    /// Nothing.
    Absent,
    /// The table of the next level is at this address.
    Table(usize),
    /// Memory from this address on.
    Leaf {
        /// The address.
        pa: usize,
        /// The permissions, and whether it is mapped as a device.
        flags: MappingFlags,
    },
}

/// The size that one entry of a level stands for; level 0 has 4 KiB leaves.
pub const fn span(level: usize) -> usize {
    1 << (12 + 9 * level)
}

impl Shape {
    /// The index of the entry for `gpa` at `level`; none when the root does not reach it.
    pub fn index(self, gpa: usize, level: usize) -> Option<usize> {
        let index = gpa.checked_shr(12 + 9 * level as u32).unwrap_or(0);
        if level + 1 == self.levels {
            (index < self.root_entries).then_some(index)
        } else {
            Some(index & 511)
        }
    }
}

impl HwFormat {
    /// Whether an entry must be absent, and flushed, between two valid contents (DDI 0487 D8.16).
    pub fn needs_break_before_make(self) -> bool {
        self == Self::Stage2
    }

    /// Whether a fault for want of a permission forgets the cached translation, so that the
    /// access is tried with the table's (Intel SDM vol. 3C 30.4.3.3).
    pub fn rewalks_on_denial(self) -> bool {
        self == Self::Ept
    }

    /// Reads an entry of `level`.
    #[track_caller]
    pub fn decode(self, entry: u64, level: usize) -> HwEntry {
        let found = match self {
            Self::Ept => ept(entry, level),
            Self::Stage2 => stage2(entry, level),
            Self::GStage => gstage(entry, level),
        };
        if let HwEntry::Leaf { pa, .. } = found {
            valid(level <= 2, "no leaf may be here", entry, level);
            valid(pa.is_multiple_of(span(level)), "the leaf is misaligned", entry, level);
        }
        if let HwEntry::Table(_) = found {
            valid(level > 0, "no table may be here", entry, level);
        }
        found
    }
}

#[track_caller]
fn valid(holds: bool, complaint: &str, entry: u64, level: usize) {
    assert!(holds, "hardware: entry {entry:#x} at level {level}: {complaint}");
}

fn flags(read: bool, write: bool, execute: bool, device: bool) -> MappingFlags {
    let mut flags = MappingFlags::empty();
    flags.set(MappingFlags::READ, read);
    flags.set(MappingFlags::WRITE, write);
    flags.set(MappingFlags::EXECUTE, execute);
    flags.set(MappingFlags::DEVICE, device);
    flags
}

fn bit(entry: u64, bit: u32) -> bool {
    entry >> bit & 1 != 0
}

fn ept(entry: u64, level: usize) -> HwEntry {
    let (read, write, execute) = (bit(entry, 0), bit(entry, 1), bit(entry, 2));
    if !(read || write || execute) {
        return HwEntry::Absent;
    }
    valid(read || !write, "writable, not readable", entry, level);
    let pa = (entry & 0x000f_ffff_ffff_f000) as usize;
    if level == 0 || bit(entry, 7) {
        let memory_type = entry >> 3 & 7;
        valid(matches!(memory_type, 0 | 1 | 4 | 5 | 6), "reserved memory type", entry, level);
        return HwEntry::Leaf { pa, flags: flags(read, write, execute, memory_type == 0) };
    }
    valid(entry & 0xf8 == 0, "reserved bits 7:3 of a table entry", entry, level);
    HwEntry::Table(pa)
}

fn stage2(entry: u64, level: usize) -> HwEntry {
    if !bit(entry, 0) {
        return HwEntry::Absent;
    }
    let pa = (entry & 0x0000_ffff_ffff_f000) as usize;
    match (bit(entry, 1), level) {
        (false, 0) => return HwEntry::Absent,
        (true, 1..) => return HwEntry::Table(pa),
        _ => {}
    }
    valid(bit(entry, 10), "access flag clear", entry, level);
    valid(entry >> 8 & 3 != 1, "shareability is reserved", entry, level);
    valid(!bit(entry, 53), "XN[0] is reserved without FEAT_XNX", entry, level);
    let device = entry >> 4 & 3 == 0;
    HwEntry::Leaf { pa, flags: flags(bit(entry, 6), bit(entry, 7), !bit(entry, 54), device) }
}

fn gstage(entry: u64, level: usize) -> HwEntry {
    if !bit(entry, 0) {
        return HwEntry::Absent;
    }
    let (read, write, execute) = (bit(entry, 1), bit(entry, 2), bit(entry, 3));
    valid(read || !write, "writable, not readable", entry, level);
    valid(entry >> 54 & 0x7f == 0 && !bit(entry, 63), "reserved high bits", entry, level);
    let pa = ((entry >> 10 & ((1 << 44) - 1)) << 12) as usize;
    let memory_type = entry >> 61 & 3;
    if !(read || execute) {
        valid(entry & 0xd0 == 0, "D, A or U set in a table entry", entry, level);
        valid(memory_type == 0, "memory type set in a table entry", entry, level);
        return HwEntry::Table(pa);
    }
    valid(memory_type != 3, "reserved memory type", entry, level);
    valid(bit(entry, 4), "U clear: G-stage accesses are user accesses", entry, level);
    valid(bit(entry, 6), "A clear", entry, level);
    valid(bit(entry, 7) || !write, "D clear in a writable leaf", entry, level);
    HwEntry::Leaf { pa, flags: flags(read, write, execute, memory_type == 2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_mean_what_the_manuals_say() {
        let rw = MappingFlags::READ | MappingFlags::WRITE;
        for (format, entry, level, expected) in [
            (HwFormat::Ept, 0x8000_0000 | 6 << 3, 0, HwEntry::Absent),
            (HwFormat::Ept, 0x5007, 2, HwEntry::Table(0x5000)),
            (
                HwFormat::Ept,
                0x20_0000 | 1 << 7 | 6 << 3 | 3,
                1,
                HwEntry::Leaf { pa: 0x20_0000, flags: rw },
            ),
            (
                HwFormat::Ept,
                0x7004 | 6 << 3,
                0,
                HwEntry::Leaf { pa: 0x7000, flags: MappingFlags::EXECUTE },
            ),
            (HwFormat::Stage2, 0x5003, 1, HwEntry::Table(0x5000)),
            (
                HwFormat::Stage2,
                1 << 54 | 0x5000 | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2 | 3,
                0,
                HwEntry::Leaf { pa: 0x5000, flags: rw },
            ),
            (
                HwFormat::Stage2,
                0x20_0000 | 1 << 10 | 1 << 6 | 1,
                1,
                HwEntry::Leaf {
                    pa: 0x20_0000,
                    flags: MappingFlags::READ | MappingFlags::EXECUTE | MappingFlags::DEVICE,
                },
            ),
            (HwFormat::GStage, 5 << 10 | 1, 1, HwEntry::Table(0x5000)),
            (HwFormat::GStage, 5 << 10 | 0xd7, 0, HwEntry::Leaf { pa: 0x5000, flags: rw }),
        ] {
            assert_eq!(format.decode(entry, level), expected, "{format:?} {entry:#x}");
        }
    }

    #[test]
    #[should_panic = "writable, not readable"]
    fn a_writable_unreadable_riscv_entry_is_no_table() {
        HwFormat::GStage.decode(5 << 10 | 0xd5, 1);
    }

    #[test]
    #[should_panic = "misaligned"]
    fn a_misaligned_huge_leaf_is_refused() {
        HwFormat::GStage.decode(5 << 10 | 0xd7, 1);
    }
}
