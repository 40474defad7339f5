//! Calls of the guest: what concerns this vCPU alone is answered here, the rest are exits.

#![forbid(unsafe_code)]

use axerrno::{AxError, AxResult};

use super::{
    Hart, RiscvVCpu,
    csr::{Csr, irq},
    vcpu::{A0, A1, Pending},
};
use crate::{
    firmware::sbi::{self, Call, Fence, SbiError, SbiResult},
    hal::AxVMHal,
    mm::GuestPhysAddr,
    vcpu::{Completion, ConsoleCall, GuestFence, Service, VcpuExit},
};

/// What a call waits for, and how the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PendingCall {
    /// That other harts were reached.
    Reached,
    /// The start of a hart, or of this one anew.
    Started,
    /// The state of a hart.
    Status,
    /// How many bytes the console took or gave.
    Console,
    /// That the console took a byte (SBI 2.0 §12.3: the value is 0).
    Put,
    /// The same, told in a0 alone.
    LegacyPut,
    /// A byte of the console, told in a0 alone.
    LegacyGet,
    /// What the host serves.
    Host,
}

/// The supervisor software interrupt.
const SSI: u64 = 1;

impl<H: AxVMHal, P: Hart> RiscvVCpu<H, P> {
    /// An `ecall` from VS-mode.
    pub(super) fn call(&mut self) -> VcpuExit {
        let [a0, a1, a2, a3, a4, a5, function, extension] =
            [10, 11, 12, 13, 14, 15, 16, 17].map(|reg| self.gpr(reg));
        let args = [a0, a1, a2, a3, a4, a5];
        let call = Call::decode(args, function, extension);
        let address = |entry: u64| GuestPhysAddr::from_usize(entry as usize);
        match call {
            Call::Answer(result) => self.served(result),
            Call::SetTimer { time, legacy } => {
                self.timer.set::<H>(&mut self.hart, Self::frequency(), time);
                if legacy { self.served_legacy(0) } else { self.served(Ok(0)) }
            }
            Call::LegacyClearIpi => {
                let pending = self.hart.read(Csr::Hvip) & irq::VSSI != 0;
                self.hart.clear(Csr::Hvip, irq::VSSI);
                self.served_legacy(pending.into())
            }
            Call::SendIpi(targets) => {
                self.wait_for(PendingCall::Reached, VcpuExit::SendIpi { targets, vector: SSI })
            }
            Call::RemoteFence(targets, fence) => {
                let fence = match fence {
                    Fence::Instructions => GuestFence::Instructions,
                    Fence::Translations { .. } => GuestFence::Translations,
                };
                self.wait_for(PendingCall::Reached, VcpuExit::RemoteFence { targets, fence })
            }
            Call::HartStart { hart, entry, arg } => {
                let entry_point = address(entry);
                let exit = VcpuExit::CpuUp { target_cpu: hart, entry_point, arg };
                self.wait_for(PendingCall::Started, exit)
            }
            Call::HartStop => VcpuExit::CpuDown,
            Call::HartStatus { hart } => {
                self.wait_for(PendingCall::Status, VcpuExit::CpuStatus { target_cpu: hart })
            }
            Call::HartSuspend { resume: None } => {
                self.answer(Ok(0));
                VcpuExit::CpuSuspend { resume: None }
            }
            Call::HartSuspend { resume: Some((entry, arg)) } => {
                let resume = Some((address(entry), arg));
                self.wait_for(PendingCall::Started, VcpuExit::CpuSuspend { resume })
            }
            Call::Shutdown => VcpuExit::SystemDown,
            Call::Reboot => VcpuExit::SystemReset,
            Call::Console { call, legacy } => {
                let pending = match call {
                    ConsoleCall::WriteByte(_) if legacy => PendingCall::LegacyPut,
                    ConsoleCall::WriteByte(_) => PendingCall::Put,
                    ConsoleCall::ReadByte => PendingCall::LegacyGet,
                    ConsoleCall::Write { .. } | ConsoleCall::Read { .. } => PendingCall::Console,
                };
                self.wait_for(pending, VcpuExit::Console(call))
            }
            Call::Host { nr } => self.wait_for(PendingCall::Host, VcpuExit::Hypercall { nr, args }),
        }
    }

    fn wait_for(&mut self, call: PendingCall, exit: VcpuExit) -> VcpuExit {
        self.pending = Pending::Call(call);
        exit
    }

    fn served(&mut self, result: SbiResult) -> VcpuExit {
        self.answer(result);
        VcpuExit::Served(Service::Firmware)
    }

    /// Legacy calls return in a0 alone (SBI 2.0 §5).
    fn served_legacy(&mut self, value: u64) -> VcpuExit {
        self.answer_legacy(value);
        VcpuExit::Served(Service::Firmware)
    }

    fn answer(&mut self, result: SbiResult) {
        let (error, value) = sbi::registers(result);
        self.write_gpr(A1 as u8, value);
        self.answer_legacy(error);
    }

    fn answer_legacy(&mut self, value: u64) {
        self.pending = Pending::Nothing;
        self.write_gpr(A0 as u8, value);
        self.skip(4);
    }

    pub(super) fn answer_call(&mut self, call: PendingCall, done: Completion) -> AxResult {
        match (call, done) {
            (PendingCall::Reached, Completion::Written) => self.answer(Ok(0)),
            (PendingCall::Reached, Completion::NoSuchCpu) => {
                self.answer(Err(SbiError::InvalidParam));
            }
            (PendingCall::Started, Completion::CpuUp(outcome)) => {
                self.answer(sbi::hart_start(outcome));
            }
            (PendingCall::Status, Completion::CpuStatus(status)) => {
                self.answer(sbi::hart_status(status));
            }
            (PendingCall::Console, Completion::Console(done)) => {
                self.answer(done.ok_or(SbiError::InvalidParam));
            }
            (PendingCall::Put, Completion::Console(done)) => {
                self.answer(done.map(|_| 0).ok_or(SbiError::Failed));
            }
            (PendingCall::LegacyPut, Completion::Console(done)) => {
                self.answer_legacy(done.map_or(u64::MAX, |_| 0));
            }
            (PendingCall::LegacyGet, Completion::Console(done)) => {
                self.answer_legacy(done.unwrap_or(u64::MAX));
            }
            // A host that serves a call gives the error; the value is 0.
            (PendingCall::Host, Completion::Return(error)) => {
                self.write_gpr(A1 as u8, 0);
                self.answer_legacy(error);
            }
            _ => return Err(AxError::InvalidInput),
        }
        Ok(())
    }
}
