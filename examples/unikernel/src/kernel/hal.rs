//! What the library needs of this host.

use axerrno::{AxError, AxResult};
use axvm::{
    AxVMHal,
    mm::{HostPhysAddr, HostVirtAddr},
    vcpu::VcpuExit,
};

use super::{arch, cpu, memory, vms};

/// This host.
pub struct Host;

impl AxVMHal for Host {
    type PagingHandler = memory::Frames;

    fn alloc_memory_region_at(base: HostPhysAddr, size: usize) -> bool {
        memory::take(base, size)
    }

    fn dealloc_memory_region_at(base: HostPhysAddr, size: usize) {
        memory::give(base, size);
    }

    fn virt_to_phys(vaddr: HostVirtAddr) -> HostPhysAddr {
        vaddr.as_usize().into() // The MMU is off.
    }

    fn current_time_nanos() -> u64 {
        arch::now()
    }

    fn current_vm_id() -> usize {
        cpu::this().current().0
    }

    fn current_vcpu_id() -> usize {
        cpu::this().current().1
    }

    fn current_pcpu_id() -> usize {
        cpu::this().index
    }

    fn vcpu_resides_on(vm_id: usize, vcpu_id: usize) -> AxResult<usize> {
        let vm = vms::by_id(vm_id).ok_or(AxError::NotFound)?;
        vm.home(vcpu_id).map(|cpu| cpu.index).ok_or(AxError::NotFound)
    }

    fn inject_irq_to_vcpu(vm_id: usize, vcpu_id: usize, irq: usize) -> AxResult {
        let vm = vms::by_id(vm_id).ok_or(AxError::NotFound)?;
        vm.inject(vcpu_id, irq)
    }

    fn kick_pcpu(cpu: usize) {
        if let Some(cpu) = cpu::all().get(cpu) {
            arch::interrupt(cpu.id);
        }
    }

    fn wake_vcpu(vm_id: usize, vcpu_id: usize) {
        if let Some(vm) = vms::by_id(vm_id) {
            vm.wake(vcpu_id);
        }
    }

    fn set_timer(deadline: u64) {
        cpu::this().set_guest_deadline(deadline);
    }

    fn counter_frequency() -> Option<u64> {
        Some(arch::counter_frequency())
    }

    #[inline(always)]
    fn trace_exit(vm_id: usize, vcpu_id: usize, exit: &VcpuExit) {
        // Looked at for each exit.
        if vms::is_tracing()
            && let Some(vm) = vms::by_id(vm_id)
        {
            vm.trace(vcpu_id, exit);
        }
    }
}
