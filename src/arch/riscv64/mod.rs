//! The RISC-V backend: guests in VS-mode and VU-mode, by the hypervisor extension (Privileged
//! 1.13, chapter 18), under a host in HS-mode.
//!
//! | state of the guest | when it is switched |
//! | --- | --- |
//! | x1 to x31, pc, privilege | at each entry and exit |
//! | `vs*` registers, `hvip`, `scounteren`, `senvcfg` | when the vCPU is bound and unbound |
//! | f0 to f31, `fcsr` | loaded at the first use while bound, saved when unbound and dirty |
//! | `vstimecmp` (Sstc) | when bound and unbound; without Sstc `set_timer` is served by the host's timer |
//! | `hgatp` | when the vCPU gets a VMID; nothing is flushed at an entry |
//! | V, and the H extension itself | hidden: not in the device tree, illegal instructions (a guest that sets vsstatus.VS all the same reads it back) |
//!
//! What the guest sees of `time` is the host's. Of the other counters it sees none.
//!
//! **What the backend expects of its host, and leaves.** HS-mode with `sstatus.SIE` clear, a stack
//! of 4 KiB or more, any `stvec`, `sscratch`, `tp`, `gp`: they are the guest's while it runs, and as
//! before afterwards. `hedeleg`, `hideleg`, `hcounteren`, `henvcfg.STCE`, `hgatp`, `hvip` and the VS
//! registers belong to the backend while virtualization is enabled. Interrupts that are enabled in
//! `sie` bring the guest out, and stay pending. While a vCPU is bound that has used floating point,
//! the host's `sstatus.FS` is Off: a device model or a HAL that computes with floats traps, rather
//! than destroying the guest's; the host's registers and FS are as before when `run_vcpu` returns.
//!
//! **What a fault tells.** `htval` gives the address. The instruction comes from `htinst`, or, where
//! that is 0, is read with the guest's rights (HLVX); code that cannot be read, as its page has just
//! been taken away, is executed again. Integer loads and stores of every width and form are
//! emulated. Atomics, floating-point and vector accesses to a device are refused with an access
//! fault, as is what straddles two pages.

mod csr;
mod fp;
mod hart;
mod insn;
mod machine;
#[cfg(all(target_arch = "riscv64", target_os = "none"))]
mod native;
mod sbi;
mod state;
mod timer;
mod trap;
mod vcpu;

pub use csr::{Csr, GuestCsrs};
pub use hart::{Frame, Hart, Trap};
pub use machine::{Features, Machine, RiscvPerCpu};
#[cfg(all(target_arch = "riscv64", target_os = "none"))]
pub use native::{NativeHart, NativeTlb};
pub use state::{FpState, RiscvState};
pub use vcpu::{RiscvConfig, RiscvVCpu};

/// Whether harts of this kind can run guests.
pub fn is_supported<P: Hart>() -> bool {
    P::machine().probe(&mut P::default()).is_some()
}

/// `hgatp` of a guest.
const fn hgatp(mode: u8, vmid: u16, root: u64) -> u64 {
    (mode as u64) << csr::atp::MODE_SHIFT
        | (vmid as u64) << csr::atp::VMID_SHIFT & csr::atp::VMID
        | root
}
