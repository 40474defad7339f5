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

/// Whether an access that faults at `addr` may have begun in the page before. `htinst` should tell
/// by an offset, but not every implementation does (QEMU 7.2 splits the access first).
const fn may_straddle(insn: Option<MemInsn>, addr: u64) -> bool {
    matches!(insn, Some(insn) if insn.width.size() > 1) && addr & 0xfff == 0
}

impl<H: AxVMHal, P: Hart> RiscvVCpu<H, P> {
    /// What the trap means (`scause`, §18.6.1).
    #[inline(never)]
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

    /// A guest-page fault. The exception that the guest gets if there is nothing is `fault`, unless
    /// the instruction says otherwise.
    #[inline]
    fn memory(&mut self, mut access: Access, mut fault: u64) -> VcpuExit {
        let trap = self.frame.trap;
        let walk = insn::walk(trap.insn);
        let mut insn = match access {
            Access::Fetch => None,
            _ => insn::from_htinst(trap.insn),
        };
        let told = trap.insn != 0 && walk.is_none() && !may_straddle(insn, trap.value);
        if access != Access::Fetch && !told {
            match self.fetch() {
                Some(raw) => {
                    let (base, offset) = insn::address(raw);
                    // What began in the page before is reported less than 8 bytes later (§12.1.9).
                    let begin = self.gpr(base).wrapping_add_signed(offset);
                    let begins_here = (begin ^ trap.value) & 7 == 0;
                    insn = insn::from_memory(raw).filter(|_| begins_here && walk.is_none());
                    // A walk's fault is of the type of the access that wanted the translation
                    // (§18.5.1), and an atomic's is a store's. QEMU 7.2 calls both loads.
                    if insn::stores(raw) {
                        fault = cause::STORE_ACCESS;
                    }
                }
                // The code is gone: another vCPU has changed the page tables. The guest meets that
                // when it executes the instruction again.
                None if walk.is_none() => return VcpuExit::Nothing,
                // It was the code whose translation was wanted.
                None if trap.value.wrapping_sub(self.frame.pc) < 4 => fault = cause::FETCH_ACCESS,
                None => {}
            }
        }
        let pending = PendingAccess { insn, fault };
        self.pending = Pending::Access(pending);
        let mut gpa = trap.gpa << 2 | trap.value & 3;
        if let Some(write) = walk {
            // The address is that of the page-table entry.
            gpa = trap.gpa << 2;
            access = if write { Access::Write } else { Access::Read };
        }
        let insn = pending.decoded(self).map(|(access, _)| access);
        let gpa = GuestPhysAddr::from_usize(gpa as usize);
        VcpuExit::MemFault(MemFault { gpa, access, walk: walk.is_some(), insn })
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
