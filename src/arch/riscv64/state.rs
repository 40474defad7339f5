//! Everything that a guest can observe of its hart.

#![forbid(unsafe_code)]

use super::csr::GuestCsrs;

/// The floating-point registers (Unprivileged, F and D).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FpState {
    /// f0 to f31; narrower values are NaN-boxed.
    pub regs: [u64; 32],
    /// `fcsr`.
    pub fcsr: u64,
}

/// The whole state of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RiscvState {
    /// x0 to x31; x0 is 0.
    pub gprs: [u64; 32],
    /// The program counter.
    pub pc: u64,
    /// Whether it is in U-mode, otherwise in S-mode.
    pub user: bool,
    /// The supervisor registers.
    pub csrs: GuestCsrs,
    /// The floating-point registers.
    pub fp: FpState,
    /// The value of `time` at which the timer is due, set by `stimecmp` or by a call; all ones
    /// for never.
    pub timer: u64,
}
