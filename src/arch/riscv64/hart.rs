//! The hart, as the backend sees it: a small trait, so that a test can stand in for the hardware
//! and count what is touched.

#![forbid(unsafe_code)]

use super::{csr::Csr, machine::Machine, state::FpState};
use crate::mm::tlb::NestedTlb;

/// What changes hands at an entry into the guest and at the exit from it. The assembly knows the
/// layout.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Frame {
    /// The guest's registers x0 to x31; x0 is 0.
    pub gprs: [u64; 32],
    /// Its program counter.
    pub pc: u64,
    /// `sstatus` while it runs: where it came from (SPP), and the state of its FP registers.
    pub sstatus: u64,
    /// `hstatus` while it runs.
    pub hstatus: u64,
    /// Why it came out.
    pub trap: Trap,
    /// The host's registers meanwhile: ra, sp, gp, tp, s0 to s11.
    pub(super) host: [u64; 16],
}

/// The registers that say why a guest came out (§18.6.1 to §18.6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trap {
    /// `scause`.
    pub cause: u64,
    /// `stval`.
    pub value: u64,
    /// `htval`: a guest-physical address, shifted right by 2.
    pub gpa: u64,
    /// `htinst`.
    pub insn: u64,
}

/// The CPU that the calls are made on.
pub trait Hart: Default + Send + 'static {
    /// Its TLB.
    type Tlb: NestedTlb;

    /// What is known of harts of this kind; always the same static.
    fn machine() -> &'static Machine;

    /// Whether it has the hypervisor extension, and lets S-mode use it: `hstatus` can be read.
    fn has_hypervisor(&mut self) -> bool;

    /// Whether it has the timer of Sstc: `vstimecmp` can be read.
    fn has_vstimecmp(&mut self) -> bool;

    /// Reads a register.
    fn read(&mut self, csr: Csr) -> u64;

    /// Writes a register.
    fn write(&mut self, csr: Csr, value: u64);

    /// Sets bits of a register.
    fn set(&mut self, csr: Csr, bits: u64);

    /// Clears bits of a register.
    fn clear(&mut self, csr: Csr, bits: u64);

    /// Runs the guest until it comes out. The trap's registers but `cause` are valid for
    /// exceptions only.
    fn enter(&mut self, frame: &mut Frame);

    /// Reads 16 bits of code at a guest-virtual address with the guest's rights, which `hstatus`
    /// tells (HLVX.HU, §18.3.1); none when that faults.
    fn fetch(&mut self, hstatus: u64, addr: u64) -> Option<u16>;

    /// Saves the floating-point registers. `sstatus.FS` is not Off.
    fn save_fp(&mut self, fp: &mut FpState);

    /// Loads the floating-point registers. `sstatus.FS` is not Off.
    fn load_fp(&mut self, fp: &FpState);

    /// Forgets fetched instructions.
    fn fence_instructions(&mut self);

    /// Forgets translations by the guest's own tables, of the VMID in `hgatp` (HFENCE.VVMA).
    fn fence_translations(&mut self);
}
