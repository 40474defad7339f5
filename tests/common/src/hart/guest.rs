//! The guest's side of a hart, for scripts.

use axvm::arch::riscv64::{Csr, Frame, Trap};

use super::{
    MockCpu,
    csrs::{FS, SPP, SPVP},
};

/// A hart with V = 1: what a script can do to it.
pub struct Guest<'a> {
    /// The hart.
    pub cpu: &'a mut MockCpu,
    /// Its integer registers, program counter and privilege.
    pub frame: &'a mut Frame,
}

impl Guest<'_> {
    /// A register.
    pub fn reg(&self, reg: usize) -> u64 {
        self.frame.gprs[reg]
    }

    /// Sets a register; x0 stays 0.
    pub fn set_reg(&mut self, reg: usize, value: u64) {
        if reg != 0 {
            self.frame.gprs[reg] = value;
        }
    }

    /// Whether it is in VU-mode.
    pub fn is_user(&self) -> bool {
        self.frame.sstatus & SPP == 0
    }

    /// Goes to VU-mode, or to VS-mode.
    pub fn set_user(&mut self, user: bool) {
        // SPVP and SPP tell, at the exit, where it was (§18.6.1).
        self.frame.sstatus &= !SPP;
        self.frame.hstatus &= !SPVP;
        if !user {
            self.frame.sstatus |= SPP;
            self.frame.hstatus |= SPVP;
        }
    }

    /// Whether an instruction that uses floating point is legal (§18.2.14: both fields count).
    pub fn fp_is_on(&self) -> bool {
        self.frame.sstatus & FS != 0 && self.cpu.get(Csr::Vsstatus) & FS != 0
    }

    /// Reads a floating-point register.
    ///
    /// # Panics
    /// When that is illegal.
    #[track_caller]
    pub fn fp(&self, reg: usize) -> u64 {
        assert!(self.fp_is_on(), "floating point is off");
        self.cpu.fp.regs[reg]
    }

    /// Writes a floating-point register.
    ///
    /// # Panics
    /// When that is illegal.
    #[track_caller]
    pub fn set_fp(&mut self, reg: usize, value: u64) {
        assert!(self.fp_is_on(), "floating point is off");
        self.cpu.fp.regs[reg] = value;
        self.frame.sstatus |= FS;
        let vsstatus = self.cpu.get(Csr::Vsstatus);
        self.cpu.put(Csr::Vsstatus, vsstatus | FS);
    }
}

/// An exception with `stval`, which `htval` and `htinst` say nothing of.
pub fn exception(cause: u64, value: u64) -> Trap {
    Trap { cause, value, gpa: 0, insn: 0 }
}

/// A physical interrupt.
pub fn interrupt(cause: u64) -> Trap {
    exception(1 << 63 | cause, 0)
}

/// A guest-page fault with `htinst`; the guest-virtual address ends like the guest-physical one.
pub fn guest_page_fault(cause: u64, gpa: u64, insn: u64) -> Trap {
    Trap { cause, value: 0xffff_ffd0_0000_0000 | gpa & 0xfff, gpa: gpa >> 2, insn }
}
