//! Why the guest came out, and exceptions that it is given.

#![forbid(unsafe_code)]

use super::{
    Hart, RiscvVCpu,
    csr::{Csr, cause, hstatus, status},
    insn::{self, MemInsn, MemOp},
    vcpu::Pending,
};
use crate::{
    hal::AxVMHal,
    mm::GuestPhysAddr,
    vcpu::{Access, AccessOp, AccessWidth, DecodedAccess, LoadTarget, MemFault, Service, VcpuExit},
};

/// An access that the guest-stage page table refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingAccess {
    /// The instruction, if it can be emulated.
    insn: Option<MemInsn>,
    /// The exception that the guest gets if the access reaches nothing.
    pub(super) fault: u64,
}

impl PendingAccess {
    /// The access that the instruction makes.
    #[inline]
    pub(super) fn decoded<H: AxVMHal, P: Hart>(
        &self,
        vcpu: &RiscvVCpu<H, P>,
    ) -> Option<(DecodedAccess, MemInsn)> {
        let insn = self.insn?;
        let op = match insn.op {
            MemOp::Load { rd, signed } => AccessOp::Read(LoadTarget {
                reg: rd,
                reg_width: AccessWidth::Qword,
                signed_ext: signed,
            }),
            MemOp::Store { rs2 } => AccessOp::Write(vcpu.gpr(rs2)),
        };
        Some((DecodedAccess { width: insn.width, op }, insn))
    }
}

impl<H: AxVMHal, P: Hart> RiscvVCpu<H, P> {
    /// What the trap means (`scause`, §18.6.1).
    #[inline]
    pub(super) fn take_exit(&mut self) -> VcpuExit {
        let trap = self.frame.trap;
        match trap.cause {
            cause::LOAD_GUEST_PAGE => self.memory(Access::Read, cause::LOAD_ACCESS),
            cause::STORE_GUEST_PAGE => self.memory(Access::Write, cause::STORE_ACCESS),
            cause::ECALL_VS => self.call(),
            cause::FETCH_GUEST_PAGE => self.memory(Access::Fetch, cause::FETCH_ACCESS),
            interrupt if interrupt & cause::INTERRUPT != 0 => {
                VcpuExit::ExternalInterrupt { vector: interrupt & !cause::INTERRUPT }
            }
            cause::VIRTUAL => self.virtual_instruction(),
            cause::ILLEGAL => self.illegal_instruction(),
            own if own < 64 && cause::GUEST_S >> own & 1 != 0 => {
                self.raise(own, trap.value);
                VcpuExit::Served(Service::Exception)
            }
            // An exception that only the next version of the architecture knows.
            unknown => VcpuExit::FailEntry { reason: unknown },
        }
    }

    /// A guest-page fault.
    #[inline]
    fn memory(&mut self, access: Access, fault: u64) -> VcpuExit {
        let trap = self.frame.trap;
        let gpa = |low| GuestPhysAddr::from_usize((trap.gpa << 2 | low) as usize);
        if let Some(write) = insn::walk(trap.insn) {
            self.pending = Pending::Access(PendingAccess { insn: None, fault });
            let access = if write { Access::Write } else { Access::Read };
            return VcpuExit::MemFault(MemFault { gpa: gpa(0), access, walk: true, insn: None });
        }
        let insn = match (access, trap.insn) {
            (Access::Fetch, _) => None,
            (_, 0) => match self.fetch() {
                Some(raw) => insn::from_memory(raw).filter(|_| self.begins_at(raw, trap.value)),
                // The code is gone: another vCPU has changed the page tables. The guest meets
                // that when it executes the instruction again.
                None => return VcpuExit::Nothing,
            },
            (_, htinst) => insn::from_htinst(htinst),
        };
        let pending = PendingAccess { insn, fault };
        self.pending = Pending::Access(pending);
        let insn = pending.decoded(self).map(|(access, _)| access);
        VcpuExit::MemFault(MemFault { gpa: gpa(trap.value & 3), access, walk: false, insn })
    }

    /// Whether a load or store accesses `addr` with its first byte. What began in the page before is
    /// reported at the begin of the page that faulted, less than 8 bytes later (§12.1.9).
    #[cold]
    fn begins_at(&self, raw: u32, addr: u64) -> bool {
        let (base, offset) = insn::base(raw);
        (self.gpr(base).wrapping_add(offset) ^ addr) & 7 == 0
    }

    /// The instruction at the program counter, of which those of 16 bits have 0 above.
    #[cold]
    fn fetch(&mut self) -> Option<u32> {
        let (hstatus, pc) = (self.frame.hstatus, self.frame.pc);
        let low = self.hart.fetch(hstatus, pc)?.into();
        if low & 3 != 3 {
            return Some(low);
        }
        let high: u32 = self.hart.fetch(hstatus, pc.wrapping_add(2))?.into();
        Some(high << 16 | low)
    }

    /// An instruction that would be legal without virtualization (§18.6.1): waiting for an
    /// interrupt is served, the rest are registers and instructions that the guest does not have.
    fn virtual_instruction(&mut self) -> VcpuExit {
        let raw = match self.frame.trap.value {
            0 => match self.fetch() {
                Some(raw) => raw.into(),
                None => return VcpuExit::Nothing,
            },
            raw => raw,
        };
        // In U-mode it is illegal, as on a machine whose firmware sets mstatus.TW (§3.3.3).
        if insn::is_wfi(raw) && self.frame.sstatus & status::SPP != 0 {
            self.skip(4);
            return VcpuExit::Halt;
        }
        self.raise(cause::ILLEGAL, raw);
        VcpuExit::Served(Service::Exception)
    }

    /// The guest's floating-point registers may not be in the hart yet; anything else is the
    /// guest's own mistake.
    fn illegal_instruction(&mut self) -> VcpuExit {
        let off = |sstatus: u64| sstatus & status::FS == 0;
        if off(self.frame.sstatus) && !off(self.hart.read(Csr::Vsstatus)) {
            self.fp.load(&mut self.hart, &mut self.frame.sstatus);
            return VcpuExit::Served(Service::FloatingPoint);
        }
        self.raise(cause::ILLEGAL, self.frame.trap.value);
        VcpuExit::Served(Service::Exception)
    }

    /// Gives the guest an exception at S level, as the hart would (§12.1.1, §12.1.2).
    pub(super) fn raise(&mut self, cause: u64, value: u64) {
        let old = self.hart.read(Csr::Vsstatus);
        let mut new = old & !(status::SIE | status::SPIE | status::SPP);
        if old & status::SIE != 0 {
            new |= status::SPIE;
        }
        new |= self.frame.sstatus & status::SPP;
        self.hart.write(Csr::Vsstatus, new);
        self.hart.write(Csr::Vsepc, self.frame.pc);
        self.hart.write(Csr::Vscause, cause);
        self.hart.write(Csr::Vstval, value);
        // Exceptions go to the base, in vectored mode too.
        self.frame.pc = self.hart.read(Csr::Vstvec) & !3;
        self.frame.sstatus |= status::SPP;
        self.frame.hstatus |= hstatus::SPVP;
    }
}
