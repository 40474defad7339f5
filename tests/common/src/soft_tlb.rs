//! The TLBs of the physical CPUs, in software: see [`Tlbs`].

use std::{
    collections::{HashMap, HashSet},
    marker::PhantomData,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axvm::{
    mm::{
        GpaRange, GuestPhysAddr, MappingFlags,
        tlb::{GuestTag, NestedTlb},
    },
    vcpu::MAX_PCPUS,
};

use crate::{Lock, MockHal, pcpu};

/// What entries are tagged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tag {
    /// The VMID: Arm, RISC-V.
    Vmid(u16),
    /// The root of the table: x86, whose INVEPT ignores the VPID.
    Root(usize),
}

impl Tag {
    fn is_of(self, guest: GuestTag) -> bool {
        match self {
            Self::Vmid(vmid) => vmid == guest.vmid,
            Self::Root(root) => root == guest.root.as_usize(),
        }
    }
}

/// One call of the crate's to invalidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// `NestedTlb::flush_range`.
    Range(GuestTag, GpaRange),
    /// `NestedTlb::flush_guest`.
    Guest(GuestTag),
    /// `NestedTlb::flush_all`.
    All,
}

/// A cached translation of one 4 KiB page.
#[derive(Clone, Copy)]
pub(crate) struct Cached {
    pub(crate) pa: usize,
    /// Whose frame it was, and when.
    pub(crate) owner: u64,
    pub(crate) level: usize,
    pub(crate) flags: MappingFlags,
}

/// What one physical CPU remembers.
#[derive(Default)]
pub(crate) struct Tlb {
    /// By tag and page number.
    pub(crate) leaves: HashMap<(Tag, usize), Cached>,
    /// The entries that are tables, by tag, level and the number of the span: table and owner.
    pub(crate) tables: HashMap<(Tag, usize, usize), (usize, u64)>,
    /// Pages known to be absent.
    pub(crate) absent: HashSet<(Tag, usize)>,
    /// Whose translations by a guest's own tables there may be, by VMID: VM, vCPU, stay.
    pub(crate) stage1: HashMap<u16, (usize, usize, u64)>,
}

impl Tlb {
    fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::All => self.stage1.clear(),
            Flush::Guest(guest) => drop(self.stage1.remove(&guest.vmid)),
            Flush::Range(..) => {}
        }
        let keeps = |tag: Tag, start: usize, level: usize| match flush {
            Flush::All => false,
            Flush::Guest(guest) => !tag.is_of(guest),
            Flush::Range(guest, range) => {
                let size = 1usize << (12 + 9 * level);
                let inside = GpaRange::new(GuestPhysAddr::from_usize(start * size), size)
                    .is_none_or(|page| page.overlaps(range));
                !(tag.is_of(guest) && inside)
            }
        };
        self.leaves.retain(|&(tag, page), _| keeps(tag, page, 0));
        self.absent.retain(|&(tag, page)| keeps(tag, page, 0));
        self.tables.retain(|&(tag, level, number), _| keeps(tag, number, level));
    }
}

/// The TLBs of all physical CPUs of a machine, filled by the guest's accesses and emptied by
/// nothing but the crate's [`NestedTlb`], which is [`SoftTlb`].
///
/// A TLB remembers leaves (a page each) and the tables on the way, by VMID, or for EPT by root.
/// It serves what it remembers, stale or not, like hardware; but an access whose frame was freed
/// since panics, even if the frame was handed out again.
pub struct Tlbs {
    cpus: Vec<Mutex<Tlb>>,
    log: Mutex<Vec<(usize, Flush)>>,
    logging: AtomicBool,
    cache_negative: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    flushes: AtomicU64,
}

impl Default for Tlbs {
    fn default() -> Self {
        Self {
            cpus: (0..MAX_PCPUS).map(|_| Mutex::default()).collect(),
            log: Mutex::default(),
            logging: AtomicBool::new(true),
            cache_negative: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }
    }
}

impl Tlbs {
    /// Whether absent entries are cached too, as RISC-V allows: then a page that was mapped after
    /// a fault is still absent for the guest, until it is flushed.
    pub fn set_cache_negative(&self, cache: bool) {
        self.cache_negative.store(cache, Ordering::SeqCst);
    }

    /// Whether calls are logged (counted they are always).
    pub fn set_logging(&self, logging: bool) {
        self.logging.store(logging, Ordering::SeqCst);
    }

    /// The calls so far: on which physical CPU, and what.
    pub fn log(&self) -> Vec<(usize, Flush)> {
        self.log.locked().clone()
    }

    /// The calls since the last `take_log`.
    pub fn take_log(&self) -> Vec<(usize, Flush)> {
        std::mem::take(&mut *self.log.locked())
    }

    /// How many calls there were.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    /// How many accesses found a translation, right or stale.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }

    /// How many accesses walked the table.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::SeqCst)
    }

    /// How many pages the TLB of a physical CPU remembers.
    pub fn cached(&self, pcpu: usize) -> usize {
        self.cpus[pcpu].locked().leaves.len()
    }

    pub(crate) fn of(&self, pcpu: usize) -> MutexGuard<'_, Tlb> {
        self.cpus[pcpu].locked()
    }

    pub(crate) fn caches_negative(&self) -> bool {
        self.cache_negative.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, hit: bool) {
        let counter = if hit { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self, flush: Flush, everywhere: bool) {
        let here = pcpu();
        self.flushes.fetch_add(1, Ordering::Relaxed);
        if self.logging.load(Ordering::Relaxed) {
            self.log.locked().push((here, flush));
        }
        if everywhere {
            // Waits for each CPU's access in flight, as Arm's DSB after a TLBI does.
            self.cpus.iter().for_each(|cpu| cpu.locked().flush(flush));
        } else {
            self.cpus[here].locked().flush(flush);
        }
    }
}

/// The instructions to invalidate, for the machine of `H`: on this physical CPU only (x86,
/// RISC-V), or on all (Arm).
pub struct SoftTlb<H, const BROADCAST: bool>(PhantomData<fn() -> H>);

impl<H: MockHal, const BROADCAST: bool> NestedTlb for SoftTlb<H, BROADCAST> {
    const BROADCAST: bool = BROADCAST;

    #[track_caller]
    fn flush_range(tag: GuestTag, range: GpaRange) {
        assert!(range.is_aligned(4096), "tlb: flush of {range:?}, which is not whole pages");
        H::machine().tlb().flush(Flush::Range(tag, range), BROADCAST);
    }

    fn flush_guest(tag: GuestTag) {
        H::machine().tlb().flush(Flush::Guest(tag), BROADCAST);
    }

    fn flush_all() {
        H::machine().tlb().flush(Flush::All, false);
    }
}
