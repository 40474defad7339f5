//! A vCPU that runs a script: see [`ScriptedVCpu`].

use std::marker::PhantomData;

use axerrno::{AxErrorKind, AxResult};
use axvm::{
    mm::{GuestPhysAddr, HostPhysAddr, PageSize, npt::Geometry},
    vcpu::{
        AxArchVCpu, Completion, DecodedAccess, GuestFault, GuestFence, Hardware, VcpuExit, VcpuSpec,
    },
};

use crate::{
    Call, Event, HwNpt, Machine, MockHal, Program, ScriptedIrq, ScriptedPerCpu, SoftTlb,
    execute::Core, mmu::Mmu, pcpu, program::Decode,
};

/// What a scripted vCPU is created and set up with.
#[derive(Clone, Debug)]
pub struct ScriptedConfig(pub VcpuSpec);

impl From<&VcpuSpec> for ScriptedConfig {
    fn from(spec: &VcpuSpec) -> Self {
        Self(spec.clone())
    }
}

/// Everything that a guest can observe of its vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScriptedState {
    /// 4 more for every step done.
    pub pc: u64,
    /// The registers; 0 has arguments and results.
    pub regs: [u64; 32],
    /// Whether it was switched off by a `CpuDown`.
    pub off: bool,
    /// The fault it takes next.
    pub fault: Option<GuestFault>,
    /// The interrupts it takes next.
    pub irqs: Vec<usize>,
    /// When its timer wants it to run.
    pub deadline: Option<u64>,
}

/// A vCPU on the machine of `H`, with page tables of format `F` and TLBs that are invalidated
/// for all physical CPUs together (`BROADCAST`) or one by one. It does what its [`Program`] says,
/// and panics when the crate breaks the contract of [`AxArchVCpu`].
pub struct ScriptedVCpu<H: MockHal, F: HwNpt, const BROADCAST: bool> {
    pub(crate) core: Core,
    irq: ScriptedIrq<H>,
    entry: Option<GuestPhysAddr>,
    root: Option<HostPhysAddr>,
    ready: bool,
    bound: Option<usize>,
    vmid: Option<u16>,
    /// The physical CPU of the last run, and how often that changed.
    stay: (usize, u64),
    types: PhantomData<fn() -> F>,
}

impl<H: MockHal, F: HwNpt, const BROADCAST: bool> ScriptedVCpu<H, F, BROADCAST> {
    fn machine() -> &'static Machine {
        H::machine()
    }

    fn record(&self, event: Event) {
        Self::machine().record(self.core.vm, self.core.vcpu, pcpu(), event);
    }

    /// Asks whether the call shall fail.
    fn may(&self, call: Call) -> AxResult {
        Self::machine().failures.check(call)
    }

    #[track_caller]
    fn contract(&self, holds: bool, complaint: &str) {
        let (vm, vcpu) = (self.core.vm, self.core.vcpu);
        assert!(holds, "contract: vCPU {vcpu} of VM {vm}: {complaint}");
    }

    #[track_caller]
    fn check_bound(&self, call: &str) {
        self.contract(self.bound.is_some(), &format!("{call} while not bound"));
        let complaint = format!("{call} on pCPU {}, bound to {:?}", pcpu(), self.bound);
        self.contract(self.bound == Some(pcpu()), &complaint);
    }

    #[track_caller]
    fn check_early(&self, call: &str) {
        self.contract(!self.ready, &format!("{call} after setup"));
    }

    fn mmu(&self) -> Mmu<'static> {
        Mmu {
            machine: Self::machine(),
            format: F::HW,
            shape: F::shape(Self::machine().input_bits()),
            vmid: self.vmid.expect("a VMID: checked by run"),
            root: self.root.expect("a root: checked by setup"),
            pcpu: pcpu(),
        }
    }

    /// What this CPU cached of translations by the guest's own tables must be this vCPU's, and,
    /// unless others' instructions reach every CPU, from no earlier stay on this CPU.
    #[track_caller]
    fn check_stage1(&mut self) {
        if self.stay.0 != pcpu() {
            self.stay = (pcpu(), self.stay.1 + 1);
        }
        let owner = (self.core.vm, self.core.vcpu, if BROADCAST { 0 } else { self.stay.1 });
        let vmid = self.vmid.unwrap_or_default();
        let old = Self::machine().tlb().of(pcpu()).stage1.insert(vmid, owner);
        let complaint = format!("meets the stage 1 of {old:?} (VM, vCPU, stay) on this CPU");
        self.contract(old.is_none_or(|old| old == owner), &complaint);
    }

    /// An answer that does not fit: a panic, or the documented error.
    #[track_caller]
    fn misuse(&self, kind: AxErrorKind, complaint: &str) -> AxResult<Option<VcpuExit>> {
        self.contract(Self::machine().is_lenient(), complaint);
        Err(kind.into())
    }
}

impl<H: MockHal, F: HwNpt, const BROADCAST: bool> AxArchVCpu for ScriptedVCpu<H, F, BROADCAST> {
    type CreateConfig = ScriptedConfig;
    type SetupConfig = ScriptedConfig;
    type PerCpu = ScriptedPerCpu<H>;
    type Npt = F;
    type Tlb = SoftTlb<H, BROADCAST>;
    type IrqHw = ScriptedIrq<H>;
    type State = ScriptedState;

    const IRQ_PRIORITY: axvm::irq::Priority = axvm::irq::Priority::HighestFirst;

    fn has_hardware_support() -> bool {
        Self::machine().supported()
    }

    fn npt_geometry() -> AxResult<Geometry> {
        Self::machine().failures.check(Call::Geometry)?;
        F::geometry(Self::machine().input_bits())
    }

    fn max_leaf() -> PageSize {
        Self::machine().max_leaf()
    }

    fn hardware() -> &'static Hardware {
        Self::machine().hardware()
    }

    fn new(vm_id: usize, vcpu_id: usize, config: ScriptedConfig) -> AxResult<Self> {
        Self::machine().failures.check(Call::New)?;
        assert_eq!((config.0.vm_id, config.0.vcpu_id), (vm_id, vcpu_id), "contract: ids differ");
        let program: Program = Self::machine().program(vm_id, vcpu_id);
        let irq = ScriptedIrq {
            vm: vm_id,
            vcpu: vcpu_id,
            pending: Vec::new(),
            window: false,
            hal: PhantomData,
        };
        let vcpu = Self {
            core: Core::new(vm_id, vcpu_id, program),
            irq,
            entry: None,
            root: None,
            ready: false,
            bound: None,
            vmid: None,
            stay: (usize::MAX, 0),
            types: PhantomData,
        };
        vcpu.record(Event::New);
        Ok(vcpu)
    }

    fn set_entry(&mut self, entry: GuestPhysAddr) -> AxResult {
        self.check_early("set_entry");
        self.may(Call::SetEntry)?;
        self.entry = Some(entry);
        self.core.state.pc = entry.as_usize() as u64;
        self.record(Event::SetEntry(entry));
        Ok(())
    }

    fn set_ept_root(&mut self, root: HostPhysAddr) -> AxResult {
        self.check_early("set_ept_root");
        self.may(Call::SetRoot)?;
        let size = F::shape(Self::machine().input_bits()).root_entries * 8;
        let aligned = root.as_usize().is_multiple_of(size.max(4096).next_power_of_two());
        self.contract(aligned, &format!("root {root:#x} is not aligned to its {size:#x} bytes"));
        self.contract(Self::machine().owner(root).is_some(), "the root is not allocated");
        self.root = Some(root);
        self.record(Event::SetRoot(root));
        Ok(())
    }

    fn setup(&mut self, config: ScriptedConfig) -> AxResult {
        self.check_early("setup");
        self.contract(self.entry.is_some(), "setup before set_entry");
        self.contract(self.root.is_some(), "setup before set_ept_root");
        self.may(Call::Setup)?;
        self.core.state.regs[0] = config.0.boot_arg.map_or(0, |arg| arg.as_usize() as u64);
        self.ready = true;
        self.record(Event::Setup);
        Ok(())
    }

    fn bind(&mut self) -> AxResult {
        self.contract(self.ready, "bind before setup");
        self.contract(self.bound.is_none(), "bind while bound");
        let enabled = Self::machine().hardware().is_enabled(pcpu());
        self.contract(enabled, "bind on a pCPU that is not enabled");
        self.may(Call::Bind)?;
        Self::machine().bind(pcpu(), self.core.vm, self.core.vcpu);
        self.bound = Some(pcpu());
        self.record(Event::Bind);
        Ok(())
    }

    fn unbind(&mut self) -> AxResult {
        self.check_bound("unbind");
        Self::machine().unbind(pcpu());
        self.bound = None;
        self.may(Call::Unbind)?;
        self.record(Event::Unbind);
        Ok(())
    }

    fn set_vmid(&mut self, vmid: u16) {
        self.check_bound("set_vmid");
        let highest = (1u32 << Self::machine().config().vmid_bits) - 1;
        let fits = (highest.min(1)..=highest).contains(&vmid.into());
        self.contract(fits, &format!("VMID {vmid} is not from 1, or 0 of none, to {highest}"));
        self.vmid = Some(vmid);
        self.record(Event::SetVmid(vmid));
    }

    fn run(&mut self) -> AxResult<VcpuExit> {
        self.check_bound("run");
        let enabled = Self::machine().hardware().is_enabled(pcpu());
        self.contract(enabled, "run on a pCPU that is not enabled");
        self.contract(self.vmid.is_some(), "run without a VMID");
        self.contract(!self.core.state.off, "run while it is off");
        self.may(Call::Run)?;
        self.record(Event::Enter);
        let _inside = Inside::enter(Self::machine());
        self.check_stage1();
        let outcome = self.core.run(&self.mmu(), &mut self.irq);
        self.record(match outcome {
            Ok(exit) => Event::Exit(exit),
            Err(error) => Event::Failed(error),
        });
        outcome
    }

    fn complete(&mut self, done: Completion) -> AxResult<Option<VcpuExit>> {
        self.check_bound("complete");
        self.may(Call::Complete)?;
        let Some(exit) = self.core.waiting else {
            return self.misuse(AxErrorKind::BadState, &format!("{done:?} completes nothing"));
        };
        if !self.core.fits(exit, done) {
            let complaint = format!("{done:?} does not answer {exit:?}");
            return self.misuse(AxErrorKind::InvalidInput, &complaint);
        }
        self.record(Event::Complete(done));
        let next = self.core.complete(exit, done);
        if let Some(next) = next {
            self.record(Event::Exit(next));
        }
        Ok(next)
    }

    fn decode(&mut self) -> Option<DecodedAccess> {
        self.check_bound("decode");
        let fault = match self.core.waiting {
            Some(VcpuExit::MemFault(fault)) => fault,
            other => panic!("contract: decode, and the last exit is {other:?}"),
        };
        self.record(Event::Decode(fault));
        let Some(instr) = &mut self.core.instr else { return fault.insn };
        if instr.decode == Decode::Late {
            instr.decode = Decode::Known;
        }
        self.core.known_access(&fault)
    }

    fn set_gpr(&mut self, reg: usize, value: usize) {
        if self.ready {
            self.check_bound("set_gpr");
        }
        if let Some(slot) = self.core.state.regs.get_mut(reg) {
            *slot = value as u64;
        }
    }

    fn set_return_value(&mut self, value: usize) {
        self.set_gpr(0, value);
    }

    fn irq_hw(&mut self) -> &mut ScriptedIrq<H> {
        self.check_bound("irq_hw");
        &mut self.irq
    }

    fn power_on(&mut self, entry: GuestPhysAddr, arg: u64) -> AxResult {
        self.check_bound("power_on");
        self.may(Call::PowerOn)?;
        self.core.reset();
        (self.irq.pending, self.irq.window) = (Vec::new(), false);
        self.core.state.pc = entry.as_usize() as u64;
        self.core.state.regs[0] = arg;
        self.record(Event::PowerOn(entry, arg));
        Ok(())
    }

    fn resume(&mut self, entry: GuestPhysAddr, arg: u64) -> AxResult {
        self.check_bound("resume");
        self.may(Call::Resume)?;
        let deadline = self.core.state.deadline;
        self.core.reset();
        self.core.state.deadline = deadline;
        self.core.state.pc = entry.as_usize() as u64;
        self.core.state.regs[0] = arg;
        self.record(Event::Resume(entry, arg));
        Ok(())
    }

    fn interrupt_at(&mut self) -> Option<u64> {
        if Self::machine().times_guests() { None } else { self.next_deadline() }
    }

    fn next_deadline(&mut self) -> Option<u64> {
        self.core.state.deadline.filter(|&deadline| deadline > Self::machine().time())
    }

    fn has_wakeup(&mut self) -> bool {
        let due = |deadline| deadline <= Self::machine().time();
        self.core.state.deadline.is_some_and(due) || !self.irq.pending.is_empty()
    }

    fn fence(&mut self, fence: GuestFence) {
        self.check_bound("fence");
        self.contract(self.vmid.is_some(), "fence without a VMID");
        match fence {
            GuestFence::Instructions => self.core.fences.instructions += 1,
            GuestFence::Translations => {
                self.core.fences.translations += 1;
                let vmid = self.vmid.unwrap_or_default();
                Self::machine().tlb().of(pcpu()).stage1.remove(&vmid);
            }
        }
        self.record(Event::Fence(fence));
    }

    fn state(&mut self) -> ScriptedState {
        self.check_bound("state");
        ScriptedState { irqs: self.irq.pending.clone(), ..self.core.state.clone() }
    }

    fn set_state(&mut self, state: &ScriptedState) -> AxResult {
        self.check_bound("set_state");
        self.may(Call::SetState)?;
        self.core.reset();
        self.core.state = ScriptedState { irqs: Vec::new(), ..state.clone() };
        (self.irq.pending, self.irq.window) = (state.irqs.clone(), false);
        self.record(Event::SetState);
        Ok(())
    }
}

impl<H: MockHal, F: HwNpt, const BROADCAST: bool> Drop for ScriptedVCpu<H, F, BROADCAST> {
    fn drop(&mut self) {
        self.record(Event::Drop);
        if !std::thread::panicking() {
            self.contract(self.bound.is_none(), "dropped while bound");
        }
    }
}

/// Marks a physical CPU as in a guest.
struct Inside {
    machine: &'static Machine,
    pcpu: usize,
}

impl Inside {
    fn enter(machine: &'static Machine) -> Self {
        machine.set_in_guest(pcpu(), true);
        Self { machine, pcpu: pcpu() }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.machine.set_in_guest(self.pcpu, false);
    }
}
