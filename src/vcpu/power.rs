//! Whether a vCPU is switched on (PSCI CPU_ON/CPU_OFF, SBI HSM, INIT/SIPI).

#![forbid(unsafe_code)]

use super::{CpuPower, CpuUpError};
use crate::{
    mm::GuestPhysAddr,
    sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
};

const OFF: u8 = 0;
/// Another vCPU is writing entry and argument.
const STARTING: u8 = 1;
/// Started, not yet run.
const PENDING: u8 = 2;
const ON: u8 = 3;
/// On, and waiting by a call of the firmware's.
const SUSPENDED: u8 = 4;

/// One vCPU's power state.
pub(crate) struct Power {
    state: AtomicU8,
    entry: AtomicUsize,
    arg: AtomicU64,
}

impl Power {
    pub(crate) fn new(on: bool) -> Self {
        Self {
            state: AtomicU8::new(if on { ON } else { OFF }),
            entry: AtomicUsize::new(0),
            arg: AtomicU64::new(0),
        }
    }

    /// Switches the vCPU on, from any CPU; it begins at `entry` with `arg`.
    pub(crate) fn start(&self, entry: GuestPhysAddr, arg: u64) -> Result<(), CpuUpError> {
        match self.state.compare_exchange(OFF, STARTING, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                self.entry.store(entry.as_usize(), Ordering::Relaxed);
                self.arg.store(arg, Ordering::Relaxed);
                self.state.store(PENDING, Ordering::Release);
                Ok(())
            }
            Err(ON | SUSPENDED) => Err(CpuUpError::AlreadyOn),
            Err(_) => Err(CpuUpError::OnPending),
        }
    }

    /// Where to begin, if the vCPU was started and has not run.
    pub(crate) fn pending(&self) -> Option<(GuestPhysAddr, u64)> {
        (self.state.load(Ordering::Acquire) == PENDING)
            .then(|| (self.entry.load(Ordering::Relaxed).into(), self.arg.load(Ordering::Relaxed)))
    }

    /// Whether it may run.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), PENDING | ON | SUSPENDED)
    }

    /// What the guest is told.
    pub(crate) fn status(&self) -> CpuPower {
        match self.state.load(Ordering::Acquire) {
            OFF => CpuPower::Off,
            ON => CpuPower::On,
            SUSPENDED => CpuPower::Suspended,
            _ => CpuPower::OnPending,
        }
    }

    /// The owner suspends it.
    pub(crate) fn suspend(&self) {
        self.state.store(SUSPENDED, Ordering::Release);
    }

    /// The owner goes on, if it was suspended.
    #[inline]
    pub(crate) fn resume(&self) {
        if self.state.load(Ordering::Relaxed) == SUSPENDED {
            self.set(true);
        }
    }

    /// The owner ran it, or switched it off, or resets it.
    pub(crate) fn set(&self, on: bool) {
        self.state.store(if on { ON } else { OFF }, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_is_started_once_until_it_goes_off_again() {
        let power = Power::new(false);
        assert!(!power.is_on());
        assert_eq!(power.start(0x1000.into(), 7), Ok(()));
        assert_eq!(power.start(0x2000.into(), 8), Err(CpuUpError::OnPending));
        assert_eq!(power.pending(), Some((0x1000.into(), 7)));
        power.set(true);
        assert_eq!(power.pending(), None);
        assert_eq!(power.start(0x2000.into(), 8), Err(CpuUpError::AlreadyOn));
        power.set(false);
        assert_eq!(power.start(0x2000.into(), 8), Ok(()));
    }

    #[test]
    fn a_suspended_vcpu_is_on_and_goes_on() {
        let power = Power::new(true);
        power.resume();
        assert_eq!(power.status(), CpuPower::On);
        power.suspend();
        assert_eq!((power.status(), power.is_on()), (CpuPower::Suspended, true));
        assert_eq!(power.start(0x1000.into(), 7), Err(CpuUpError::AlreadyOn));
        power.resume();
        assert_eq!(power.status(), CpuPower::On);
        power.set(false);
        power.resume();
        assert_eq!(power.status(), CpuPower::Off);
    }
}
