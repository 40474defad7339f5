//! An access that was handed to the host and waits for the host's answer.

#![forbid(unsafe_code)]

use axerrno::{AxError, AxResult, ax_err};

use super::Completion;
use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What kind of answer an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Awaited {
    /// A value that was read.
    Read = 1,
    /// That the write is done.
    Write = 2,
    /// A return value.
    Return = 3,
}

const IDLE: u8 = 0;
/// Added to `Awaited` while the answer is being written, and when it is there.
const FILLING: u8 = 0x10;
const ANSWERED: u8 = 0x20;

/// One vCPU's outstanding access, if it has one.
pub(crate) struct PendingAnswer {
    state: AtomicU8,
    value: AtomicU64,
}

impl PendingAnswer {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU8::new(IDLE), value: AtomicU64::new(0) }
    }

    /// The owner hands an access to the host.
    pub(crate) fn expect(&self, kind: Awaited) {
        self.state.store(kind as u8, Ordering::Release);
    }

    /// Forgets it: the vCPU starts anew.
    pub(crate) fn forget(&self) {
        self.state.store(IDLE, Ordering::Release);
    }

    /// The host answers, from any CPU.
    ///
    /// # Errors
    /// `BadState` when nothing waits for an answer.
    pub(crate) fn answer(&self, value: u64) -> AxResult {
        let claimed = self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
            (1..=Awaited::Return as u8).contains(&state).then_some(state | FILLING)
        });
        match claimed {
            Ok(kind) => {
                self.value.store(value, Ordering::Relaxed);
                // Forgotten meanwhile, it is no answer to what is handed out next.
                let _ = self.state.compare_exchange(
                    kind | FILLING,
                    kind | ANSWERED,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
                Ok(())
            }
            Err(_) => ax_err!(BadState, "no access of this vCPU waits for an answer"),
        }
    }

    /// The answer, for the owner, who [forgets](Self::forget) it when it has served; none when
    /// nothing was handed out.
    ///
    /// # Errors
    /// `BadState` when the host has not answered yet.
    #[inline]
    pub(crate) fn peek(&self) -> AxResult<Option<Completion>> {
        let state = self.state.load(Ordering::Acquire);
        if state == IDLE {
            return Ok(None);
        }
        if state & ANSWERED == 0 {
            return Err(AxError::BadState);
        }
        let value = self.value.load(Ordering::Relaxed);
        Ok(Some(match state & 0xf {
            kind if kind == Awaited::Read as u8 => Completion::Read(value),
            kind if kind == Awaited::Return as u8 => Completion::Return(value),
            _ => Completion::Written,
        }))
    }
}
