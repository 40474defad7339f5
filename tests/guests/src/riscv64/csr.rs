//! Control and status registers, by name or number.

/// `sstatus.SIE`: interrupts are taken.
pub const SIE: u64 = 1 << 1;
/// `sstatus.SPIE`: `SIE` after SRET.
pub const SPIE: u64 = 1 << 5;
/// `sstatus.SPP`: SRET goes to S-mode.
pub const SPP: u64 = 1 << 8;
/// `sstatus.FS`.
pub const FS: u64 = 3 << 13;
/// `sstatus.FS` = Initial.
pub const FS_INITIAL: u64 = 1 << 13;
/// `sstatus.FS` = Clean.
pub const FS_CLEAN: u64 = 2 << 13;
/// `sstatus.FS` = Dirty.
pub const FS_DIRTY: u64 = 3 << 13;
/// `sstatus.SUM`: S-mode may access pages of U-mode.
pub const SUM: u64 = 1 << 18;
/// `sstatus.SD`: something is dirty.
pub const SD: u64 = 1 << 63;

/// The software interrupt in `sie` and `sip`.
pub const SSI: u64 = 1 << 1;
/// The timer interrupt in `sie` and `sip`.
pub const STI: u64 = 1 << 5;
/// The external interrupt in `sie` and `sip`.
pub const SEI: u64 = 1 << 9;

/// `satp` with Sv39 and this root.
pub const fn satp_sv39(root: u64) -> u64 {
    8 << 60 | root >> 12
}

/// Reads a register.
#[macro_export]
macro_rules! csr_read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a register of S-mode has no effect.
        unsafe {
            core::arch::asm!(concat!("csrr {}, ", $name), out(reg) value, options(nostack))
        };
        value
    }};
}

/// Writes a register.
#[macro_export]
macro_rules! csr_write {
    ($name:literal, $value:expr) => {
        // SAFETY: the guest owns its hart; compiled code relies on none of the registers written
        // here, and memory is mapped to itself by whatever `satp` is given.
        unsafe {
            core::arch::asm!(concat!("csrw ", $name, ", {}"), in(reg) $value, options(nostack))
        }
    };
}

/// Sets bits of a register.
#[macro_export]
macro_rules! csr_set {
    ($name:literal, $bits:expr) => {
        // SAFETY: as for `write`.
        unsafe {
            core::arch::asm!(concat!("csrs ", $name, ", {}"), in(reg) $bits, options(nostack))
        }
    };
}

/// Clears bits of a register.
#[macro_export]
macro_rules! csr_clear {
    ($name:literal, $bits:expr) => {
        // SAFETY: as for `write`.
        unsafe {
            core::arch::asm!(concat!("csrc ", $name, ", {}"), in(reg) $bits, options(nostack))
        }
    };
}

#[doc(inline)]
pub use {
    crate::csr_clear as clear, crate::csr_read as read, crate::csr_set as set,
    crate::csr_write as write,
};
