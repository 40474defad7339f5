//! Time, and the ways to be interrupted when it has come.

use super::{csr, machine, sbi};

/// The value of `time`.
pub fn now() -> u64 {
    csr::read!("time")
}

/// Milliseconds in ticks.
pub fn ms(ms: u64) -> u64 {
    machine::timebase() * ms / 1000
}

/// Waits for something, a second at most; whether it came.
pub fn wait(until: impl FnMut() -> bool) -> bool {
    wait_ms(1000, until)
}

/// Waits for something for so many milliseconds at most; whether it came.
pub fn wait_ms(limit: u64, mut until: impl FnMut() -> bool) -> bool {
    let end = now() + ms(limit);
    loop {
        if until() {
            return true;
        }
        if now() >= end {
            return until();
        }
        core::hint::spin_loop();
    }
}

/// Lets so many milliseconds pass.
pub fn spin(duration: u64) {
    let end = now() + ms(duration);
    while now() < end {}
}

/// Sleeps until an interrupt that is enabled, or the timer, is pending: so many milliseconds at most.
/// Call it with interrupts closed.
pub fn nap(limit: u64) {
    let enabled = csr::read!("sie");
    Source::best().set(now() + ms(limit));
    csr::set!("sie", csr::STI);
    super::memory::wait_for_interrupt();
    csr::write!("sie", enabled);
    Source::best().set(u64::MAX);
}

/// How a timer interrupt is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By a call of the TIME extension.
    Sbi,
    /// By the legacy call.
    Legacy,
    /// By the register of Sstc.
    Stimecmp,
}

impl Source {
    /// Those that there are.
    pub fn all() -> impl Iterator<Item = Self> {
        let there = |&source: &Self| source != Self::Stimecmp || machine::sstc();
        [Self::Sbi, Self::Legacy, Self::Stimecmp].into_iter().filter(there)
    }

    /// The fastest.
    pub fn best() -> Self {
        if machine::sstc() { Self::Stimecmp } else { Self::Sbi }
    }

    /// Asks for an interrupt when `time` is that.
    pub fn set(self, at: u64) {
        match self {
            Self::Sbi => {
                let _ = sbi::set_timer(at);
            }
            Self::Legacy => {
                let _ = sbi::call_legacy(sbi::LEGACY_SET_TIMER, at);
            }
            // stimecmp
            Self::Stimecmp => csr::write!("0x14d", at),
        }
    }
}
