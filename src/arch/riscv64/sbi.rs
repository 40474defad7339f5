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
    vcpu::{Completion, GuestFence, Service, VcpuExit},
};

/// A call whose answer is to be told in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PendingCall {
    /// To other harts, or the console.
    Sbi,
    /// Of the console, with the answer in a0 alone.
    LegacyConsole,
    /// Which the host serves.
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
        self.pending = Pending::Call(PendingCall::Sbi);
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
            Call::SendIpi(targets) => VcpuExit::SendIpi { targets, vector: SSI },
            Call::RemoteFence(targets, fence) => {
                let fence = match fence {
                    Fence::Instructions => GuestFence::Instructions,
                    Fence::Translations { .. } => GuestFence::Translations,
                };
                VcpuExit::RemoteFence { targets, fence }
            }
            Call::HartStart { hart, entry, arg } => {
                VcpuExit::CpuUp { target_cpu: hart, entry_point: address(entry), arg }
            }
            Call::HartStop => VcpuExit::CpuDown,
            Call::HartStatus { hart } => VcpuExit::CpuStatus { target_cpu: hart },
            Call::HartSuspend { resume: None } => {
                self.answer(Ok(0));
                VcpuExit::CpuSuspend { resume: None }
            }
            Call::HartSuspend { resume: Some((entry, arg)) } => {
                VcpuExit::CpuSuspend { resume: Some((address(entry), arg)) }
            }
            Call::Shutdown => VcpuExit::SystemDown,
            Call::Reboot => VcpuExit::SystemReset,
            Call::Console { call, legacy } => {
                if legacy {
                    self.pending = Pending::Call(PendingCall::LegacyConsole);
                }
                VcpuExit::Console(call)
            }
            Call::Host { nr } => {
                self.pending = Pending::Call(PendingCall::Host);
                VcpuExit::Hypercall { nr, args }
            }
        }
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
            (PendingCall::Sbi, Completion::Written) => self.answer(Ok(0)),
            (PendingCall::Sbi, Completion::NoSuchCpu) => self.answer(Err(SbiError::InvalidParam)),
            (PendingCall::Sbi, Completion::CpuUp(outcome)) => {
                self.answer(sbi::hart_start(outcome));
            }
            (PendingCall::Sbi, Completion::CpuStatus(status)) => {
                self.answer(sbi::hart_status(status));
            }
            (PendingCall::Sbi, Completion::Console(done)) => {
                self.answer(done.ok_or(SbiError::InvalidParam));
            }
            (PendingCall::LegacyConsole, Completion::Console(done)) => {
                self.answer_legacy(done.map_or(u64::MAX, |byte| byte));
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
