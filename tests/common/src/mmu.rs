//! A guest's accesses to memory: the walk and the TLB of the physical CPU that it runs on.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use axvm::{
    mm::{GuestPhysAddr, HostPhysAddr, MappingFlags},
    vcpu::{Access, AccessWidth},
};

use crate::{
    HwFormat, Machine,
    soft_tlb::{Cached, Tag, Tlb},
    walk::{HwEntry, Shape, span},
};

/// The nested page table that a guest runs on, as the hardware was told of it.
#[derive(Clone, Copy)]
pub struct Mmu<'m> {
    /// Whose memory and TLBs.
    pub machine: &'m Machine,
    /// How the entries are read.
    pub format: HwFormat,
    /// How the table is built.
    pub shape: Shape,
    /// The VMID.
    pub vmid: u16,
    /// The root of the table.
    pub root: HostPhysAddr,
    /// The physical CPU.
    pub pcpu: usize,
}

impl Mmu<'_> {
    /// Loads; None is a fault.
    #[track_caller]
    pub fn load(&self, gpa: GuestPhysAddr, width: AccessWidth, access: Access) -> Option<u64> {
        self.reach(gpa, width, access, |at| match at {
            Cell::Byte(cell) => cell.load(Ordering::SeqCst).into(),
            Cell::Word(cell) => cell.load(Ordering::SeqCst).into(),
            Cell::Dword(cell) => cell.load(Ordering::SeqCst).into(),
            Cell::Qword(cell) => cell.load(Ordering::SeqCst),
        })
    }

    /// Stores; None is a fault.
    #[track_caller]
    pub fn store(&self, gpa: GuestPhysAddr, width: AccessWidth, value: u64) -> Option<()> {
        self.reach(gpa, width, Access::Write, |at| match at {
            Cell::Byte(cell) => cell.store(value as u8, Ordering::SeqCst),
            Cell::Word(cell) => cell.store(value as u16, Ordering::SeqCst),
            Cell::Dword(cell) => cell.store(value as u32, Ordering::SeqCst),
            Cell::Qword(cell) => cell.store(value, Ordering::SeqCst),
        })
    }

    /// What the table itself says of a page, past the TLB: address and permissions.
    #[track_caller]
    pub fn probe(&self, gpa: GuestPhysAddr) -> Option<(HostPhysAddr, MappingFlags)> {
        let leaf = self.walk(None, gpa.page_base().as_usize())?;
        Some((HostPhysAddr::from_usize(leaf.pa + gpa.page_offset()), leaf.flags))
    }

    #[track_caller]
    fn reach<R>(
        &self,
        gpa: GuestPhysAddr,
        width: AccessWidth,
        access: Access,
        touch: impl FnOnce(Cell<'_>) -> R,
    ) -> Option<R> {
        let offset = gpa.page_offset();
        assert!(
            offset.is_multiple_of(width.size()),
            "testkit: a scripted access at {gpa:?} of {width:?} is misaligned"
        );
        // Held over the access: whoever flushes this TLB waits until it is done.
        let mut tlb = self.machine.tlb().of(self.pcpu);
        let leaf = self.translate(&mut tlb, gpa, access)?;
        let va = self.machine.phys_to_virt(HostPhysAddr::from_usize(leaf.pa + offset));
        let at: *mut u8 = core::ptr::with_exposed_provenance_mut(va.as_usize());
        // SAFETY: the address is backed by memory for as long as its owner is alive, which was
        // checked with the TLB locked; the crate frees a frame only after flushing this TLB. The
        // address is aligned for the width.
        let cell = unsafe {
            match width {
                AccessWidth::Byte => Cell::Byte(AtomicU8::from_ptr(at)),
                AccessWidth::Word => Cell::Word(AtomicU16::from_ptr(at.cast())),
                AccessWidth::Dword => Cell::Dword(AtomicU32::from_ptr(at.cast())),
                AccessWidth::Qword => Cell::Qword(AtomicU64::from_ptr(at.cast())),
            }
        };
        Some(touch(cell))
    }

    fn tag(&self) -> Tag {
        match self.format {
            HwFormat::Ept => Tag::Root(self.root.as_usize()),
            HwFormat::Stage2 | HwFormat::GStage => Tag::Vmid(self.vmid),
        }
    }

    #[track_caller]
    fn translate(&self, tlb: &mut Tlb, gpa: GuestPhysAddr, access: Access) -> Option<Cached> {
        let (gpa, needed) = (gpa.page_base().as_usize(), access.permission());
        let key = (self.tag(), gpa >> 12);
        if tlb.absent.contains(&key) {
            self.machine.tlb().count(true);
            return None;
        }
        if let Some(&leaf) = tlb.leaves.get(&key) {
            self.machine.tlb().count(true);
            self.check_hit(gpa, leaf);
            if leaf.flags.contains(needed) {
                return Some(leaf);
            }
            if !self.format.rewalks_on_denial() {
                return None;
            }
            tlb.leaves.remove(&key);
        }
        self.machine.tlb().count(false);
        let Some(leaf) = self.walk(Some(tlb), gpa) else {
            if self.machine.tlb().caches_negative() {
                tlb.absent.insert(key);
            }
            return None;
        };
        tlb.leaves.insert(key, leaf);
        leaf.flags.contains(needed).then_some(leaf)
    }

    /// Panics when no hardware should have met this hit.
    #[track_caller]
    fn check_hit(&self, gpa: usize, leaf: Cached) {
        let now = self.machine.owner(HostPhysAddr::from_usize(leaf.pa));
        assert!(
            now == Some(leaf.owner),
            "stale TLB entry: {} of pCPU {} maps GPA {gpa:#x} to {:#x}, which was freed since",
            self.guest(),
            self.pcpu,
            leaf.pa
        );
        if self.format.needs_break_before_make()
            && let Some(live) = self.walk(None, gpa)
        {
            assert!(
                (live.pa, live.level) == (leaf.pa, leaf.level),
                "no break before make: {} of pCPU {} maps GPA {gpa:#x} to {:#x} at level {}, \
                 the table to {:#x} at level {}",
                self.guest(),
                self.pcpu,
                leaf.pa,
                leaf.level,
                live.pa,
                live.level
            );
        }
    }

    /// Walks to the 4 KiB page at `gpa`, from the deepest table that the TLB remembers.
    #[track_caller]
    fn walk(&self, mut tlb: Option<&mut Tlb>, gpa: usize) -> Option<Cached> {
        let (mut table, mut level) = (self.root.as_usize(), self.shape.levels - 1);
        if let Some(tlb) = &tlb {
            let known = |level: &usize| tlb.tables.get(&(self.tag(), *level, gpa / span(*level)));
            if let Some(at) = (1..self.shape.levels).find(|level| known(level).is_some())
                && let Some(&(pa, owner)) = known(&at)
            {
                assert!(
                    self.machine.owner(HostPhysAddr::from_usize(pa)) == Some(owner),
                    "stale TLB entry: {} of pCPU {} has the table for GPA {gpa:#x} at {pa:#x}, \
                     which was freed since",
                    self.guest(),
                    self.pcpu
                );
                (table, level) = (pa, at - 1);
            }
        }
        loop {
            let entry = self.read(table, self.shape.index(gpa, level)?, gpa);
            match self.format.decode(entry, level) {
                HwEntry::Absent => return None,
                HwEntry::Leaf { pa, flags } => {
                    let pa = pa + (gpa & (span(level) - 1));
                    let Some(owner) = self.machine.owner(HostPhysAddr::from_usize(pa)) else {
                        panic!("GPA {gpa:#x} is mapped to {pa:#x}, where no memory is allocated");
                    };
                    return Some(Cached { pa, owner, level, flags });
                }
                HwEntry::Table(next) => {
                    let Some(owner) = self.machine.owner(HostPhysAddr::from_usize(next)) else {
                        panic!("the walk to GPA {gpa:#x} finds a freed table at {next:#x}");
                    };
                    if let Some(tlb) = &mut tlb {
                        let key = (self.tag(), level, gpa / span(level));
                        tlb.tables.insert(key, (next, owner));
                    }
                    table = next;
                    level -= 1;
                }
            }
        }
    }

    #[track_caller]
    fn read(&self, table: usize, index: usize, gpa: usize) -> u64 {
        let at = HostPhysAddr::from_usize(table + index * 8);
        let owner = self.machine.owner(at);
        assert!(owner.is_some(), "the walk to GPA {gpa:#x} reads a freed table at {at:#x}");
        let va = self.machine.phys_to_virt(at).as_usize();
        // SAFETY: the entry is in an allocated frame, aligned, and only written atomically.
        unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(va)) }
            .load(Ordering::Acquire)
    }

    fn guest(&self) -> String {
        format!("{:?}", self.tag())
    }
}

enum Cell<'a> {
    Byte(&'a AtomicU8),
    Word(&'a AtomicU16),
    Dword(&'a AtomicU32),
    Qword(&'a AtomicU64),
}
