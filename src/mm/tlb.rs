//! TLB maintenance for the nested page table, by VM.

use super::{GpaRange, HostPhysAddr};

/// What tags a VM's entries in a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTag {
    /// VMID (Arm, RISC-V) or VPID-like number; 0 is never given to a guest.
    pub vmid: u16,
    /// The root of the nested page table; EPT-derived entries are tagged with it.
    pub root: HostPhysAddr,
}

/// The hardware's instructions to invalidate entries that a nested page table gave rise to.
///
/// Each function returns when the invalidation is complete on the CPUs it reaches: a later entry
/// into a guest there uses no invalidated entry, nor anything cached from the walk to it.
pub trait NestedTlb: 'static {
    /// Whether `flush_range` and `flush_guest` reach every physical CPU (Arm's inner-shareable
    /// TLBI does). Otherwise they reach this CPU only, and the crate makes the others flush
    /// before they enter the guest again.
    const BROADCAST: bool;

    /// Invalidates what the guest's page table said of `range`, whose bounds are multiples of
    /// 4 KiB.
    fn flush_range(tag: GuestTag, range: GpaRange);

    /// Invalidates everything of one guest.
    fn flush_guest(tag: GuestTag);

    /// Invalidates everything of all guests on this CPU. Called before a CPU uses VMIDs of a new
    /// generation.
    fn flush_all();
}

/// PLACEHOLDER
pub struct VmidAllocator(u32);
impl VmidAllocator {
    /// PLACEHOLDER
    pub const fn new(bits: u32) -> Self {
        Self(bits)
    }
}
