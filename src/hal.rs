//! What the host kernel provides.

#![forbid(unsafe_code)]

use axerrno::AxResult;

use crate::{
    mm::{HostPhysAddr, HostVirtAddr, PagingHandler},
    vcpu::VcpuExit,
};

/// The services that the host kernel gives the crate.
///
/// Ten items are required; every other one is a provided method whose default is sound for a
/// single-CPU host. No item has a `self`: an implementation is a marker type of the host's.
///
/// Methods may be called on any physical CPU, with or without interrupts masked, and while the
/// crate holds one of its spin locks. They must not call back into the VM they are called for.
///
/// The crate's locks are spin locks. A host that preempts its threads masks preemption around
/// every call into a VM, as `run_vcpu` would otherwise wait, with interrupts masked, for a thread
/// that cannot run. From an interrupt handler only those calls are made that take no lock of the
/// VM's: injecting interrupts, driving an [`IrqLine`](crate::irq::IrqLine), looking at states.
pub trait AxVMHal: Sized + 'static {
    /// Allocates frames and turns physical addresses into virtual ones. Frames are 4 KiB; a
    /// frame need not be zeroed (the crate does it). Any frame that is handed out must be
    /// writable at `phys_to_virt` of its address until it is freed.
    type PagingHandler: PagingHandler;

    /// Takes the host-physical range `base .. base + size` out of the host's memory, for a guest
    /// region that is mapped at identical addresses. Returns false when it cannot. Like a frame,
    /// the range must be writable at `phys_to_virt` of its addresses.
    fn alloc_memory_region_at(base: HostPhysAddr, size: usize) -> bool;

    /// Gives back a range taken with [`alloc_memory_region_at`](Self::alloc_memory_region_at);
    /// called once, with the same base and size.
    fn dealloc_memory_region_at(base: HostPhysAddr, size: usize);

    /// The physical address behind a host-virtual one.
    fn virt_to_phys(vaddr: HostVirtAddr) -> HostPhysAddr;

    /// Monotonic time in nanoseconds, the same on every physical CPU.
    fn current_time_nanos() -> u64;

    /// The id of the VM whose vCPU runs on this physical CPU.
    fn current_vm_id() -> usize;

    /// The id of the vCPU that runs on this physical CPU.
    fn current_vcpu_id() -> usize;

    /// The index of this physical CPU, below [`MAX_PCPUS`](crate::vcpu::MAX_PCPUS).
    fn current_pcpu_id() -> usize;

    /// The physical CPU on which the host runs or would run a vCPU. The crate does not call it
    /// (it keeps track itself); it is for the host's own use.
    ///
    /// # Errors
    /// `NotFound` when there is no such vCPU.
    fn vcpu_resides_on(vm_id: usize, vcpu_id: usize) -> AxResult<usize>;

    /// The host's own way in: injects an interrupt into a vCPU of any VM. The crate never calls
    /// it; the natural implementation looks the VM up and calls
    /// [`AxVM::inject_interrupt_to_vcpu`](crate::vm::AxVM::inject_interrupt_to_vcpu).
    ///
    /// # Errors
    /// `NotFound` when there is no such vCPU.
    fn inject_irq_to_vcpu(vm_id: usize, vcpu_id: usize, irq: usize) -> AxResult;

    /// Makes a guest on physical CPU `cpu` exit soon, usually by an inter-processor interrupt.
    ///
    /// Doing nothing is sound on one physical CPU, and on several if each comes back to
    /// [`run_vcpu`](crate::vm::AxVM::run_vcpu) periodically, for example by its timer tick:
    /// then interrupts and shutdowns arrive one tick late.
    fn kick_pcpu(cpu: usize) {
        let _ = cpu;
    }

    /// A vCPU whose last [`run_vcpu`](crate::vm::AxVM::run_vcpu) returned `Halt` has something to
    /// do: schedule it again. Called at most once for each halt, and possibly before `run_vcpu` has
    /// returned: a host marks the vCPU asleep first, and then asks
    /// [`AxVM::has_work`](crate::vm::AxVM::has_work).
    ///
    /// Doing nothing is sound if the host runs halted vCPUs again periodically.
    fn wake_vcpu(vm_id: usize, vcpu_id: usize) {
        let _ = (vm_id, vcpu_id);
    }

    /// Arms this physical CPU's host timer for a vCPU about to run: `deadline` is in nanoseconds
    /// of [`current_time_nanos`](Self::current_time_nanos). The timer interrupt makes the guest
    /// exit.
    ///
    /// With the default, the host comes back to [`run_vcpu`](crate::vm::AxVM::run_vcpu) by
    /// [`AxVM::next_deadline`](crate::vm::AxVM::next_deadline).
    fn set_timer(deadline: u64) {
        let _ = deadline;
    }

    /// How often per second the architecture's counter ticks (the RISC-V `time` CSR), if the host
    /// knows, for example from its device tree. It is the same on every CPU, and does not change.
    ///
    /// Without it, a backend that needs to know measures it against
    /// [`current_time_nanos`](Self::current_time_nanos) when a CPU is first enabled, which takes
    /// about a millisecond and is as exact as that.
    fn counter_frequency() -> Option<u64> {
        None
    }

    /// Sees each exit of a guest before it is served, for tracing. Called with the vCPU bound and
    /// interrupts masked.
    #[inline(always)]
    fn trace_exit(vm_id: usize, vcpu_id: usize, exit: &VcpuExit) {
        let _ = (vm_id, vcpu_id, exit);
    }

    /// Called in the crate's few waiting loops, each of which waits for another CPU. A host with
    /// cooperative threads may yield here.
    fn relax() {
        core::hint::spin_loop();
    }
}
