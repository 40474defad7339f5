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
        self.0.load(Ordering::Acquire) & !Self::SLEEPING != 0
    }

    /// The owner goes to sleep, unless there is a reason not to. After `true`, the first
    /// [`raise`](Self::raise) returns true.
    pub(crate) fn try_sleep(&self) -> bool {
        self.0.compare_exchange(0, Self::SLEEPING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
