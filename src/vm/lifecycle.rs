//! The states of a VM and the transitions between them, each one compare-and-set.

#![forbid(unsafe_code)]

use axerrno::{AxError, AxResult};

use crate::sync::atomic::{AtomicU8, Ordering};

/// The state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VMStatus {
    /// Created or reset; not booted.
    Created = 0,
    /// `boot` is under way.
    Booting = 1,
    /// vCPUs may run.
    Running = 2,
    /// No vCPU starts any more; those in the guest are leaving.
    ShuttingDown = 3,
    /// Every vCPU is out.
    Terminated = 4,
    /// The hardware refused the guest, or a reset failed half-way; `shutdown` or `reset` it.
    Failed = 5,
    /// `reset` is under way.
    Resetting = 6,
}

/// Who ended a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EndReason {
    /// The host called `shutdown`.
    Host = 1,
    /// The guest powered off.
    PowerOff = 2,
    /// The guest asked for a reset.
    Reset = 3,
    /// The hardware refused the guest.
    Failed = 4,
}

/// Status in the low four bits, end reason (or 0) in the high four.
pub(crate) struct Lifecycle(AtomicU8);

const fn pack(status: VMStatus, end: Option<EndReason>) -> u8 {
    status as u8
        | match end {
            Some(end) => (end as u8) << 4,
            None => 0,
        }
}

const fn status(word: u8) -> VMStatus {
    match word & 0xf {
        0 => VMStatus::Created,
        1 => VMStatus::Booting,
        2 => VMStatus::Running,
        3 => VMStatus::ShuttingDown,
        4 => VMStatus::Terminated,
        6 => VMStatus::Resetting,
        _ => VMStatus::Failed,
    }
}

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(pack(VMStatus::Created, None)))
    }

    #[inline]
    pub(crate) fn status(&self) -> VMStatus {
        status(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        Some(match self.0.load(Ordering::Acquire) >> 4 {
            1 => EndReason::Host,
            2 => EndReason::PowerOff,
            3 => EndReason::Reset,
            4 => EndReason::Failed,
            _ => return None,
        })
    }

    /// Moves on if `allowed` says so of the present status; of concurrent callers one succeeds.
    fn advance(
        &self,
        to: VMStatus,
        end: Option<EndReason>,
        allowed: impl Fn(VMStatus) -> bool,
    ) -> AxResult {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                // The first reason stays.
                let reason = if word >> 4 == 0 { pack(to, end) } else { word & 0xf0 };
                allowed(status(word)).then_some(reason & 0xf0 | to as u8)
            })
            .map(drop)
            .map_err(|_| AxError::BadState)
    }

    /// Created → Booting.
    pub(crate) fn begin_boot(&self) -> AxResult {
        self.advance(VMStatus::Booting, None, |now| now == VMStatus::Created)
    }

    /// Booting → Running, unless it was shut down meanwhile.
    pub(crate) fn finish_boot(&self) -> AxResult {
        self.advance(VMStatus::Running, None, |now| now == VMStatus::Booting)
    }

    /// Anything that has not ended → ShuttingDown.
    pub(crate) fn shut_down(&self, end: EndReason) -> AxResult {
        self.advance(VMStatus::ShuttingDown, Some(end), |now| {
            matches!(
                now,
                VMStatus::Created | VMStatus::Booting | VMStatus::Running | VMStatus::Failed
            )
        })
    }

    /// Running → Failed.
    pub(crate) fn fail(&self) -> AxResult {
        let failed = Some(EndReason::Failed);
        self.advance(VMStatus::Failed, failed, |now| now == VMStatus::Running)
    }

    /// ShuttingDown → Terminated; the caller has seen every vCPU out.
    pub(crate) fn terminate(&self) -> AxResult {
        self.advance(VMStatus::Terminated, None, |now| now == VMStatus::ShuttingDown)
    }

    /// Created, Terminated or Failed → Resetting.
    pub(crate) fn begin_reset(&self) -> AxResult {
        self.advance(VMStatus::Resetting, None, |now| {
            matches!(now, VMStatus::Created | VMStatus::Terminated | VMStatus::Failed)
        })
    }

    /// Resetting → the given status; `Created` forgets how the VM ended.
    pub(crate) fn finish_reset(&self, to: VMStatus) {
        let end = if to == VMStatus::Created { 0 } else { self.0.load(Ordering::Relaxed) & 0xf0 };
        self.0.store(end | to as u8, Ordering::Release);
    }
}
