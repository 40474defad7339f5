//! TLB maintenance for the nested page table, by VM: VMIDs with generations, and the agreement
//! between whoever removes a mapping and the vCPUs that may still use it.
//!
//! Whoever changes the table *requests* an invalidation (`GuestTlb::invalidate`) and gets a
//! [`Ticket`]. A frame may be freed once the ticket is reached (`GuestTlb::is_reached`): every
//! vCPU is outside the guest or has entered it after the request, and an entry after a request
//! flushes first. A vCPU announces itself before it reads the request counter, and the requester
//! bumps the counter before it reads the announcements, each with a full fence between: one of
//! the two always sees the other.

#![cfg_attr(not(test), forbid(unsafe_code))]

use alloc::boxed::Box;
use core::{
    marker::PhantomData,
    sync::atomic::{AtomicU32 as StaticU32, AtomicUsize as OwnUsize},
};

use super::{GpaRange, HostPhysAddr};
use crate::{
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    vcpu::MAX_PCPUS,
};

/// What tags a VM's entries in a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTag {
    /// The VMID (Arm, RISC-V) or VPID; never 0 where the hardware has more than one.
    pub vmid: u16,
    /// The root of the nested page table; EPT-derived entries are tagged with it.
    pub root: HostPhysAddr,
}

/// The hardware's instructions to invalidate entries that a nested page table gave rise to.
///
/// Each function returns when the invalidation is complete on the CPUs it reaches: a later entry
/// into a guest there uses no invalidated entry, nor anything cached from the walk to it: tables
/// may have been removed, so walk caches are to be dropped too. Stores to the table that precede
/// the call are visible to the walkers before.
pub trait NestedTlb: 'static {
    /// Whether `flush_range` and `flush_guest` reach every physical CPU (Arm's inner-shareable
    /// TLBI does). Otherwise they reach this CPU only, and the crate makes the others flush
    /// before they enter the guest again.
    const BROADCAST: bool;

    /// Invalidates what the guest's page table said of `range`, whose bounds are multiples of
    /// 4 KiB.
    fn flush_range(tag: GuestTag, range: GpaRange);

    /// Invalidates everything of one guest, translations by its own page tables included.
    fn flush_guest(tag: GuestTag);

    /// Invalidates everything of all guests on this CPU. Called before a CPU uses VMIDs of a new
    /// generation.
    fn flush_all();
}

/// A VMID together with the generation it was given in; only VMIDs of the present generation may
/// be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmid {
    /// The number for the hardware.
    pub id: u16,
    /// Counts how often the numbers ran out; from 1.
    pub generation: u64,
}

impl Vmid {
    const NONE: u64 = 0;

    const fn pack(self) -> u64 {
        self.generation << 16 | self.id as u64
    }

    const fn unpack(packed: u64) -> Self {
        Self { id: packed as u16, generation: packed >> 16 }
    }
}

/// Hands out VMIDs. When the numbers run out a new generation begins: every VM gets a new VMID at
/// its next entry, and every CPU empties its TLB before it uses one.
pub struct VmidAllocator {
    /// The highest number; 0 is the host's, unless the hardware has no VMIDs at all.
    max: StaticU32,
    generation: core::sync::atomic::AtomicU64,
    last: spin::Mutex<u32>,
}

impl VmidAllocator {
    /// Numbers of `bits` bits, at most 16. With 0 bits there is one number, 0, and each VM that
    /// enters after another begins a new generation, which empties the CPU's TLB.
    pub const fn new(bits: u32) -> Self {
        Self {
            max: StaticU32::new(Self::highest(bits)),
            generation: core::sync::atomic::AtomicU64::new(1),
            last: spin::Mutex::new(0),
        }
    }

    const fn highest(bits: u32) -> u32 {
        (1 << if bits > 16 { 16 } else { bits }) - 1
    }

    /// Narrows the numbers to what a CPU turned out to implement. VMIDs that are too wide for it
    /// are given up.
    pub fn limit_bits(&self, bits: u32) {
        let mut last = self.last.lock();
        let max = Self::highest(bits).min(self.max.load(Ordering::Relaxed));
        self.max.store(max, Ordering::Relaxed);
        if *last > max {
            *last = 0;
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// The present generation.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A VMID that no other VM has in the present generation.
    pub fn allocate(&self) -> Vmid {
        let mut last = self.last.lock();
        let mut generation = self.generation.load(Ordering::Relaxed);
        if *last >= self.max.load(Ordering::Relaxed) {
            generation += 1;
            *last = 0;
            self.generation.store(generation, Ordering::Release);
        }
        // At most 16 bits: `last` never exceeds `max`.
        *last = (*last + 1).min(self.max.load(Ordering::Relaxed));
        Vmid { id: *last as u16, generation }
    }
}

/// A request for an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

impl Ticket {
    /// Later than any request: not reached while a vCPU is in the guest.
    pub(crate) const LATEST: Self = Self(u64::MAX - INSIDE);
}

/// Presence of a vCPU: outside the guest; on its way in, having possibly seen no request at all;
/// or inside, having seen every request up to `presence - INSIDE`.
const OUTSIDE: u64 = 0;
const ENTERING: u64 = 1;
const INSIDE: u64 = 2;

/// One vCPU's line. Padded: each is written by another CPU at each entry.
#[repr(align(128))]
struct Slot {
    presence: AtomicU64,
    /// The physical CPU, valid unless `OUTSIDE`.
    pcpu: AtomicUsize,
    /// The owner's note: where it last flushed, and up to which request.
    flushed_on: AtomicUsize,
    flushed_to: AtomicU64,
    /// The owner's note: where it last ran.
    ran_on: AtomicUsize,
}

/// How many requests are remembered by range; who missed more flushes everything.
const LOG: usize = 16;

struct FlushLog {
    /// Request `n` is at `n % LOG`; none stands for everything.
    ranges: [Option<GpaRange>; LOG],
    /// The newest request, equal to `requests` while the lock is held.
    newest: u64,
}

/// The TLB entries of one VM, on all physical CPUs.
pub(crate) struct GuestTlb<T> {
    root: HostPhysAddr,
    vmid: AtomicU64,
    /// Requests so far.
    requests: AtomicU64,
    /// The request that came with the present VMID.
    vmid_since: AtomicU64,
    log: Mutex<FlushLog>,
    slots: Box<[Slot]>,
    /// Which vCPU ran last on each physical CPU; changes when vCPUs take turns. Each is its CPU's
    /// own, so loom has nothing to look at.
    last_on: [OwnUsize; MAX_PCPUS],
    tlb: PhantomData<fn() -> T>,
}

impl<T: NestedTlb> GuestTlb<T> {
    pub(crate) fn new(root: HostPhysAddr, vcpus: usize) -> Self {
        let slot = |_| Slot {
            presence: AtomicU64::new(OUTSIDE),
            pcpu: AtomicUsize::new(usize::MAX),
            flushed_on: AtomicUsize::new(usize::MAX),
            flushed_to: AtomicU64::new(0),
            ran_on: AtomicUsize::new(usize::MAX),
        };
        Self {
            root,
            vmid: AtomicU64::new(Vmid::NONE),
            requests: AtomicU64::new(0),
            vmid_since: AtomicU64::new(0),
            log: Mutex::new(FlushLog { ranges: [None; LOG], newest: 0 }),
            slots: (0..vcpus).map(slot).collect(),
            last_on: [const { OwnUsize::new(usize::MAX) }; MAX_PCPUS],
            tlb: PhantomData,
        }
    }

    const fn tag(&self, vmid: Vmid) -> GuestTag {
        GuestTag { vmid: vmid.id, root: self.root }
    }

    /// The entries and exits of a vCPU that runs on physical CPU `pcpu`; none when there is no
    /// such vCPU.
    pub(crate) fn entrant(&self, vcpu: usize, pcpu: usize) -> Option<Entrant<'_, T>> {
        Some(Entrant { tlb: self, slot: self.slots.get(vcpu)?, vcpu, pcpu })
    }

    /// The physical CPU in which the vCPU is in the guest or about to be.
    pub(crate) fn inside(&self, vcpu: usize) -> Option<usize> {
        let slot = self.slots.get(vcpu)?;
        let out = slot.presence.load(Ordering::Acquire) == OUTSIDE;
        (!out).then(|| slot.pcpu.load(Ordering::Relaxed))
    }

    #[cold]
    fn renew(&self, vmids: &VmidAllocator) -> (u64, Vmid) {
        let mut log = self.log.lock();
        let old = Vmid::unpack(self.vmid.load(Ordering::Relaxed));
        if old.generation == vmids.generation() {
            return (log.newest, old);
        }
        let new = vmids.allocate();
        // VCPUs still inside have the old VMID: a broadcast with the new one does not reach them,
        // so the change itself is a request. The order matters: who sees the new VMID sees since
        // when it counts, and `enter` reads the counter first.
        self.vmid_since.store(log.newest + 1, Ordering::Release);
        self.vmid.store(new.pack(), Ordering::Release);
        let ticket = self.request(&mut log, None);
        (ticket.0, new)
    }

    /// Flushes what was requested since this vCPU's last flush on this CPU.
    #[cold]
    fn catch_up(&self, slot: &Slot, pcpu: usize, tag: GuestTag) -> u64 {
        let log = self.log.lock();
        let done = slot.flushed_to.load(Ordering::Relaxed);
        let known = slot.flushed_on.load(Ordering::Relaxed) == pcpu
            && log.newest - done <= LOG as u64
            && (done..log.newest).all(|n| log.range(n + 1).is_some());
        if known {
            for range in (done..log.newest).filter_map(|n| log.range(n + 1)) {
                T::flush_range(tag, range);
            }
        } else {
            T::flush_guest(tag);
        }
        slot.flushed_to.store(log.newest, Ordering::Relaxed);
        slot.flushed_on.store(pcpu, Ordering::Relaxed);
        log.newest
    }

    /// Records a request in the log, which the caller has locked.
    fn request(&self, log: &mut FlushLog, range: Option<GpaRange>) -> Ticket {
        log.newest += 1;
        if let Some(entry) = log.ranges.get_mut(log.newest as usize % LOG) {
            *entry = range;
        }
        self.requests.store(log.newest, Ordering::Release);
        Ticket(log.newest)
    }

    /// Requests that no entry for `range` be used any more, after the table was changed.
    pub(crate) fn invalidate(&self, range: GpaRange) -> Ticket {
        // Locked until the broadcast is out: were the VMID renewed in between, a vCPU could enter
        // with the old one after the request, count as up to date, and miss the broadcast.
        let mut log = self.log.lock();
        let ticket = self.request(&mut log, Some(range));
        fence(Ordering::SeqCst);
        if T::BROADCAST {
            let vmid = self.vmid.load(Ordering::Acquire);
            if vmid != Vmid::NONE {
                T::flush_range(self.tag(Vmid::unpack(vmid)), range);
            }
        }
        ticket
    }

    /// Invalidates one range on this CPU alone, after a fault that a stale entry caused.
    pub(crate) fn flush_here(&self, range: GpaRange) {
        let vmid = self.vmid.load(Ordering::Acquire);
        if vmid != Vmid::NONE {
            T::flush_range(self.tag(Vmid::unpack(vmid)), range);
        }
    }

    /// Whether no vCPU can use an entry from before the request any more.
    pub(crate) fn is_reached(&self, ticket: Ticket) -> bool {
        self.laggards(ticket).next().is_none()
    }

    /// Whether every request so far is reached.
    pub(crate) fn all_reached(&self) -> bool {
        self.is_reached(Ticket(self.requests.load(Ordering::Acquire)))
    }

    /// The physical CPUs that have not seen the request: kick them.
    pub(crate) fn laggards(&self, ticket: Ticket) -> impl Iterator<Item = usize> {
        // A broadcast reached all who run with the present VMID.
        let needed = if T::BROADCAST {
            ticket.0.min(self.vmid_since.load(Ordering::Acquire))
        } else {
            ticket.0
        };
        self.slots.iter().filter_map(move |slot| match slot.presence.load(Ordering::Acquire) {
            OUTSIDE => None,
            presence if presence >= INSIDE + needed => None,
            _ => Some(slot.pcpu.load(Ordering::Relaxed)),
        })
    }
}

/// One vCPU on its way into the guest and out of it, on one physical CPU.
pub(crate) struct Entrant<'a, T> {
    tlb: &'a GuestTlb<T>,
    slot: &'a Slot,
    vcpu: usize,
    pcpu: usize,
}

impl<T: NestedTlb> Entrant<'_, T> {
    /// Whether the vCPU comes from another CPU, or another of the VM's vCPUs ran on this one since
    /// it did. What this CPU has cached for the guest, under a tag that its vCPUs share, may then be
    /// another vCPU's, or be older than what this one has fenced elsewhere.
    pub(crate) fn takes_over(&self) -> bool {
        let last = self.tlb.last_on.get(self.pcpu);
        // Only this CPU writes the one, only the vCPU's owner the other.
        last.is_none_or(|last| last.load(Ordering::Relaxed) != self.vcpu)
            || self.slot.ran_on.load(Ordering::Relaxed) != self.pcpu
    }

    /// All that is forgotten here; what is cached from now on is this vCPU's.
    pub(crate) fn took_over(&self) {
        if let Some(last) = self.tlb.last_on.get(self.pcpu) {
            last.store(self.vcpu, Ordering::Relaxed);
            self.slot.ran_on.store(self.pcpu, Ordering::Relaxed);
        }
    }

    /// First half of an entry: the vCPU says that it is about to enter. Whatever is requested of
    /// it from now on, it sees either in what it reads after this call or by a kick.
    #[inline]
    pub(crate) fn announce(&self) {
        self.slot.pcpu.store(self.pcpu, Ordering::Relaxed);
        self.slot.presence.store(ENTERING, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Second half: brings this CPU's TLB up to date and returns the VMID to use. The calling
    /// CPU must be the announced one, and stay so until [`leave`](Self::leave).
    #[inline]
    pub(crate) fn enter(&self, cpus: &impl VmidUser) -> u16 {
        let Self { tlb, slot, pcpu, .. } = *self;
        // The counter before the VMID: who reads a new VMID late counts as one who has the old.
        let mut seen = tlb.requests.load(Ordering::Acquire);
        let mut vmid = Vmid::unpack(tlb.vmid.load(Ordering::Acquire));
        if vmid.generation != cpus.allocator().generation() {
            (seen, vmid) = tlb.renew(cpus.allocator());
        }
        if cpus.adopt_generation(pcpu, vmid.generation) {
            T::flush_all();
        }
        if !T::BROADCAST
            && (slot.flushed_to.load(Ordering::Relaxed) != seen
                || slot.flushed_on.load(Ordering::Relaxed) != pcpu)
        {
            seen = tlb.catch_up(slot, pcpu, tlb.tag(vmid));
        }
        slot.presence.store(INSIDE + seen, Ordering::Release);
        vmid.id
    }

    /// The vCPU is out of the guest.
    #[inline]
    pub(crate) fn leave(&self) {
        self.slot.presence.store(OUTSIDE, Ordering::Release);
    }
}

impl FlushLog {
    fn range(&self, request: u64) -> Option<GpaRange> {
        self.ranges.get(request as usize % LOG).copied().flatten()
    }
}

/// The physical CPUs' side of VMIDs.
pub(crate) trait VmidUser {
    fn allocator(&self) -> &VmidAllocator;
    /// Records that the calling CPU uses VMIDs of `generation` from now on; true when it did not
    /// before, and its TLB must be emptied first.
    fn adopt_generation(&self, pcpu: usize, generation: u64) -> bool;
}

#[cfg(all(test, loom))]
#[path = "tlb_loom_tests.rs"]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::AtomicPtr;

    use super::*;

    /// The address space whose broadcast is watched.
    static WATCHED: AtomicPtr<GuestTlb<Watched>> = AtomicPtr::new(core::ptr::null_mut());

    struct Watched;

    impl NestedTlb for Watched {
        const BROADCAST: bool = true;

        fn flush_range(tag: GuestTag, _range: GpaRange) {
            // SAFETY: the test below keeps it alive.
            let guest = unsafe { &*WATCHED.load(Ordering::Relaxed) };
            assert!(guest.log.try_lock().is_none(), "another CPU may renew the VMID now");
            assert_eq!(guest.vmid.load(Ordering::Relaxed) as u16, tag.vmid);
        }

        fn flush_guest(_tag: GuestTag) {}

        fn flush_all() {}
    }

    struct OneCpu(VmidAllocator);

    impl VmidUser for OneCpu {
        fn allocator(&self) -> &VmidAllocator {
            &self.0
        }

        fn adopt_generation(&self, _pcpu: usize, _generation: u64) -> bool {
            true
        }
    }

    /// A vCPU that enters after the request with the VMID from before would count as up to date,
    /// and keep the entries that a broadcast with the new VMID does not reach.
    #[test]
    fn the_vmid_cannot_change_between_a_request_and_its_broadcast() {
        let cpu = OneCpu(VmidAllocator::new(8));
        let mut guest = GuestTlb::<Watched>::new(HostPhysAddr::from(0x1000), 1);
        WATCHED.store(&raw mut guest, Ordering::Relaxed);
        let vcpu = guest.entrant(0, 0).unwrap();
        vcpu.announce();
        vcpu.enter(&cpu);
        let range = GpaRange::new(0x1000.into(), 0x1000).unwrap();
        let ticket = guest.invalidate(range);
        assert!(guest.is_reached(ticket));
        vcpu.leave();
    }
}
