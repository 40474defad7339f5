//! The exit loop: runs a vCPU, serves every exit that the VM can serve, and returns what only the
//! host can.

use axerrno::{AxError, AxResult, ax_err};

use super::{AxVM, EndReason, VMStatus};
use crate::{
    config::UnclaimedPolicy,
    device::{Bus, DeviceAddrRange},
    hal::AxVMHal,
    irq::EntryState,
    mm::{FaultOutcome, GpaRange, GuestPhysAddr},
    sync::atomic::{Ordering, fence},
    vcpu::{
        Access, AccessOp, AccessWidth, Attention, Awaited, AxArchVCpu, AxVCpu, AxVCpuExitReason,
        BoundVCpu, Completion, CpuMask, CpuUpError, DecodedAccess, GuestFault, IpiTargets,
        MemFault, Port, SysRegAddr, VcpuEvent, VcpuExit,
    },
};

/// What became of an exit.
enum Served {
    /// Answer the guest and go on.
    Complete(Completion),
    /// Go on; there is nothing to answer.
    Continue,
    /// Only the host can serve it.
    Host(AxVCpuExitReason),
    /// As `Host`, and the answer comes later.
    HostAnswers(AxVCpuExitReason, Awaited),
    /// Answer the guest, then return to the host.
    CompleteAndReturn(Completion, AxVCpuExitReason),
}

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    /// Runs a vCPU on this physical CPU until only the host can go on; see
    /// [`AxVCpuExitReason`] for what that can be.
    ///
    /// The caller has interrupts masked, stays on this physical CPU, and has virtualization
    /// enabled on it; so it is on return. The guest runs with what the backend documents of
    /// vector base, thread pointers and floating-point state; the host's are as before on
    /// return. The host's physical interrupts make it return.
    ///
    /// # Errors
    /// `InvalidInput` for no such vCPU. `BadState` when the VM is not running, the vCPU is bound
    /// elsewhere or switched off, an access handed to the host was not
    /// [completed](Self::complete), or virtualization is off on this CPU. `NoMemory` when the
    /// guest needs a page and the host has none: free some and call again. Whatever the hardware
    /// refuses. The vCPU is unbound in every case.
    pub fn run_vcpu(&self, vcpu_id: usize) -> AxResult<AxVCpuExitReason> {
        self.with_bound(vcpu_id, |vcpu, bound, pcpu| {
            let result = self.run_bound(vcpu, bound, pcpu);
            let deadline = bound.arch().next_deadline().unwrap_or(u64::MAX);
            vcpu.deadline.store(deadline, Ordering::Relaxed);
            result
        })
    }

    /// Answers an access or hypercall that [`run_vcpu`](Self::run_vcpu) handed to the host: with
    /// the value that was read or is returned, or any value for a write.
    ///
    /// # Errors
    /// `InvalidInput` for no such vCPU; `BadState` when nothing waits for an answer.
    pub fn complete(&self, vcpu_id: usize, value: u64) -> AxResult {
        self.vcpu_ref(vcpu_id)?.answer.answer(value)
    }

    fn run_bound(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        pcpu: usize,
    ) -> AxResult<AxVCpuExitReason> {
        // Bound first, then the look: whoever shuts down looks the other way round.
        fence(Ordering::SeqCst);
        if self.status() != VMStatus::Running {
            return ax_err!(BadState, format_args!("VM {} is {:?}", self.id(), self.status()));
        }
        vcpu.attention.wake();
        self.power_on(vcpu, bound)?;
        if let Some(answer) = vcpu.answer.take()?
            && let Some(next) = bound.complete(answer)?
            && let Some(reason) = self.serve(vcpu, bound, next, true)?
        {
            return Ok(reason);
        }
        let mut entry = Entry { pcpu, vmid: None, timer: None, irq: EntryState::default() };
        let result = loop {
            match self.enter(vcpu, bound, &mut entry) {
                Ok(Some(exit)) => match self.serve(vcpu, bound, exit, false) {
                    Ok(None) => {}
                    Ok(Some(reason)) => break Ok(reason),
                    Err(error) => break Err(error),
                },
                Ok(None) => break Ok(AxVCpuExitReason::SystemDown),
                Err(error) => break Err(error),
            }
        };
        // A vCPU that halted has nothing pending any more; to mark it would end its sleep without
        // the host knowing, and the next interrupt would wake nobody.
        if entry.irq.more && result != Ok(AxVCpuExitReason::Halt) {
            vcpu.attention.raise(Attention::IRQ);
        }
        result
    }

    /// A vCPU that was started begins where it was told to.
    fn power_on(&self, vcpu: &AxVCpu<A>, bound: &mut BoundVCpu<'_, A>) -> AxResult {
        if let Some((entry, arg)) = vcpu.power.pending() {
            bound.arch().power_on(entry, arg)?;
            vcpu.power.set(true);
        }
        if !vcpu.power.is_on() {
            let what = format_args!("VM {} vCPU {} is switched off", self.id(), vcpu.id());
            return ax_err!(BadState, what);
        }
        Ok(())
    }

    /// One entry into the guest and the exit from it; none when the VM goes down.
    #[inline]
    fn enter(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        entry: &mut Entry,
    ) -> AxResult<Option<VcpuExit>> {
        let id = vcpu.id();
        let tlb = &self.core.space.tlb;
        if let Some(deadline) = bound.arch().next_deadline()
            && entry.timer != Some(deadline)
        {
            H::set_timer(deadline);
            entry.timer = Some(deadline);
        }
        let _inside = Inside { leave: || tlb.leave(id) };
        tlb.announce(id, entry.pcpu);
        let attention = vcpu.attention.take();
        if attention & Attention::LIFECYCLE != 0 && self.status() != VMStatus::Running {
            return Ok(None);
        }
        if attention & Attention::IRQ != 0 || entry.irq.more {
            // Until it is known better, also if the controller fails.
            entry.irq.more = true;
            entry.irq = self.irq.before_entry(id, bound.arch().irq_hw())?;
        }
        let vmid = tlb.enter(id, entry.pcpu, A::hardware());
        if entry.vmid != Some(vmid) {
            bound.arch().set_vmid(vmid);
            entry.vmid = Some(vmid);
        }
        let exit = bound.run();
        if entry.irq.in_hardware {
            self.irq.after_exit(id, bound.arch().irq_hw());
        }
        let exit = exit?;
        vcpu.stats.count_exit(&exit);
        Ok(Some(exit))
    }

    /// Serves an exit, and what else the same instruction does; a reason when the host must go on.
    /// `continued`: the exit is not the instruction's first.
    #[inline]
    fn serve(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        mut exit: VcpuExit,
        mut continued: bool,
    ) -> AxResult<Option<AxVCpuExitReason>> {
        loop {
            let served = match exit {
                VcpuExit::MemFault(fault) if continued => self.continued(vcpu, bound, fault)?,
                VcpuExit::MemFault(fault) => self.memory_fault(vcpu, bound, fault)?,
                VcpuExit::Port { port, access } => self.port(vcpu, port, access),
                VcpuExit::SysReg { addr, op } => self.sys_reg(vcpu, addr, op),
                other => self.other(vcpu, bound, other)?,
            };
            match served {
                Served::Complete(answer) => match bound.complete(answer)? {
                    Some(next) => (exit, continued) = (next, true),
                    None => return Ok(None),
                },
                Served::Continue => return Ok(None),
                Served::Host(reason) => return Ok(Some(reason)),
                Served::HostAnswers(reason, awaited) => {
                    vcpu.answer.expect(awaited);
                    return Ok(Some(reason));
                }
                Served::CompleteAndReturn(answer, reason) => {
                    bound.complete(answer)?;
                    return Ok(Some(reason));
                }
            }
        }
    }

    /// Decides what a fault in the nested page table is: a device, memory to be populated, or
    /// nothing.
    #[inline]
    fn memory_fault(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        fault: MemFault,
    ) -> AxResult<Served> {
        // With the instruction at hand a device is looked up at once; otherwise memory comes
        // first, and only what is none is worth decoding.
        if let Some(access) = fault.insn
            && let Some(served) = self.mmio(vcpu, fault.gpa, access)
        {
            return Ok(served);
        }
        self.memory_or_nothing(vcpu, bound, fault)
    }

    /// A further access of an instruction, of which one was to a device. Memory is accessed here,
    /// whether it is mapped by now or not: to execute the instruction again would touch the
    /// device again, for ever.
    #[cold]
    fn continued(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        fault: MemFault,
    ) -> AxResult<Served> {
        let Some(DecodedAccess { width, op }) = fault.insn.or_else(|| bound.arch().decode()) else {
            return self.memory_fault(vcpu, bound, fault);
        };
        let space = &self.core.space;
        let mut bytes = [0; 8];
        let done = match (bytes.get_mut(..width.size()), op) {
            (Some(part), AccessOp::Read(_)) => space.read(fault.gpa, part),
            (Some(part), AccessOp::Write(data)) => {
                part.copy_from_slice(data.to_le_bytes().get(..width.size()).unwrap_or_default());
                space.write(fault.gpa, part)
            }
            (None, _) => Err(AxError::InvalidInput),
        };
        match (done, op) {
            (Ok(()), AccessOp::Read(_)) => {
                Ok(Served::Complete(Completion::Read(u64::from_le_bytes(bytes))))
            }
            (Ok(()), AccessOp::Write(_)) => Ok(Served::Complete(Completion::Written)),
            (Err(AxError::InvalidInput), _) => self.memory_fault(vcpu, bound, fault),
            (Err(error), _) => Err(error),
        }
    }

    fn memory_or_nothing(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        fault: MemFault,
    ) -> AxResult<Served> {
        let permission = fault.access.permission();
        match self.core.space.fault(fault.gpa, permission)? {
            FaultOutcome::Populated => {
                vcpu.stats.count(VcpuEvent::PagePopulated);
                return Ok(Served::Complete(Completion::Retry));
            }
            FaultOutcome::Spurious => {
                vcpu.stats.count(VcpuEvent::SpuriousFault);
                return Ok(Served::Complete(Completion::Retry));
            }
            FaultOutcome::Denied => {
                vcpu.stats.count(VcpuEvent::PermissionFault);
            }
            FaultOutcome::Unmapped if fault.insn.is_none() => {}
            FaultOutcome::Unmapped => {
                return Ok(self.unclaimed(vcpu, fault.gpa.as_usize(), fault.insn));
            }
        }
        if fault.walk || fault.access == Access::Fetch {
            // There is no load or store to finish.
            return Ok(self.unclaimed(vcpu, fault.gpa.as_usize(), None));
        }
        let Some(access) = fault.insn.or_else(|| bound.arch().decode()) else {
            return Ok(self.unclaimed(vcpu, fault.gpa.as_usize(), None));
        };
        let device = self.mmio(vcpu, fault.gpa, access);
        Ok(device.unwrap_or_else(|| self.unclaimed(vcpu, fault.gpa.as_usize(), Some(access))))
    }

    /// An access to a device or to what the host serves; none when it is neither.
    #[inline]
    fn mmio(
        &self,
        vcpu: &AxVCpu<A>,
        gpa: GuestPhysAddr,
        DecodedAccess { width, op }: DecodedAccess,
    ) -> Option<Served> {
        if let Some(served) = self.device(vcpu, &self.devices.mmio, gpa, width, op) {
            return Some(served);
        }
        let range = GpaRange::new(gpa, width.size())?;
        if !self.config.forward.mmio.iter().any(|wanted| wanted.contains_range(range)) {
            return None;
        }
        Some(match op {
            AccessOp::Read(target) => Served::HostAnswers(
                AxVCpuExitReason::MmioRead {
                    addr: gpa,
                    width,
                    reg: target.reg.into(),
                    reg_width: target.reg_width,
                    signed_ext: target.signed_ext,
                },
                Awaited::Read,
            ),
            AccessOp::Write(data) => {
                let data = data & width.mask();
                Served::HostAnswers(
                    AxVCpuExitReason::MmioWrite { addr: gpa, width, data },
                    Awaited::Write,
                )
            }
        })
    }

    fn port(
        &self,
        vcpu: &AxVCpu<A>,
        port: Port,
        DecodedAccess { width, op }: DecodedAccess,
    ) -> Served {
        if let Some(served) = self.device(vcpu, &self.devices.ports, port, width, op) {
            return served;
        }
        let last = usize::from(port.0) + width.size() - 1;
        let wanted = |&(from, to): &(u16, u16)| from <= port.0 && last <= to.into();
        if !self.config.forward.ports.iter().any(wanted) {
            return self.unclaimed(vcpu, port.0.into(), Some(DecodedAccess { width, op }));
        }
        match op {
            AccessOp::Read(_) => {
                Served::HostAnswers(AxVCpuExitReason::IoRead { port, width }, Awaited::Read)
            }
            AccessOp::Write(data) => {
                let data = data & width.mask();
                Served::HostAnswers(AxVCpuExitReason::IoWrite { port, width, data }, Awaited::Write)
            }
        }
    }

    fn sys_reg(&self, vcpu: &AxVCpu<A>, addr: SysRegAddr, op: AccessOp) -> Served {
        let bus = &self.devices.sys_regs;
        if let Some(served) = self.device(vcpu, bus, addr, AccessWidth::Qword, op) {
            return served;
        }
        let wanted = |&(from, to): &(usize, usize)| from <= addr.0 && addr.0 <= to;
        if !self.config.forward.sys_regs.iter().any(wanted) {
            // No bus here: a register that is not there is an undefined instruction.
            self.note_unclaimed(vcpu, addr.0);
            vcpu.stats.count(VcpuEvent::FaultInjected);
            return Served::Complete(Completion::Fault(GuestFault::Undefined));
        }
        match op {
            AccessOp::Read(target) => Served::HostAnswers(
                AxVCpuExitReason::SysRegRead { addr, reg: target.reg.into() },
                Awaited::Read,
            ),
            AccessOp::Write(value) => {
                Served::HostAnswers(AxVCpuExitReason::SysRegWrite { addr, value }, Awaited::Write)
            }
        }
    }

    /// What a device says to an access; none when there is none.
    #[inline]
    fn device<R: DeviceAddrRange>(
        &self,
        vcpu: &AxVCpu<A>,
        bus: &Bus<R>,
        addr: R::Addr,
        width: AccessWidth,
        op: AccessOp,
    ) -> Option<Served> {
        let answer = match op {
            AccessOp::Read(_) => {
                let value = bus.read(vcpu.id(), addr, width)?;
                value.map(|value| Completion::Read(value as u64))
            }
            AccessOp::Write(data) => {
                let done = bus.write(vcpu.id(), addr, width, data as usize)?;
                done.map(|()| Completion::Written)
            }
        };
        Some(match answer {
            Ok(answer) => Served::Complete(answer),
            Err(error) => self.device_error(vcpu, error, op),
        })
    }

    #[cold]
    fn device_error(&self, vcpu: &AxVCpu<A>, error: AxError, op: AccessOp) -> Served {
        let before = vcpu.stats.count(VcpuEvent::DeviceError);
        if log_worthy(before) {
            let (vm, vcpu) = (self.id(), vcpu.id());
            log::warn!("VM {vm} vCPU {vcpu}: device error {error} ({before} before)");
        }
        self.nothing(vcpu, Some(op))
    }

    /// An access to nothing.
    fn unclaimed(&self, vcpu: &AxVCpu<A>, addr: usize, access: Option<DecodedAccess>) -> Served {
        self.note_unclaimed(vcpu, addr);
        self.nothing(vcpu, access.map(|access| access.op))
    }

    fn note_unclaimed(&self, vcpu: &AxVCpu<A>, addr: usize) {
        let before = vcpu.stats.count(VcpuEvent::Unclaimed);
        if log_worthy(before) {
            let (vm, vcpu) = (self.id(), vcpu.id());
            log::warn!("VM {vm} vCPU {vcpu}: nothing at {addr:#x} ({before} before)");
        }
    }

    /// Answers for what is not there: all ones, ignored, or a fault.
    fn nothing(&self, vcpu: &AxVCpu<A>, op: Option<AccessOp>) -> Served {
        Served::Complete(match (op, self.config.unclaimed) {
            (Some(AccessOp::Read(_)), UnclaimedPolicy::Ignore) => Completion::Read(u64::MAX),
            (Some(AccessOp::Write(_)), UnclaimedPolicy::Ignore) => Completion::Written,
            (_, UnclaimedPolicy::Fault) | (None, _) => {
                vcpu.stats.count(VcpuEvent::FaultInjected);
                Completion::Fault(GuestFault::Bus)
            }
        })
    }

    /// Exits that are not accesses.
    fn other(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        exit: VcpuExit,
    ) -> AxResult<Served> {
        Ok(match exit {
            VcpuExit::ExternalInterrupt { vector } => {
                Served::Host(AxVCpuExitReason::ExternalInterrupt { vector })
            }
            VcpuExit::Halt => self.halt(vcpu, bound),
            VcpuExit::Hypercall { nr, args } => {
                Served::HostAnswers(AxVCpuExitReason::Hypercall { nr, args }, Awaited::Return)
            }
            VcpuExit::CpuUp { target_cpu, entry_point, arg } => {
                self.cpu_up(target_cpu, entry_point, arg)
            }
            VcpuExit::CpuDown => {
                vcpu.power.set(false);
                Served::Host(AxVCpuExitReason::CpuDown)
            }
            VcpuExit::SendIpi { targets, vector } => {
                self.send_ipi(vcpu, targets, vector);
                Served::Complete(Completion::Written)
            }
            VcpuExit::SystemDown => {
                // The host may have been faster; the guest's wish is met either way.
                let _ = self.end(EndReason::PowerOff);
                Served::Host(AxVCpuExitReason::SystemDown)
            }
            VcpuExit::SystemReset => {
                let _ = self.end(EndReason::Reset);
                Served::Host(AxVCpuExitReason::SystemReset)
            }
            VcpuExit::FailEntry { reason } => {
                self.fail(vcpu.id(), reason);
                Served::Host(AxVCpuExitReason::FailEntry { hardware_entry_failure_reason: reason })
            }
            VcpuExit::Nothing => Served::Continue,
            // `serve` has dealt with these.
            VcpuExit::MemFault(_) | VcpuExit::Port { .. } | VcpuExit::SysReg { .. } => {
                return Err(AxError::BadState);
            }
        })
    }

    fn halt(&self, vcpu: &AxVCpu<A>, bound: &mut BoundVCpu<'_, A>) -> Served {
        let awake =
            self.irq.pending(vcpu.id()) || bound.arch().has_wakeup() || !vcpu.attention.try_sleep();
        if awake { Served::Continue } else { Served::Host(AxVCpuExitReason::Halt) }
    }

    fn cpu_up(&self, target_cpu: u64, entry_point: GuestPhysAddr, arg: u64) -> Served {
        let target = (0..self.vcpu_num()).find(|&id| self.config.guest_cpu_id(id) == target_cpu);
        let started = target.ok_or(CpuUpError::InvalidTarget).and_then(|id| {
            let vcpu = self.core.vcpus.get(id).ok_or(CpuUpError::InvalidTarget)?;
            vcpu.power.start(entry_point, arg).map(|()| id as u64)
        });
        match started {
            Ok(target_cpu) => Served::CompleteAndReturn(
                Completion::CpuUp(Ok(())),
                AxVCpuExitReason::CpuUp { target_cpu, entry_point, arg },
            ),
            Err(error) => Served::Complete(Completion::CpuUp(Err(error))),
        }
    }

    fn send_ipi(&self, vcpu: &AxVCpu<A>, targets: IpiTargets, vector: u64) {
        let (all, own) = (CpuMask::first(self.vcpu_num()), CpuMask::one(vcpu.id()));
        let targets = match targets {
            IpiTargets::Set(set) => set,
            IpiTargets::Named { base, mask } => (0..self.vcpu_num())
                .filter(|&id| {
                    let bit = self.config.guest_cpu_id(id).checked_sub(base);
                    bit.is_some_and(|bit| bit < 64 && mask >> bit & 1 != 0)
                })
                .collect(),
            IpiTargets::AllButSelf => all.minus(own),
            IpiTargets::All => all,
            IpiTargets::Itself => own,
        };
        for target in targets.iter() {
            // The guest chose vector and targets: what does not exist gets nothing.
            let sent = usize::try_from(vector).map_err(|_| AxError::InvalidInput);
            if let Err(error) = sent.and_then(|vector| self.irq.inject(target, vector)) {
                log::debug!("VM {}: IPI {vector:#x} to vCPU {target}: {error}", self.id());
            }
        }
    }
}

/// What a run of a vCPU remembers from entry to entry.
struct Entry {
    pcpu: usize,
    vmid: Option<u16>,
    /// The deadline that the host's timer was armed for.
    timer: Option<u64>,
    /// What the interrupt controller asked for.
    irq: EntryState,
}

/// Calls `leave` at the end of its scope, whichever way that is left.
struct Inside<F: Fn()> {
    leave: F,
}

impl<F: Fn()> Drop for Inside<F> {
    fn drop(&mut self) {
        (self.leave)();
    }
}

/// Whether to log an event of which there were so many before: at powers of two, so that a guest
/// cannot flood the log.
const fn log_worthy(before: u64) -> bool {
    before.wrapping_add(1).is_power_of_two()
}
