//! The guest's timer: `vstimecmp` where the hart has Sstc, otherwise a deadline of ours that the
//! guest sets by a call and that is shown to it as VSTIP.

#![forbid(unsafe_code)]

use super::{
    Hart,
    csr::{Csr, irq},
};
use crate::hal::AxVMHal;

/// One vCPU's timer.
#[derive(Debug)]
pub(super) struct Timer {
    sstc: bool,
    /// The value of `time` at which it is due; with Sstc valid while unbound only.
    at: u64,
    /// The same in nanoseconds of the host's clock, without Sstc.
    at_nanos: u64,
    /// Without Sstc: whether nothing is left to be shown to the guest.
    shown: bool,
}

impl Default for Timer {
    fn default() -> Self {
        Self { sstc: false, at: u64::MAX, at_nanos: u64::MAX, shown: true }
    }
}

impl Timer {
    /// The vCPU is bound to a hart.
    #[inline]
    pub(super) fn bind(&mut self, hart: &mut impl Hart, sstc: bool) {
        self.sstc = sstc;
        if sstc {
            hart.write(Csr::Vstimecmp, self.at);
        }
    }

    /// The vCPU leaves the hart.
    #[inline]
    pub(super) fn unbind(&mut self, hart: &mut impl Hart) {
        if self.sstc {
            self.at = hart.read(Csr::Vstimecmp);
            hart.write(Csr::Vstimecmp, u64::MAX);
        }
    }

    /// Whether the hart delivers it; known while bound.
    pub(super) fn has_sstc(&self) -> bool {
        self.sstc
    }

    /// When it is due.
    #[inline]
    pub(super) fn at(&self, hart: &mut impl Hart) -> u64 {
        if self.sstc { hart.read(Csr::Vstimecmp) } else { self.at }
    }

    /// Sets it, and takes back an interrupt that is pending (SBI 2.0 §6.1).
    pub(super) fn set<H: AxVMHal>(&mut self, hart: &mut impl Hart, frequency: u64, at: u64) {
        if self.sstc {
            hart.write(Csr::Vstimecmp, at);
            return;
        }
        hart.clear(Csr::Hvip, irq::VSTI);
        self.at = at;
        self.shown = at == u64::MAX;
        self.at_nanos = nanos_at::<H>(hart, frequency, at);
    }

    /// Before an entry without Sstc: shows what is due.
    #[inline]
    pub(super) fn show(&mut self, hart: &mut impl Hart) {
        if !self.shown && hart.read(Csr::Time) >= self.at {
            hart.set(Csr::Hvip, irq::VSTI);
            self.shown = true;
        }
    }

    /// When the host must bring the guest out, in nanoseconds of its clock.
    #[inline]
    pub(super) fn interrupt_at(&self) -> Option<u64> {
        (!self.shown).then_some(self.at_nanos)
    }

    /// Whether it is due, or will be, if the guest wants its interrupt: then when, in nanoseconds
    /// of the host's clock.
    pub(super) fn deadline<H: AxVMHal>(&self, hart: &mut impl Hart, frequency: u64) -> Option<u64> {
        let at = self.at(hart);
        if at == u64::MAX || hart.read(Csr::Hie) & irq::VSTI == 0 || hart.read(Csr::Time) >= at {
            return None;
        }
        Some(nanos_at::<H>(hart, frequency, at))
    }

    /// Whether it is due.
    pub(super) fn is_due(&self, hart: &mut impl Hart) -> bool {
        let at = self.at(hart);
        at != u64::MAX && hart.read(Csr::Time) >= at
    }
}

/// When `time` will be `at`, in nanoseconds of the host's clock, rounded up.
fn nanos_at<H: AxVMHal>(hart: &mut impl Hart, frequency: u64, at: u64) -> u64 {
    let ticks = at.saturating_sub(hart.read(Csr::Time));
    let nanos = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(frequency.max(1)));
    H::current_time_nanos().saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX))
}
