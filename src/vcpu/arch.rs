//! The backend traits: what one architecture's vCPU implements. A backend knows nothing of the
//! VM; it is given a page-table root, a tag and interrupts, and reports exits.

#![forbid(unsafe_code)]

use axerrno::AxResult;

use super::{
    Hardware, VcpuSpec,
    exit::{Completion, DecodedAccess, GuestFence, VcpuExit},
};
use crate::{
    irq::{IrqHw, Priority},
    mm::{
        GuestPhysAddr, HostPhysAddr, PageSize,
        npt::{Geometry, NptFormat},
        tlb::NestedTlb,
    },
};

/// One vCPU of an architecture.
///
/// The calls come in this order, all from the vCPU's owner: `new`, `set_entry`, `set_ept_root`,
/// `setup`; then any number of times `bind`, (`set_vmid`, `power_on`, interrupt and state calls,
/// `run`, `complete`)*, `unbind`. Between `bind` and `unbind` the caller stays on one physical
/// CPU, whose hardware is enabled. An error leaves the vCPU as it was before the call.
pub trait AxArchVCpu: Sized + Send + 'static {
    /// What `new` takes, made from the VM's configuration.
    type CreateConfig: for<'a> From<&'a VcpuSpec>;
    /// What `setup` takes, made from the VM's configuration.
    type SetupConfig: for<'a> From<&'a VcpuSpec>;
    /// The part that belongs to a physical CPU.
    type PerCpu: AxArchPerCpu;
    /// The format of the nested page table.
    type Npt: NptFormat;
    /// The TLB instructions that go with it.
    type Tlb: NestedTlb;
    /// What the hardware offers an interrupt controller: list registers, `hvip`, virtual-interrupt
    /// delivery, or plain injection.
    type IrqHw: IrqHw + ?Sized;
    /// Which of several interrupts goes first where no controller decides.
    const IRQ_PRIORITY: Priority;
    /// Everything that a guest can observe of its vCPU, for reset, snapshot and migration.
    type State: Clone + Send;

    /// Whether this machine can run such a vCPU. Asks CPUID or ID registers alone, harmless in a
    /// user process; where an architecture has none for it (RISC-V), the bare-metal build probes
    /// with traps caught, and any other says no.
    fn has_hardware_support() -> bool;

    /// The shape of the nested page table on this machine.
    ///
    /// # Errors
    /// `Unsupported` when the hardware has no shape that the crate knows.
    fn npt_geometry() -> AxResult<Geometry>;

    /// The largest leaf that the hardware takes.
    fn max_leaf() -> PageSize {
        PageSize::Size1G
    }

    /// The backend's physical CPUs and VMIDs; always the same static.
    fn hardware() -> &'static Hardware;

    /// Creates the vCPU, switched on, without an entry point.
    ///
    /// # Errors
    /// `NoMemory` for its hardware structures; `Unsupported` for a missing feature.
    fn new(vm_id: usize, vcpu_id: usize, config: Self::CreateConfig) -> AxResult<Self>;

    /// Sets where the guest begins.
    ///
    /// # Errors
    /// `InvalidInput` when the architecture cannot begin there.
    fn set_entry(&mut self, entry: GuestPhysAddr) -> AxResult;

    /// Sets the root of the nested page table.
    ///
    /// # Errors
    /// `InvalidInput` for a root that the hardware cannot take.
    fn set_ept_root(&mut self, root: HostPhysAddr) -> AxResult;

    /// Completes the vCPU; after it, only bound calls follow.
    ///
    /// # Errors
    /// `Unsupported` for what the hardware lacks.
    fn setup(&mut self, config: Self::SetupConfig) -> AxResult;

    /// Loads what stays in this physical CPU while the vCPU is bound to it.
    ///
    /// # Errors
    /// Whatever the hardware refuses.
    fn bind(&mut self) -> AxResult;

    /// The opposite of `bind`.
    ///
    /// # Errors
    /// Whatever the hardware refuses; the vCPU is lost then, until the VM is reset.
    fn unbind(&mut self) -> AxResult;

    /// The VMID that the next entries use; called when it changes, between `bind` and `run`.
    fn set_vmid(&mut self, vmid: u16);

    /// Runs the guest until it exits. Host interrupts are masked before and after. Accesses that
    /// use the guest's translations (fetching an instruction, say) happen here and not later:
    /// after `run` the VM may free what the hardware's TLB still knows. Running with the last
    /// exit unanswered executes its instruction again.
    ///
    /// # Errors
    /// A failure that is no exit; it goes to the host as it is.
    fn run(&mut self) -> AxResult<VcpuExit>;

    /// Finishes the instruction of the last exit, program counter included. A repeated
    /// instruction (x86 REP) is finished one round at a time: the guest executes it again. Returns the next access of the same
    /// instruction, if it has more than one (pairs, memory to memory, read-modify-write).
    ///
    /// # Errors
    /// `BadState` when there is nothing to complete, `InvalidInput` when the answer does not fit
    /// the exit.
    fn complete(&mut self, done: Completion) -> AxResult<Option<VcpuExit>>;

    /// Decodes the instruction of the last exit, a fault that came without one and turned out to
    /// be for a device. None: it cannot be emulated, the guest gets a fault.
    fn decode(&mut self) -> Option<DecodedAccess> {
        None
    }

    /// Sets a general-purpose register; a number that the architecture does not have is ignored.
    fn set_gpr(&mut self, reg: usize, value: usize);

    /// Sets the register that holds a call's return value.
    fn set_return_value(&mut self, value: usize);

    /// Offers an interrupt to the hardware for the next entry.
    ///
    /// # Errors
    /// `ResourceBusy` when the guest cannot take it now; the backend then exits as soon as it
    /// can. `InvalidInput` for a vector that the architecture does not have.
    fn inject_interrupt(&mut self, vector: usize) -> AxResult {
        self.irq_hw().inject(vector)
    }

    /// The interface for an interrupt controller, valid while bound.
    fn irq_hw(&mut self) -> &mut Self::IrqHw;

    /// Starts the vCPU anew as a secondary: reset state, entry point, argument in the register
    /// that the firmware interface names (PSCI 1.1 §5.6, SBI HSM, SIPI).
    ///
    /// # Errors
    /// `InvalidInput` when the architecture cannot begin there.
    fn power_on(&mut self, entry: GuestPhysAddr, arg: u64) -> AxResult;

    /// As [`power_on`](Self::power_on), for a vCPU that suspends itself and loses its state. What
    /// ends the suspension stays: its timer, interrupts that are pending, and which it wants.
    ///
    /// # Errors
    /// As for `power_on`; nothing is changed then.
    fn resume(&mut self, entry: GuestPhysAddr, arg: u64) -> AxResult {
        self.power_on(entry, arg)
    }

    /// When the guest's own timers next need the host to bring the vCPU back, in nanoseconds of
    /// the host's clock. A deadline that is due is not reported: the backend shows it to the
    /// guest at the next entry, and [`has_wakeup`](Self::has_wakeup) says so.
    fn next_deadline(&mut self) -> Option<u64> {
        None
    }

    /// When the host's timer must interrupt the guest, in nanoseconds of
    /// [`AxVMHal::current_time_nanos`](crate::AxVMHal::current_time_nanos): asked before each
    /// entry. A backend whose timer the hardware delivers to the guest says never.
    #[inline]
    fn interrupt_at(&mut self) -> Option<u64> {
        self.next_deadline()
    }

    /// Makes this CPU forget what it cached for the guest. Called while bound, after `set_vmid`,
    /// on a guest's request to fence other vCPUs; also when the vCPU comes from another CPU, or
    /// another vCPU of the VM ran on this one since it did (where entries are tagged by VMID alone,
    /// the two share them), and when images were loaded.
    fn fence(&mut self, fence: GuestFence) {
        let _ = fence;
    }

    /// Whether something of the vCPU's own, a timer that is due or a line that is up, would wake
    /// it from waiting for an interrupt.
    fn has_wakeup(&mut self) -> bool {
        false
    }

    /// Reads the whole state.
    fn state(&mut self) -> Self::State;

    /// Replaces the whole state.
    ///
    /// # Errors
    /// `InvalidInput` for a state that the hardware cannot hold; nothing is changed then.
    fn set_state(&mut self, state: &Self::State) -> AxResult;
}

/// The part of a backend that belongs to one physical CPU.
pub trait AxArchPerCpu: Sized {
    /// Prepares for `cpu_id`, without touching the hardware.
    ///
    /// # Errors
    /// `NoMemory`.
    fn new(cpu_id: usize) -> AxResult<Self>;

    /// Whether virtualization is on.
    fn is_enabled(&self) -> bool;

    /// Switches virtualization on; on the CPU itself.
    ///
    /// # Errors
    /// `Unsupported` when the CPU or its firmware does not allow it; `BadState` when it is on.
    fn hardware_enable(&mut self) -> AxResult;

    /// Switches virtualization off; on the CPU itself.
    ///
    /// # Errors
    /// `BadState` when it is off.
    fn hardware_disable(&mut self) -> AxResult;
}
