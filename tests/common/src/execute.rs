//! How a scripted vCPU executes its program: steps, exits and their completion.

use std::time::Instant;

use axerrno::AxResult;
use axvm::vcpu::{
    Access, AccessOp, AccessWidth, Completion, CpuPower, CpuUpError, DecodedAccess, LoadTarget,
    MemFault, VcpuExit,
};

use crate::{
    Event, MockHal, PATIENCE, Program, ScriptedIrq, ScriptedState, Step,
    mmu::Mmu,
    program::{Decode, Fences, GuestCtx, Instr},
};

/// The part of a scripted vCPU that knows no HAL.
pub(crate) struct Core {
    pub(crate) vm: usize,
    pub(crate) vcpu: usize,
    pub(crate) state: ScriptedState,
    program: Program,
    /// The exit that wants an answer.
    pub(crate) waiting: Option<VcpuExit>,
    /// The instruction that it belongs to, if it accesses memory.
    pub(crate) instr: Option<Instr>,
    spinning: bool,
    /// How often it fenced, since its creation.
    pub(crate) fences: Fences,
}

impl Core {
    pub(crate) fn new(vm: usize, vcpu: usize, program: Program) -> Self {
        let state = ScriptedState::default();
        Self {
            vm,
            vcpu,
            state,
            program,
            waiting: None,
            instr: None,
            spinning: false,
            fences: Fences::default(),
        }
    }

    /// Forgets everything but the program.
    pub(crate) fn reset(&mut self) {
        let fences = self.fences;
        *self = Self { fences, ..Self::new(self.vm, self.vcpu, self.program.clone()) };
    }

    /// Executes until an exit.
    pub(crate) fn run<H: MockHal>(
        &mut self,
        mmu: &Mmu<'_>,
        irq: &mut ScriptedIrq<H>,
    ) -> AxResult<VcpuExit> {
        let machine = mmu.machine;
        let record = |event| machine.record(irq.vm, irq.vcpu, mmu.pcpu, event);
        if let Some(fault) = self.state.fault.take() {
            record(Event::FaultTaken(fault));
        }
        irq.pending.drain(..).for_each(|vector| record(Event::IrqTaken(vector)));
        let start = Instant::now();
        loop {
            if let Some(vector) = machine.acknowledge(mmu.pcpu) {
                self.spinning = false;
                return Ok(VcpuExit::ExternalInterrupt { vector });
            }
            if irq.window && !machine.irq_busy(self.vm, self.vcpu) {
                irq.window = false;
                return Ok(VcpuExit::Nothing);
            }
            if self.spinning {
                assert!(start.elapsed() < PATIENCE, "testkit: spun too long without a kick");
                self.spinning = !machine.is_released();
                std::thread::yield_now();
                continue;
            }
            // An exit that was not answered: its instruction is executed again.
            if let Some(exit) = self.waiting.take() {
                match &mut self.instr {
                    Some(instr) => instr.next = 0,
                    None => {
                        self.waiting = Some(exit);
                        return Ok(exit);
                    }
                }
            }
            let exit = match self.instr.take() {
                Some(instr) => self.execute(instr, mmu),
                None => match self.program.pop() {
                    None => Some(VcpuExit::Halt),
                    Some(Step::Fail(error)) => return Err(error),
                    Some(step) => self.step(step, mmu),
                },
            };
            if let Some(exit) = exit {
                self.waiting = wants_answer(exit).then_some(exit);
                self.state.off = exit == VcpuExit::CpuDown;
                return Ok(exit);
            }
        }
    }

    fn step(&mut self, step: Step, mmu: &Mmu<'_>) -> Option<VcpuExit> {
        if let Some(instr) = step.accesses() {
            return self.execute(instr, mmu);
        }
        self.state.pc += 4;
        let mut guest = GuestCtx {
            vm: self.vm,
            vcpu: self.vcpu,
            regs: &mut self.state.regs,
            deadline: &mut self.state.deadline,
            mmu: *mmu,
            fences: self.fences,
        };
        match step {
            Step::Exit(exit) => Some(exit),
            Step::SpinUntilKicked => {
                self.spinning = true;
                None
            }
            Step::Call(act) => {
                act(&mut guest);
                None
            }
            Step::Guest(mut act) => {
                let exit = act(&mut guest);
                self.program.push_back_to_front(Step::Guest(act));
                Some(exit)
            }
            _ => panic!("testkit: a step that cannot stand here, such as a pair of no accesses"),
        }
    }

    /// Makes the accesses of an instruction, up to the first that faults.
    fn execute(&mut self, mut instr: Instr, mmu: &Mmu<'_>) -> Option<VcpuExit> {
        while let Some(&part) = instr.parts.get(instr.next) {
            let done = match part.decoded {
                Some(DecodedAccess { width, op: AccessOp::Read(target) }) => {
                    let value = mmu.load(part.gpa, width, part.access);
                    value.map(|value| self.write_back(target, value, width))
                }
                Some(DecodedAccess { width, op: AccessOp::Write(value) }) => {
                    mmu.store(part.gpa, width, value)
                }
                None if part.access == Access::Write => panic!("testkit: a store without a value"),
                None => mmu.load(part.gpa, AccessWidth::Byte, part.access).map(drop),
            };
            if done.is_none() {
                let exit = fault_at(&instr);
                self.instr = Some(instr);
                return exit;
            }
            instr.next += 1;
        }
        self.state.pc += 4;
        None
    }

    fn write_back(&mut self, target: LoadTarget, raw: u64, width: AccessWidth) {
        let slot = self.state.regs.get_mut(usize::from(target.reg));
        let slot = slot.unwrap_or_else(|| panic!("testkit: no register {}", target.reg));
        *slot = target.merge(*slot, raw, width);
    }

    /// The access behind a fault, as far as the crate was told.
    pub(crate) fn known_access(&self, fault: &MemFault) -> Option<DecodedAccess> {
        match &self.instr {
            Some(instr) if instr.decode == Decode::Known => instr.parts[instr.next].decoded,
            Some(_) => None,
            None => fault.insn,
        }
    }

    /// Whether the answer is one that the exit asks for.
    pub(crate) fn fits(&self, exit: VcpuExit, done: Completion) -> bool {
        let access = match exit {
            VcpuExit::MemFault(ref fault) => {
                if matches!(done, Completion::Retry | Completion::Fault(_)) {
                    return true;
                }
                self.known_access(fault).map(|access| access.op)
            }
            VcpuExit::Port { access, .. } => Some(access.op),
            VcpuExit::SysReg { op, .. } => Some(op),
            VcpuExit::Hypercall { .. } => return matches!(done, Completion::Return(_)),
            VcpuExit::CpuUp { .. } => return matches!(done, Completion::CpuUp(_)),
            VcpuExit::SendIpi { .. } | VcpuExit::RemoteFence { .. } => {
                return matches!(done, Completion::Written | Completion::NoSuchCpu);
            }
            VcpuExit::CpuStatus { .. } => return matches!(done, Completion::CpuStatus(_)),
            VcpuExit::CpuSuspend { resume: Some(_) } => {
                return matches!(done, Completion::CpuUp(Err(_)));
            }
            VcpuExit::Console(_) => return matches!(done, Completion::Console(_)),
            _ => None,
        };
        matches!(
            (access, done),
            (Some(AccessOp::Read(_)), Completion::Read(_))
                | (Some(AccessOp::Write(_)), Completion::Written)
                | (Some(_), Completion::Fault(_))
        )
    }

    /// Finishes the instruction of `exit`; the answer fits.
    pub(crate) fn complete(&mut self, exit: VcpuExit, done: Completion) -> Option<VcpuExit> {
        self.waiting = None;
        let access = match exit {
            VcpuExit::MemFault(ref fault) => self.known_access(fault),
            VcpuExit::Port { access, .. } => Some(access),
            VcpuExit::SysReg { op, .. } => Some(DecodedAccess { width: AccessWidth::Qword, op }),
            _ => None,
        };
        match done {
            Completion::Retry => {
                if let Some(instr) = &mut self.instr {
                    instr.next = 0;
                }
                return None;
            }
            Completion::Fault(fault) => {
                self.state.fault = Some(fault);
                self.instr = None;
                return None;
            }
            Completion::Read(value) => {
                if let Some(DecodedAccess { width, op: AccessOp::Read(target) }) = access {
                    self.write_back(target, value, width);
                }
            }
            Completion::Return(value) => self.state.regs[0] = value,
            Completion::CpuUp(result) => self.state.regs[0] = cpu_up_code(result),
            Completion::CpuStatus(status) => self.state.regs[0] = cpu_status_code(status),
            Completion::NoSuchCpu => self.state.regs[0] = NO_SUCH_CPU,
            Completion::Console(done) => self.state.regs[0] = done.unwrap_or(u64::MAX),
            Completion::Written => {}
        }
        let mut instr = self.instr.take()?;
        instr.next += 1;
        if instr.next == instr.parts.len() {
            self.state.pc += 4;
            return None;
        }
        // No translation may be used here, so the next access is for the VM too, mapped or not.
        let next = fault_at(&instr);
        (self.instr, self.waiting) = (Some(instr), next);
        next
    }
}

/// What register 0 holds after a `CpuUp`.
pub fn cpu_up_code(result: Result<(), CpuUpError>) -> u64 {
    match result {
        Ok(()) => 0,
        Err(CpuUpError::InvalidTarget) => 1,
        Err(CpuUpError::AlreadyOn) => 2,
        Err(CpuUpError::OnPending) => 3,
        Err(CpuUpError::InvalidAddress) => 4,
    }
}

/// What register 0 holds after a `CpuStatus`.
pub fn cpu_status_code(status: Option<CpuPower>) -> u64 {
    match status {
        Some(CpuPower::On) => 0,
        Some(CpuPower::Off) => 1,
        Some(CpuPower::OnPending) => 2,
        Some(CpuPower::Suspended) => 3,
        None => NO_SUCH_CPU,
    }
}

/// What register 0 holds after a call that named a vCPU that does not exist.
pub const NO_SUCH_CPU: u64 = 0xbad;

fn fault_at(instr: &Instr) -> Option<VcpuExit> {
    let part = instr.parts.get(instr.next)?;
    let insn = part.decoded.filter(|_| instr.decode == Decode::Known);
    Some(VcpuExit::MemFault(MemFault { gpa: part.gpa, access: part.access, walk: part.walk, insn }))
}

fn wants_answer(exit: VcpuExit) -> bool {
    matches!(
        exit,
        VcpuExit::MemFault(_)
            | VcpuExit::Port { .. }
            | VcpuExit::SysReg { .. }
            | VcpuExit::Hypercall { .. }
            | VcpuExit::CpuUp { .. }
            | VcpuExit::CpuStatus { .. }
            | VcpuExit::CpuSuspend { resume: Some(_) }
            | VcpuExit::SendIpi { .. }
            | VcpuExit::RemoteFence { .. }
            | VcpuExit::Console(_)
    )
}
