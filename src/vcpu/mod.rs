//! Virtual CPUs.

mod arch;
mod exit;
mod mask;
mod percpu;

pub use arch::{AxArchPerCpu, AxArchVCpu};
pub use exit::{
    Access, AccessOp, AccessWidth, AxVCpuExitReason, Completion, CpuUpError, DecodedAccess,
    GuestFault, IpiTargets, LoadTarget, MemFault, Port, SysRegAddr, VcpuExit,
};
pub use mask::{CpuMask, MAX_VCPUS};
pub use percpu::{AxVMPerCpu, Hardware, MAX_PCPUS};

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
