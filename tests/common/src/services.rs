//! What the HALs of `mock_hal!` do: the macro only forwards to here.
#![allow(missing_docs, reason = "each function is the item of AxVMHal with its name")]

use axerrno::{AxErrorKind, AxResult};
use axvm::mm::{HostPhysAddr, HostVirtAddr};

use crate::{MockHal, pcpu};

/// The id that `current_vm_id` and `current_vcpu_id` give where nothing is bound.
pub const NOBODY: usize = usize::MAX;

pub fn alloc_memory_region_at<H: MockHal>(base: HostPhysAddr, size: usize) -> bool {
    H::machine().regions().take(base, size)
}

#[track_caller]
pub fn dealloc_memory_region_at<H: MockHal>(base: HostPhysAddr, size: usize) {
    H::machine().regions().give_back(base, size);
}

#[track_caller]
pub fn virt_to_phys<H: MockHal>(vaddr: HostVirtAddr) -> HostPhysAddr {
    H::machine().virt_to_phys(vaddr)
}

pub fn current_time_nanos<H: MockHal>() -> u64 {
    H::machine().look_at_clock()
}

pub fn counter_frequency<H: MockHal>() -> Option<u64> {
    Some(H::machine().config().counter_hz).filter(|&hz| hz != 0)
}

pub fn current_vm_id<H: MockHal>() -> usize {
    H::machine().bound_on(pcpu()).map_or(NOBODY, |(vm, _)| vm)
}

pub fn current_vcpu_id<H: MockHal>() -> usize {
    H::machine().bound_on(pcpu()).map_or(NOBODY, |(_, vcpu)| vcpu)
}

pub fn vcpu_resides_on<H: MockHal>(vm_id: usize, vcpu_id: usize) -> AxResult<usize> {
    H::machine().residence(vm_id, vcpu_id).ok_or(AxErrorKind::NotFound.into())
}

pub fn inject_irq_to_vcpu<H: MockHal>(vm_id: usize, vcpu_id: usize, irq: usize) -> AxResult {
    H::machine().injection(vm_id, vcpu_id, irq)
}

pub fn kick_pcpu<H: MockHal>(cpu: usize) {
    H::machine().kick(cpu);
}

pub fn wake_vcpu<H: MockHal>(vm_id: usize, vcpu_id: usize) {
    H::machine().wake(vm_id, vcpu_id);
}

pub fn set_timer<H: MockHal>(deadline: u64) {
    H::machine().arm_timer(pcpu(), deadline);
}
