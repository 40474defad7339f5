//! Calls to the firmware (SBI 2.0).

use core::arch::asm;

/// Extensions.
pub const LEGACY_SET_TIMER: u64 = 0;
/// Legacy: print a byte.
pub const LEGACY_PUTCHAR: u64 = 1;
/// Legacy: read a byte.
pub const LEGACY_GETCHAR: u64 = 2;
/// Legacy: take back a software interrupt.
pub const LEGACY_CLEAR_IPI: u64 = 3;
/// What there is.
pub const BASE: u64 = 0x10;
/// The timer.
pub const TIME: u64 = 0x5449_4d45;
/// Interrupts to other harts.
pub const IPI: u64 = 0x73_5049;
/// Fences on other harts.
pub const RFENCE: u64 = 0x5246_4e43;
/// Starting and stopping harts.
pub const HSM: u64 = 0x48_534d;
/// Power-off.
pub const SRST: u64 = 0x5352_5354;
/// The console.
pub const DBCN: u64 = 0x4442_434e;

/// Not supported.
pub const NOT_SUPPORTED: i64 = -2;
/// Invalid parameter.
pub const INVALID_PARAM: i64 = -3;
/// Invalid address.
pub const INVALID_ADDRESS: i64 = -5;
/// Already available.
pub const ALREADY_AVAILABLE: i64 = -6;

/// The implementation's id of axvm.
pub const AXVM: u64 = 0x6178_766d;

/// Extension and function with arguments: the value in a1, or the error (§3).
///
/// # Errors
/// The code in a0.
pub fn call(extension: u64, function: u64, args: [u64; 5]) -> Result<u64, i64> {
    let (error, value): (i64, u64);
    // SAFETY: the firmware keeps all registers but a0 and a1; what the call does is the caller's
    // affair (see the crate's page).
    unsafe {
        asm!(
            "ecall",
            inlateout("a0") args[0] => error,
            inlateout("a1") args[1] => value,
            in("a2") args[2],
            in("a3") args[3],
            in("a4") args[4],
            in("a5") 0,
            in("a6") function,
            in("a7") extension,
            options(nostack),
        );
    }
    if error == 0 { Ok(value) } else { Err(error) }
}

/// A legacy call (§5): a0 is all that it returns.
pub fn call_legacy(extension: u64, arg: u64) -> u64 {
    let value;
    // SAFETY: as in `call`.
    unsafe {
        asm!(
            "ecall",
            inlateout("a0") arg => value,
            in("a7") extension,
            options(nostack),
        );
    }
    value
}

/// Has the timer interrupt come when `time` is that (§6.1).
///
/// # Errors
/// The firmware's code.
pub fn set_timer(at: u64) -> Result<u64, i64> {
    call(TIME, 0, [at, 0, 0, 0, 0])
}

/// Makes a software interrupt pending on harts (§7.1).
///
/// # Errors
/// The firmware's code.
pub fn send_ipi(mask: u64, base: u64) -> Result<u64, i64> {
    call(IPI, 0, [mask, base, 0, 0, 0])
}

/// The state of a hart (§9.3).
///
/// # Errors
/// The firmware's code.
pub fn hart_status(hart: u64) -> Result<u64, i64> {
    call(HSM, 2, [hart, 0, 0, 0, 0])
}

/// Whether the firmware is axvm's: the machine may then be told in more detail.
pub fn is_axvm() -> bool {
    call(BASE, 1, [0; 5]) == Ok(AXVM)
}

/// Powers the machine off (§10.1).
pub fn power_off() -> ! {
    loop {
        let _ = call(SRST, 0, [0; 5]);
    }
}
