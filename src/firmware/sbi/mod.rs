//! The RISC-V Supervisor Binary Interface, version 2.0, as a guest sees it.
//!
//! A guest's `ecall` carries the extension in a7, the function in a6 and arguments in a0 to a5;
//! it returns an error in a0 and a value in a1 (SBI 2.0 §3). [`Call::decode`] says what is meant.
//!
//! | extension | functions | errors |
//! | --- | --- | --- |
//! | Base 0x10 (§4) | all seven | |
//! | TIME (§6) | set_timer | |
//! | IPI (§7) | send_ipi | `InvalidParam` for a hart that does not exist |
//! | RFENCE (§8) | fence_i, sfence_vma, sfence_vma_asid | `InvalidParam` as in IPI; `NotSupported` for the hypervisor's fences, as a guest has no H extension |
//! | HSM (§9) | start, stop, get_status, suspend | `InvalidParam` for no such hart or type; `InvalidAddress` for an address that cannot be executed; `AlreadyAvailable` |
//! | SRST (§10) | shutdown, cold and warm reboot | `InvalidParam` for a reserved type or reason, `NotSupported` for a vendor's type |
//! | DBCN (§12) | write, read, write_byte | `InvalidParam` for memory that is not there |
//! | legacy (§5) | set_timer, console_putchar, console_getchar, clear_ipi, shutdown | |
//!
//! Everything else is `NotSupported`; the ranges for experiments, vendors and firmware (§3.1) are
//! the host's, as [`Call::Host`].

mod call;
#[cfg(test)]
mod tests;

pub use call::{Call, Fence};

use crate::vcpu::{CpuPower, CpuUpError};

/// The version of the specification that is implemented: 2.0 (§4.1).
pub const SPEC_VERSION: u64 = 2 << 24;

/// The implementation's id; the specification's list has no number for this crate, so it spells
/// "axvm".
pub const IMPLEMENTATION_ID: u64 = 0x6178_766d;

/// Error codes (§3, table 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum SbiError {
    /// It failed.
    Failed = -1,
    /// There is no such extension or function.
    NotSupported = -2,
    /// A parameter is wrong.
    InvalidParam = -3,
    /// It is denied.
    Denied = -4,
    /// An address is wrong.
    InvalidAddress = -5,
    /// It is available already.
    AlreadyAvailable = -6,
}

/// What a call returns: a1, or the error.
pub type SbiResult = Result<u64, SbiError>;

/// The registers a0 and a1.
pub const fn registers(result: SbiResult) -> (u64, u64) {
    match result {
        Ok(value) => (0, value),
        Err(error) => (error as i64 as u64, 0),
    }
}

/// What `hart_start` returns (§9.1).
pub const fn hart_start(outcome: Result<(), CpuUpError>) -> SbiResult {
    match outcome {
        Ok(()) => Ok(0),
        Err(CpuUpError::InvalidTarget) => Err(SbiError::InvalidParam),
        Err(CpuUpError::AlreadyOn | CpuUpError::OnPending) => Err(SbiError::AlreadyAvailable),
        Err(CpuUpError::InvalidAddress) => Err(SbiError::InvalidAddress),
    }
}

/// What `hart_get_status` returns (§9.3, table of hart states).
pub const fn hart_status(status: Option<CpuPower>) -> SbiResult {
    match status {
        None => Err(SbiError::InvalidParam),
        Some(CpuPower::On) => Ok(0),
        Some(CpuPower::Off) => Ok(1),
        Some(CpuPower::OnPending) => Ok(2),
        Some(CpuPower::Suspended) => Ok(4),
    }
}
