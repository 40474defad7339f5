//! Virtual CPUs: the object and its ownership, the backend traits, exits, counters, and what the
//! crate knows of physical CPUs.
//!
//! A backend implements [`AxArchVCpu`]; a host touches [`AxVMPerCpu`] and looks at [`AxVCpu`].

mod arch;
mod attention;
mod cell;
mod exit;
#[cfg(all(test, loom))]
mod loom_tests;
mod mask;
mod pending;
mod percpu;
mod power;
mod stats;

pub(crate) use attention::Attention;
pub(crate) use cell::{BoundVCpu, Claim};
pub(crate) use pending::Awaited;

pub use arch::{AxArchPerCpu, AxArchVCpu};
pub use cell::{AxVCpu, AxVCpuRef, VCpuState};
pub use exit::{
    Access, AccessOp, AccessWidth, AxVCpuExitReason, Completion, ConsoleCall, CpuPower, CpuUpError,
    DecodedAccess, GuestFault, GuestFence, IpiTargets, LoadTarget, MemFault, Port, Service,
    SysRegAddr, VcpuExit,
};
pub use mask::{CpuMask, MAX_VCPUS};
pub use percpu::{AxVMPerCpu, Hardware, MAX_PCPUS};
pub use stats::{ExitKind, VcpuEvent, VcpuStats};

use crate::{config::VMInterruptMode, mm::GuestPhysAddr};

/// What a backend may know of the VM's configuration when it creates a vCPU.
#[derive(Clone, Debug)]
pub struct VcpuSpec {
    /// The VM.
    pub vm_id: usize,
    /// The vCPU's index in the VM.
    pub vcpu_id: usize,
    /// The guest's name for it: MPIDR affinity, hart id, APIC id.
    pub guest_cpu_id: u64,
    /// The argument that the guest's boot protocol passes, usually the device tree's address.
    pub boot_arg: Option<GuestPhysAddr>,
    /// How physical interrupts reach the guest.
    pub interrupt_mode: VMInterruptMode,
}
