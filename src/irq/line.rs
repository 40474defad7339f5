//! One wire from a device to an interrupt controller.

use alloc::sync::Arc;

use axerrno::AxResult;

use super::IrqInput;
use crate::sync::atomic::{AtomicU8, Ordering};

/// How a line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// By each change from low to high.
    Edge,
    /// By being high.
    Level,
}

/// The device wants the line high.
const WANTED: u8 = 1;
/// The controller was told that it is high.
const TOLD: u8 = 2;
/// Someone is telling the controller.
const TELLING: u8 = 4;

/// One wire with one source. Callable from any CPU, also from an interrupt handler: it never
/// waits.
///
/// A call that does not change the level ends after one atomic load. Of calls that come at the
/// same time, one tells the controller on behalf of the others, which may return before that has
/// happened; when all have returned, the controller has been told the last level. A change that
/// is taken back before the controller was told of it is not told.
pub struct IrqLine {
    input: Arc<dyn IrqInput>,
    irq: usize,
    trigger: Trigger,
    state: AtomicU8,
}

impl IrqLine {
    /// A low line to the controller's input `irq`.
    pub fn new(input: Arc<dyn IrqInput>, irq: usize, trigger: Trigger) -> Self {
        Self { input, irq, trigger, state: AtomicU8::new(0) }
    }

    /// The controller's input that it leads to.
    pub fn irq(&self) -> usize {
        self.irq
    }

    /// Makes the line high.
    ///
    /// # Errors
    /// `InvalidInput` when the controller has no such input; the next call tries again.
    pub fn assert(&self) -> AxResult {
        self.set(true)
    }

    /// Makes the line low.
    ///
    /// # Errors
    /// As [`assert`](Self::assert).
    pub fn deassert(&self) -> AxResult {
        self.set(false)
    }

    /// Signals one edge, whatever the trigger, and leaves the level as it is.
    ///
    /// # Errors
    /// `InvalidInput` when the controller has no such input.
    pub fn pulse(&self) -> AxResult {
        self.input.pulse(self.irq)
    }

    fn set(&self, high: bool) -> AxResult {
        let wanted = if high { WANTED } else { 0 };
        let state = self.state.load(Ordering::Acquire);
        if state & WANTED == wanted && (state & TELLING != 0 || settled(state)) {
            return Ok(());
        }
        let old = if high {
            self.state.fetch_or(WANTED, Ordering::AcqRel)
        } else {
            self.state.fetch_and(!WANTED, Ordering::AcqRel)
        };
        match self.trigger {
            // Every rising edge has exactly one caller that saw the line low.
            Trigger::Edge if high && old & WANTED == 0 => self.pulse().inspect_err(|_| {
                self.state.fetch_and(!WANTED, Ordering::AcqRel);
            }),
            Trigger::Edge => Ok(()),
            Trigger::Level => self.tell(),
        }
    }

    /// Tells the controller, unless someone does, until it knows the wanted level.
    fn tell(&self) -> AxResult {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & TELLING != 0 || settled(state) {
                return Ok(());
            }
            match self.state.compare_exchange(
                state,
                state | TELLING,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {}
                Err(now) => {
                    state = now;
                    continue;
                }
            }
            let high = state & WANTED != 0;
            let result = self.input.set_level(self.irq, high);
            // `fetch_xor` and not a store: WANTED may have changed, and is then seen here.
            let told = if result.is_ok() { TELLING | TOLD } else { TELLING };
            state = self.state.fetch_xor(told, Ordering::AcqRel) ^ told;
            result?;
        }
    }
}

/// Whether the controller knows the wanted level.
fn settled(state: u8) -> bool {
    (state & WANTED != 0) == (state & TOLD != 0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use axerrno::AxError;
    use std::{sync::Mutex, vec::Vec};

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(usize, &'static str)>>);

    impl Recorder {
        fn record(&self, irq: usize, what: &'static str) -> AxResult {
            if irq > 100 {
                return Err(AxError::InvalidInput);
            }
            self.0.lock().unwrap().push((irq, what));
            Ok(())
        }

        fn take(&self) -> Vec<&'static str> {
            self.0.lock().unwrap().drain(..).map(|(_, what)| what).collect()
        }
    }

    impl IrqInput for Recorder {
        fn set_level(&self, irq: usize, asserted: bool) -> AxResult {
            self.record(irq, if asserted { "high" } else { "low" })
        }

        fn pulse(&self, irq: usize) -> AxResult {
            self.record(irq, "pulse")
        }
    }

    #[test]
    fn a_level_line_tells_each_change_once() {
        let input = Arc::new(Recorder::default());
        let line = IrqLine::new(input.clone(), 5, Trigger::Level);
        line.deassert().unwrap();
        assert!(input.take().is_empty());
        line.assert().unwrap();
        line.assert().unwrap();
        assert_eq!(input.take(), ["high"]);
        line.deassert().unwrap();
        line.deassert().unwrap();
        assert_eq!(input.take(), ["low"]);
    }

    #[test]
    fn an_edge_line_pulses_at_each_rising_edge_only() {
        let input = Arc::new(Recorder::default());
        let line = IrqLine::new(input.clone(), 5, Trigger::Edge);
        for _ in 0..2 {
            line.assert().unwrap();
            line.assert().unwrap();
            line.deassert().unwrap();
        }
        assert_eq!(input.take(), ["pulse", "pulse"]);
        line.pulse().unwrap();
        assert_eq!(input.take(), ["pulse"]);
    }

    #[test]
    fn a_line_to_nowhere_says_so_every_time() {
        let line = IrqLine::new(Arc::new(Recorder::default()), 101, Trigger::Level);
        assert_eq!(line.assert(), Err(AxError::InvalidInput));
        assert_eq!(line.assert(), Err(AxError::InvalidInput));
        assert_eq!(line.deassert(), Ok(()));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::atomic::AtomicUsize, thread};

    /// The level, and how many calls are inside.
    struct Input {
        level: AtomicU8,
        inside: AtomicUsize,
    }

    impl IrqInput for Input {
        fn set_level(&self, _: usize, asserted: bool) -> AxResult {
            assert_eq!(self.inside.fetch_add(1, Ordering::AcqRel), 0, "told twice at once");
            let old = self.level.swap(asserted.into(), Ordering::AcqRel);
            assert_ne!(old, asserted.into(), "told what it knew");
            self.inside.fetch_sub(1, Ordering::AcqRel);
            Ok(())
        }

        fn pulse(&self, _: usize) -> AxResult {
            Ok(())
        }
    }

    #[test]
    fn loom_the_controller_ends_at_the_line_s_last_level() {
        loom::model(|| {
            let input = Arc::new(Input { level: AtomicU8::new(0), inside: AtomicUsize::new(0) });
            let line = loom::sync::Arc::new(IrqLine::new(input.clone(), 0, Trigger::Level));
            let other = line.clone();
            let thread = thread::spawn(move || {
                other.assert().unwrap();
                other.deassert().unwrap();
            });
            line.assert().unwrap();
            thread.join().unwrap();
            let wanted = line.state.load(Ordering::Acquire) & WANTED;
            assert_eq!(input.level.load(Ordering::Acquire), wanted);
        });
    }
}
