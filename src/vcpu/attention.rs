//! What others want of a vCPU: one atomic word that anyone may add to and only the owner empties.

#![forbid(unsafe_code)]

use crate::sync::atomic::{AtomicU32, Ordering};

/// Reasons why a vCPU must look up before it enters the guest. A mask, not a queue: what is
/// pending in detail, the interrupt controller and the VM know.
pub(crate) struct Attention(AtomicU32);

impl Attention {
    /// The interrupt controller has something for the vCPU.
    pub(crate) const IRQ: u32 = 1 << 0;
    /// The VM's state changed: the vCPU must leave if it is not running any more.
    pub(crate) const LIFECYCLE: u32 = 1 << 1;
    /// The guest's fetched instructions are to be forgotten.
    pub(crate) const FENCE_INSTRUCTIONS: u32 = 1 << 2;
    /// Translations by the guest's own page tables are to be forgotten.
    pub(crate) const FENCE_TRANSLATIONS: u32 = 1 << 3;
    /// Both.
    pub(crate) const FENCES: u32 = Self::FENCE_INSTRUCTIONS | Self::FENCE_TRANSLATIONS;
    /// The owner found nothing to do, and the host was told so.
    const SLEEPING: u32 = 1 << 31;

    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Adds reasons, from any CPU. True when the vCPU was asleep and this call ended it: the
    /// caller must have the host wake it. Of concurrent callers exactly one gets true.
    pub(crate) fn raise(&self, reasons: u32) -> bool {
        let old = self.0.fetch_or(reasons, Ordering::AcqRel);
        old & Self::SLEEPING != 0 && self.wake()
    }

    /// As [`raise`](Self::raise), but lets a vCPU that is asleep sleep: it sees the reasons before
    /// its next entry.
    pub(crate) fn raise_quietly(&self, reasons: u32) {
        self.0.fetch_or(reasons, Ordering::AcqRel);
    }

    /// Whether one of these reasons is waiting.
    #[inline(always)]
    pub(crate) fn waits(&self, reasons: u32) -> bool {
        self.0.load(Ordering::Acquire) & reasons != 0
    }

    /// Ends the sleep; true when there was one.
    pub(crate) fn wake(&self) -> bool {
        self.0.fetch_and(!Self::SLEEPING, Ordering::AcqRel) & Self::SLEEPING != 0
    }

    /// The owner takes all reasons.
    #[inline(always)]
    pub(crate) fn take(&self) -> u32 {
        // Almost always empty; a plain load keeps the line shared.
        if self.0.load(Ordering::Relaxed) == 0 { 0 } else { self.0.swap(0, Ordering::AcqRel) }
    }

    /// Whether a reason is waiting.
    #[inline]
    pub(crate) fn is_raised(&self) -> bool {
        self.waits(!Self::SLEEPING)
    }

    /// Whether a reason is waiting for which it is worth to run. A fence is none: it waits for the
    /// next entry.
    pub(crate) fn wants_run(&self) -> bool {
        self.waits(!(Self::SLEEPING | Self::FENCES))
    }

    /// The owner goes to sleep, unless there is a reason not to. After `true`, the first
    /// [`raise`](Self::raise) returns true.
    pub(crate) fn try_sleep(&self) -> bool {
        self.0.compare_exchange(0, Self::SLEEPING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
