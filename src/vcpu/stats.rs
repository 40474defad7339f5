//! Counters of one vCPU.

#![forbid(unsafe_code)]

use super::{Service, VcpuExit};
use core::sync::atomic::{AtomicU64, Ordering};

/// Why guests exit, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
#[expect(missing_docs, reason = "the names are those of `VcpuExit`'s and `Service`'s kinds")]
pub enum ExitKind {
    MemFault,
    Port,
    SysReg,
    Hypercall,
    ExternalInterrupt,
    Halt,
    CpuUp,
    CpuDown,
    CpuStatus,
    CpuSuspend,
    SendIpi,
    RemoteFence,
    Console,
    SystemDown,
    SystemReset,
    FailEntry,
    Firmware,
    Exception,
    FloatingPoint,
    Nothing,
}

impl ExitKind {
    /// All kinds.
    pub const ALL: [Self; 20] = [
        Self::MemFault,
        Self::Port,
        Self::SysReg,
        Self::Hypercall,
        Self::ExternalInterrupt,
        Self::Halt,
        Self::CpuUp,
        Self::CpuDown,
        Self::CpuStatus,
        Self::CpuSuspend,
        Self::SendIpi,
        Self::RemoteFence,
        Self::Console,
        Self::SystemDown,
        Self::SystemReset,
        Self::FailEntry,
        Self::Firmware,
        Self::Exception,
        Self::FloatingPoint,
        Self::Nothing,
    ];
}

impl From<&VcpuExit> for ExitKind {
    #[inline]
    fn from(exit: &VcpuExit) -> Self {
        match exit {
            VcpuExit::MemFault(_) => Self::MemFault,
            VcpuExit::Port { .. } => Self::Port,
            VcpuExit::SysReg { .. } => Self::SysReg,
            VcpuExit::Hypercall { .. } => Self::Hypercall,
            VcpuExit::ExternalInterrupt { .. } => Self::ExternalInterrupt,
            VcpuExit::Halt => Self::Halt,
            VcpuExit::CpuUp { .. } => Self::CpuUp,
            VcpuExit::CpuDown => Self::CpuDown,
            VcpuExit::CpuStatus { .. } => Self::CpuStatus,
            VcpuExit::CpuSuspend { .. } => Self::CpuSuspend,
            VcpuExit::SendIpi { .. } => Self::SendIpi,
            VcpuExit::RemoteFence { .. } => Self::RemoteFence,
            VcpuExit::Console(_) => Self::Console,
            VcpuExit::SystemDown => Self::SystemDown,
            VcpuExit::SystemReset => Self::SystemReset,
            VcpuExit::FailEntry { .. } => Self::FailEntry,
            VcpuExit::Served(Service::Firmware) => Self::Firmware,
            VcpuExit::Served(Service::Exception) => Self::Exception,
            VcpuExit::Served(Service::FloatingPoint) => Self::FloatingPoint,
            VcpuExit::Nothing => Self::Nothing,
        }
    }
}

/// What happens to a vCPU besides exits, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum VcpuEvent {
    /// A fault that gave the guest a page.
    PagePopulated,
    /// A fault on a page that was mapped by then, or that a stale TLB entry caused.
    SpuriousFault,
    /// An access that a region's permissions forbid.
    PermissionFault,
    /// An access that no device and no memory claimed, or of an illegal width.
    Unclaimed,
    /// An access that a device's handler answered with an error.
    DeviceError,
    /// An interrupt queued for the vCPU.
    InterruptInjected,
    /// An exception queued for the vCPU.
    FaultInjected,
}

impl VcpuEvent {
    /// All events.
    pub const ALL: [Self; 7] = [
        Self::PagePopulated,
        Self::SpuriousFault,
        Self::PermissionFault,
        Self::Unclaimed,
        Self::DeviceError,
        Self::InterruptInjected,
        Self::FaultInjected,
    ];
}

/// Counters of one vCPU since its creation; they wrap after 2^64. Each event costs one relaxed
/// addition to a line that is the vCPU's own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct VcpuStats {
    exits: [AtomicU64; ExitKind::ALL.len()],
    events: [AtomicU64; VcpuEvent::ALL.len()],
}

impl VcpuStats {
    /// Exits of one kind.
    pub fn exits(&self, kind: ExitKind) -> u64 {
        self.exits.get(kind as usize).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// All exits.
    pub fn total_exits(&self) -> u64 {
        ExitKind::ALL.iter().fold(0, |sum, &kind| sum.wrapping_add(self.exits(kind)))
    }

    /// Events of one kind.
    pub fn events(&self, event: VcpuEvent) -> u64 {
        self.events.get(event as usize).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn count_exit(&self, exit: &VcpuExit) {
        if let Some(n) = self.exits.get(ExitKind::from(exit) as usize) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts an event and returns how many there were before.
    #[inline]
    pub(crate) fn count(&self, event: VcpuEvent) -> u64 {
        self.events.get(event as usize).map_or(0, |n| n.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        for (index, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        for (index, event) in VcpuEvent::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
        }
        let stats = VcpuStats::default();
        stats.count_exit(&VcpuExit::Halt);
        assert_eq!((stats.exits(ExitKind::Halt), stats.total_exits()), (1, 1));
    }
}
