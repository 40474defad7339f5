//! Serving exits: what a guest wants is done here, or handed to the host.

#![forbid(unsafe_code)]

use axerrno::{AxError, AxResult};

use super::{AxVM, EndReason};
use crate::{
    config::UnclaimedPolicy,
    device::{Bus, DeviceAddrRange},
    hal::AxVMHal,
    mm::{FaultOutcome, GpaRange, GuestPhysAddr},
    vcpu::{
        Access, AccessOp, AccessWidth, Awaited, AxArchVCpu, AxVCpu, AxVCpuExitReason, BoundVCpu,
        Completion, DecodedAccess, GuestFault, MemFault, Port, SysRegAddr, VcpuEvent, VcpuExit,
    },
};

/// What became of an exit.
pub(super) enum Served {
    /// Answer the guest and go on.
    Complete(Completion),
    /// Go on; there is nothing to answer.
    Continue,
    /// Only the host can serve it.
    Host(AxVCpuExitReason),
    /// As `Host`, and the answer comes later.
    HostAnswers(AxVCpuExitReason, Awaited),
}

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    /// Serves an exit, and what else the same instruction does; a reason when the host must go on.
    /// `continued`: the exit is not the instruction's first.
    #[inline(never)]
    pub(super) fn serve(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        mut exit: VcpuExit,
        mut continued: bool,
    ) -> AxResult<Option<AxVCpuExitReason>> {
        loop {
            let answer = match self.serve_by_device(vcpu, &exit) {
                Some(answer) => answer,
                None => match self.serve_without_device(vcpu, bound, &exit, continued)? {
                    Served::Complete(answer) => answer,
                    Served::Continue => return Ok(None),
                    Served::Host(reason) => return Ok(Some(reason)),
                    Served::HostAnswers(reason, awaited) => {
                        vcpu.answer.expect(awaited);
                        return Ok(Some(reason));
                    }
                },
            };
            match bound.complete(answer)? {
                Some(next) => (exit, continued) = (next, true),
                None => return Ok(None),
            }
        }
    }

    /// The answer to an exit that is an access to a device, the most frequent kind by far; none
    /// for any other.
    #[inline(always)]
    pub(super) fn serve_by_device(&self, vcpu: &AxVCpu<A>, exit: &VcpuExit) -> Option<Completion> {
        match *exit {
            VcpuExit::MemFault(MemFault { gpa, insn: Some(access), .. }) => {
                self.device(vcpu, &self.devices.mmio, gpa, access)
            }
            VcpuExit::Port { port, access } => self.device(vcpu, &self.devices.ports, port, access),
            _ => None,
        }
    }

    /// Serves an exit that is no access to a device, as far as [`serve`](Self::serve) could see.
    #[inline(never)]
    fn serve_without_device(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        exit: &VcpuExit,
        continued: bool,
    ) -> AxResult<Served> {
        Ok(match *exit {
            VcpuExit::MemFault(fault) => self.memory_fault(vcpu, bound, fault, continued)?,
            VcpuExit::Port { port, access } => self.port_without_device(vcpu, port, access),
            VcpuExit::SysReg { addr, op } => self.sys_reg(vcpu, addr, op),
            other => self.other(vcpu, bound, other)?,
        })
    }

    /// Decides what a fault in the nested page table is: a device whose instruction is not known
    /// yet, for the host, memory to be populated, or nothing.
    fn memory_fault(
        &self,
        vcpu: &AxVCpu<A>,
        bound: &mut BoundVCpu<'_, A>,
        fault: MemFault,
        continued: bool,
    ) -> AxResult<Served> {
        let MemFault { gpa, mut insn, .. } = fault;
        // A walk or a fetch is no load or store that could be finished.
        let decodable = !fault.walk && fault.access != Access::Fetch;
        // Decoding costs; it is for devices and for nothing, not for memory.
        if insn.is_none() && decodable && self.devices.mmio.claims(vcpu.id(), gpa) {
            insn = bound.arch().decode();
            let device = insn.and_then(|access| self.device(vcpu, &self.devices.mmio, gpa, access));
            if let Some(answer) = device {
                return Ok(Served::Complete(answer));
            }
        }
        if continued && let Some(answer) = self.access_memory(gpa, insn)? {
            return Ok(Served::Complete(answer));
        }
        match self.core.space.fault(gpa, fault.access.permission())? {
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
            FaultOutcome::Unmapped => {}
        }
        let access = match insn {
            _ if !decodable => None,
            None => bound.arch().decode(),
            insn => insn,
        };
        let forwarded = access.and_then(|access| self.forwarded_mmio(gpa, access));
        Ok(forwarded.unwrap_or_else(|| self.unclaimed(vcpu, gpa.as_usize(), access)))
    }

    /// A further access to memory of an instruction, of which one was to a device: it is made
    /// here, whether the memory is mapped by now or not, as executing the instruction again would
    /// touch the device again, for ever. None when it is not RAM that allows it.
    #[cold]
    fn access_memory(
        &self,
        gpa: GuestPhysAddr,
        insn: Option<DecodedAccess>,
    ) -> AxResult<Option<Completion>> {
        let Some(DecodedAccess { width, op }) = insn else { return Ok(None) };
        let mut bytes = match op {
            AccessOp::Read(_) => [0; 8],
            AccessOp::Write(data) => data.to_le_bytes(),
        };
        let part = bytes.get_mut(..width.size()).unwrap_or_default();
        let done = match op {
            AccessOp::Read(_) => self.core.space.read(gpa, part),
            AccessOp::Write(_) => self.core.space.write(gpa, part),
        };
        match (done, op) {
            (Ok(()), AccessOp::Read(_)) => Ok(Some(Completion::Read(u64::from_le_bytes(bytes)))),
            (Ok(()), AccessOp::Write(_)) => Ok(Some(Completion::Written)),
            (Err(AxError::InvalidInput), _) => Ok(None),
            (Err(error), _) => Err(error),
        }
    }

    /// An access to what the host serves; none when it is not.
    fn forwarded_mmio(
        &self,
        gpa: GuestPhysAddr,
        DecodedAccess { width, op }: DecodedAccess,
    ) -> Option<Served> {
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

    /// An access to a port that no device has.
    fn port_without_device(
        &self,
        vcpu: &AxVCpu<A>,
        port: Port,
        DecodedAccess { width, op }: DecodedAccess,
    ) -> Served {
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
        let access = DecodedAccess { width: AccessWidth::Qword, op };
        if let Some(answer) = self.device(vcpu, bus, addr, access) {
            return Served::Complete(answer);
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
    #[inline(always)]
    fn device<R: DeviceAddrRange>(
        &self,
        vcpu: &AxVCpu<A>,
        bus: &Bus<R>,
        addr: R::Addr,
        DecodedAccess { width, op }: DecodedAccess,
    ) -> Option<Completion> {
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
            Ok(answer) => answer,
            Err(error) => self.device_error(vcpu, error, op),
        })
    }

    #[cold]
    fn device_error(&self, vcpu: &AxVCpu<A>, error: AxError, op: AccessOp) -> Completion {
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
        Served::Complete(self.nothing(vcpu, access.map(|access| access.op)))
    }

    pub(super) fn note_unclaimed(&self, vcpu: &AxVCpu<A>, addr: usize) {
        let before = vcpu.stats.count(VcpuEvent::Unclaimed);
        if log_worthy(before) {
            let (vm, vcpu) = (self.id(), vcpu.id());
            log::warn!("VM {vm} vCPU {vcpu}: nothing at {addr:#x} ({before} before)");
        }
    }

    /// Answers for what is not there: all ones, ignored, or a fault.
    fn nothing(&self, vcpu: &AxVCpu<A>, op: Option<AccessOp>) -> Completion {
        match (op, self.config.unclaimed) {
            (Some(AccessOp::Read(_)), UnclaimedPolicy::Ignore) => Completion::Read(u64::MAX),
            (Some(AccessOp::Write(_)), UnclaimedPolicy::Ignore) => Completion::Written,
            (_, UnclaimedPolicy::Fault) | (None, _) => {
                vcpu.stats.count(VcpuEvent::FaultInjected);
                Completion::Fault(GuestFault::Bus)
            }
        }
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
                self.cpu_up(bound, target_cpu, entry_point, arg)?
            }
            VcpuExit::CpuDown => {
                vcpu.power.set(false);
                Served::Host(AxVCpuExitReason::CpuDown)
            }
            VcpuExit::CpuStatus { target_cpu } => {
                let status = self.cpu_named(target_cpu).map(|target| target.power.status());
                Served::Complete(Completion::CpuStatus(status))
            }
            VcpuExit::CpuSuspend { resume } => self.suspend(vcpu, bound, resume)?,
            VcpuExit::SendIpi { targets, vector } => match self.ipi_targets(vcpu, targets) {
                Some(targets) => {
                    self.send_ipi(vcpu, targets, vector);
                    Served::Complete(Completion::Written)
                }
                None => Served::Complete(Completion::NoSuchCpu),
            },
            VcpuExit::RemoteFence { targets, fence } => match self.ipi_targets(vcpu, targets) {
                Some(targets) => {
                    self.remote_fence(vcpu, bound, targets, fence);
                    Served::Complete(Completion::Written)
                }
                None => Served::Complete(Completion::NoSuchCpu),
            },
            VcpuExit::Console(call) => {
                Served::Complete(Completion::Console(self.console_call(call)?))
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
            VcpuExit::Served(_) | VcpuExit::Nothing => Served::Continue,
            // `serve` has dealt with these.
            VcpuExit::MemFault(_) | VcpuExit::Port { .. } | VcpuExit::SysReg { .. } => {
                return Err(AxError::BadState);
            }
        })
    }
}

/// Whether to log an event of which there were so many before: at powers of two, so that a guest
/// cannot flood the log.
const fn log_worthy(before: u64) -> bool {
    before.wrapping_add(1).is_power_of_two()
}
